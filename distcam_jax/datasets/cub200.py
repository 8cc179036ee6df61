"""CUB-200-2011: 11,788 photographs of 200 species of birds, with one class and one box each, in the official layout.

    CUB_200_2011/
      images.txt                       image, path below images/
      classes.txt                      class, name
      image_class_labels.txt           image, class
      bounding_boxes.txt               image, x, y, width, height
      train_test_split.txt             image, 1 for training or 0
      images/<class>/*.jpg
      segmentations/<class>/*.png      optional, an archive of its own

There are two protocols:

* "retrieval": the first half of the classes in classes.txt, 1 to 100, is the split `train`, and the others are `test`.
  They share no class. With `validation_classes`, the last ones of the first half become the split `validation`.
* "classification": `train` and `test` are those of train_test_split.txt, which share all classes.

What is not as one would expect:

* A box ends at x + width and y + height, and this pixel still belongs to it. The official description does not say so;
  but x and y count from 0, and the ends of boxes at the right and the lower border are the last column and row of the
  image. So the end that is stored, an exclusive one, is x + width + 1. Parts of a box that are at most two pixels
  beyond the border are cut off.
* A few images are grey. They are stored as found; `distcam_jax.decoding.decode_image` makes three channels of them.
* Segmentations, where they are asked for, are `segmentation` of an example: the encoded PNG as it was found, in which
  a pixel is brighter the more annotators took it for the bird. The folder or segmentations.tgz lies in the folder of
  the data set or beside it.

`manual_dir` is the folder, the archive CUB_200_2011.tgz, or a folder that holds one of the two; archives are read in
place. Sources: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", Caltech, CNS-TR-2011-001. Song et al., "Deep
Metric Learning via Lifted Structured Feature Embedding", CVPR 2016, for the halves.
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds

from distcam_jax.datasets import _builders
from distcam_jax.datasets import _cub200_files as files
from distcam_jax.datasets import _image_folders as folders

PROTOCOLS = ("retrieval", "classification")


@dataclasses.dataclass
class Cub200Config(tfds.core.BuilderConfig):
    """What the splits are; every choice is prepared in a folder of its own.

    Attributes:
      protocol: one of `PROTOCOLS`.
      validation_classes: for retrieval, how many classes of the first half make the split `validation`, its last ones;
        0 makes none.
      segmentations: whether examples have the official segmentations.

    Raises:
      ValueError: an unknown protocol, or a wrong number of classes.
    """

    name: str = ""
    protocol: str = dataclasses.field(default="retrieval", kw_only=True)
    validation_classes: int = dataclasses.field(default=0, kw_only=True)
    segmentations: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol: got {self.protocol!r}, want one of {', '.join(PROTOCOLS)}")
        held_out = self.validation_classes
        if not isinstance(held_out, int) or isinstance(held_out, bool) or held_out < 0:
            raise ValueError(f"validation_classes: got {held_out!r}, want a whole number, at least 0")
        if held_out and self.protocol != "retrieval":
            raise ValueError(f"validation_classes: got {held_out} for the protocol {self.protocol!r}, want 0")
        if not isinstance(self.segmentations, bool):
            raise ValueError(f"segmentations: got {self.segmentations!r}, want True or False")
        validation = f"_validation{held_out}" if held_out else ""
        self.name = self.protocol + validation + ("_segmentations" if self.segmentations else "")


class Cub200(_builders.LocalBuilder, skip_registration=True):
    """Builder of CUB-200-2011; `Cub200Config` tells its options, `distcam_jax.datasets.load_dataset` its use."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train", "validation", "test")
    BUILDER_CONFIGS = [Cub200Config()]  # noqa: RUF012 (the base class declares it so)
    ABSENT_SPLIT = "set validation_classes to a number of classes, for the protocol 'retrieval'"
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.INSTRUCTIONS

    def _info(self) -> tfds.core.DatasetInfo:
        masks = {}
        if self.builder_config.segmentations:
            masks["segmentation"] = tfds.features.Image(doc="the encoded PNG, as it was found")
        return self.local_info("CUB-200-2011: photographs of birds, one class and one box each.", **masks)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        source = files.find_source(pathlib.Path(str(dl_manager._manual_dir)))
        masks = files.find_masks(source) if self.builder_config.segmentations else None
        lists = files.read_lists(source)
        if self.builder_config.protocol == "classification":
            self.set_classes({class_id: files.class_name(class_id) for class_id in lists.class_ids})
            splits = {
                split: [bird for bird in lists.birds if bird.is_training == (split == "train")]
                for split in ("train", "test")
            }
        else:
            classes = _halves(lists, self.builder_config.validation_classes)
            self.set_split_classes({s: {own: files.class_name(own) for own in ids} for s, ids in classes.items()})
            splits = {s: [bird for bird in lists.birds if bird.class_id in ids] for s, ids in classes.items()}
        return {split: self._generate_examples(lists, birds, masks) for split, birds in splits.items()}

    def _generate_examples(
        self, lists: files.Lists, birds: Sequence[files.Bird], masks: pathlib.Path | None
    ) -> Iterator[tuple[str, dict]]:
        labels = {class_id: label for label, class_id in enumerate(self.info.features["label"].names)}
        mask_of = files.read_masks(masks, birds) if masks else {}
        for bird, data, boxes in files.read_images(lists, birds):
            example = folders.make_example(data, label=labels[bird.class_id], file_name=bird.path, boxes=boxes)
            if masks:
                mask = mask_of.pop(bird.path)
                size = folders.checked_size(mask, f"{masks}: segmentation of {bird.path}")
                if size != folders.checked_size(data, bird.path):
                    raise ValueError(
                        f"{masks}: the segmentation of {bird.path} has {size[0]} x {size[1]} pixels, which is not the "
                        f"size of the image; {folders.AGAIN}"
                    )
                example["segmentation"] = io.BytesIO(mask)
            yield bird.path, example


def _halves(lists: files.Lists, validation: int) -> dict[str, list[str]]:
    """The classes of the splits of retrieval."""
    half = len(lists.class_ids) // 2
    if validation >= half:
        raise ValueError(
            f"validation_classes: got {validation}, want fewer than the {half} classes that train ({lists.source})"
        )
    ids, first = lists.class_ids, half - validation
    splits = {"train": ids[:first], "validation": ids[first:half], "test": ids[half:]}
    return {split: own for split, own in splits.items() if own}
