"""ILSVRC 2012 (ImageNet-1k): 1.28 million photographs of 1,000 classes, with boxes, from the official files.

`manual_dir` holds the files as they are downloaded from https://image-net.org/download-images; they are read in place:

| file | size | |
|---|---|---|
| ILSVRC2012_img_train.tar | 148 GB (138 GiB) | |
| ILSVRC2012_img_val.tar | 6.7 GB (6.3 GiB) | |
| ILSVRC2012_bbox_val_v3.tgz | 2 MB | |
| ILSVRC2012_devkit_t12.tar.gz | 2.5 MB | |
| ILSVRC2012_bbox_train_v2.tar.gz | 20 MB | optional: boxes of 40 % of the training images |
| ILSVRC2014_devkit.tgz, or ILSVRC2014_clsloc_validation_blacklist.txt out of it | small | optional: `blacklisted` |

The prepared data takes as much room again, 155 GB, and not more on the way: while examples are shuffled, temporary
files shrink as fast as the result grows. Memory stays below 2 GB, 1 GB of it for shuffling and 0.1 GB for boxes. The
examples are stored in a random order that is always the same.

What is not as one would expect:

* Boxes are those of the image's own class. Training images without an annotation have none.
* Boxes are in pixels of the stored image, as it is without its EXIF orientation. An annotation made at another size is
  scaled; one without a size, or with width and height swapped, is taken as it is. What is beyond the border is cut off;
  boxes of which nothing is left, or that end before they begin, are dropped and counted (`dropped_boxes` in
  metadata.json).
* An annotation belongs to the image after which its file is called; the `<filename>` in it is wrong at times.
* Images are stored as found: among those named .JPEG one is a PNG, 22 are CMYK and some are grey.
  `distcam_jax.decoding.decode_image` reads them all.
* Labels follow the sorted WordNet ids, as torchvision's do, and not the numbers ILSVRC2012_ID.
"""

import dataclasses
import io
import pathlib
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from distcam_jax.datasets import _builders, _ilsvrc_files
from distcam_jax.datasets._archives import AGAIN
from distcam_jax.decoding import image_size

_ROOM = 1.02  # size of the prepared data against that of the two archives of images


@dataclasses.dataclass
class Ilsvrc2012Config(tfds.core.BuilderConfig):
    """There is one way to prepare this data set."""

    name: str = "all"


class Ilsvrc2012(_builders.LocalBuilder, skip_registration=True):
    """Builder of ILSVRC 2012; `distcam_jax.datasets.load_dataset` tells its use."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train", "validation")
    BUILDER_CONFIGS = [Ilsvrc2012Config()]  # noqa: RUF012 (the base class declares it so)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"manual_dir must hold the official files; get them from {_ilsvrc_files.DOWNLOADS}"

    def _info(self) -> tfds.core.DatasetInfo:
        return self.local_info(
            "ILSVRC 2012: photographs of 1,000 classes with boxes of the image's own class.",
            image_width=tfds.features.Scalar(np.int32, doc="of the stored image, pixels"),
            image_height=tfds.features.Scalar(np.int32, doc="of the stored image, pixels"),
            blacklisted=tfds.features.Scalar(np.bool_, doc="the list of bad validation annotations names it"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        files = _ilsvrc_files.find_files(pathlib.Path(str(dl_manager._manual_dir)))
        _check_room(pathlib.Path(self.data_path).parent, files)
        devkit = _ilsvrc_files.read_devkit(files.devkit)
        count, blacklist = len(devkit.ground_truth), frozenset()
        if files.blacklist:
            blacklist = _ilsvrc_files.read_blacklist(files.blacklist, count)
        self.set_classes({wnid: words.split(",")[0].strip() for wnid, words in devkit.classes.items()})
        self.info.metadata["blacklist_known"] = files.blacklist is not None
        self.info.metadata["dropped_boxes"] = {}
        validation = _validation_images(files, devkit.ground_truth, blacklist)
        train = _train_images(files, set(devkit.classes))
        return {  # the short one first, so that a fault in its files shows before hours have passed
            "validation": self._generate_examples("validation", files.validation, validation),
            "train": self._generate_examples("train", files.train, train),
        }

    def _generate_examples(
        self, split: str, archive: pathlib.Path, images: Iterator["_Image"]
    ) -> Iterator[tuple[str, dict]]:
        dropped_boxes = 0
        for image in images:
            try:
                size = image_size(image.data)
            except ValueError as error:
                raise ValueError(f"{archive}: {image.file_name}: {error}; {AGAIN}") from error
            boxes, dropped = np.zeros((0, 4), np.float32), 0
            if image.annotation is not None:
                boxes, dropped = _ilsvrc_files.boxes_in_image(image.annotation, size)
            dropped_boxes += dropped
            example = {
                "image": io.BytesIO(image.data),
                "label": image.wnid,
                "boxes": boxes,
                "file_name": image.file_name,
                "image_width": size[0],
                "image_height": size[1],
                "blacklisted": image.blacklisted,
            }
            yield image.file_name, example
        self.info.metadata["dropped_boxes"][split] = dropped_boxes


class _Image(NamedTuple):
    """An image with what the other files say of it."""

    data: bytes
    file_name: str
    wnid: str
    annotation: bytes | None
    blacklisted: bool


def _validation_images(
    files: _ilsvrc_files.Files, ground_truth: list[str], blacklist: frozenset[int]
) -> Iterator[_Image]:
    """The validation images; each must be annotated."""
    stems = [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(ground_truth) + 1)]
    wnid_of = dict(zip(stems, ground_truth, strict=True))
    annotations = _ilsvrc_files.read_annotations(files.validation_boxes, wnid_of.get)
    missing = [stem for stem in stems if stem not in annotations]
    if missing:
        fault = f"{missing[0]}.xml is missing ({len(missing)} such annotations of {len(stems)})"
        raise ValueError(f"{files.validation_boxes}: {fault}; {AGAIN}")
    for number, file_name, data in _ilsvrc_files.validation_images(files.validation, len(stems)):
        stem = stems[number - 1]
        yield _Image(data, file_name, wnid_of[stem], annotations[stem], number in blacklist)


def _train_images(files: _ilsvrc_files.Files, wnids: set[str]) -> Iterator[_Image]:
    """The training images, some of them annotated."""

    def wnid_of(stem: str) -> str | None:
        wnid = stem.partition("_")[0]
        return wnid if wnid in wnids else None

    annotations = _ilsvrc_files.read_annotations(files.train_boxes, wnid_of) if files.train_boxes else {}
    for wnid, file_name, data in _ilsvrc_files.train_images(files.train, wnids):
        yield _Image(data, file_name, wnid, annotations.get(file_name.rpartition(".")[0]), False)


def _check_room(folder: pathlib.Path, files: _ilsvrc_files.Files) -> None:
    """Refuses to begin where the prepared data would not fit."""
    needed = _ROOM * (files.train.stat().st_size + files.validation.stat().st_size)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder}: {free / 1e9:.1f} GB free, ILSVRC 2012 takes {needed / 1e9:.1f} GB; free some or name another "
            "data_dir"
        )
