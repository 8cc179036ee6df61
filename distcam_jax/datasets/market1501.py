"""Market-1501: 1,501 pedestrians seen by six cameras, for person re-identification, in the official layout.

    Market-1501-v15.09.15/
      bounding_box_train/*.jpg         12,936 images of 751 persons: the split `train`
      query/*.jpg                      3,368 images of the 750 others: `query`
      bounding_box_test/*.jpg          `gallery`: 15,913 images, with those of no person

A file is called PPPP_cCsS_FFFFFF_NN.jpg, after person, camera, sequence, frame and box. Person -1 marks junk, boxes
that are neither right nor wrong: they are dropped. Person 0 marks distractors, boxes around something else: they stay
in the gallery, where they are wrong for every query. Other folders, such as gt_bbox, are not read.

An example has `identity` and `camera` on top of what all data sets have: the numbers in the file's name. The crops are
the detector's, so there are no boxes. The classes are the persons. `train` shares none with the other splits; `query`
and `gallery` have the same ones, distractors among them, so that labels can be compared as identities can.

There is no official part to choose a checkpoint by; with `validation_identities`, the last persons of
bounding_box_train become the split `validation`, to be searched among themselves.

`manual_dir` is the folder, the zip archive as downloaded, or a folder that holds one of the two. Sets of other sizes
and numbers of cameras are read alike. Source: Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV
2015.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from distcam_jax.datasets import _builders, _sources
from distcam_jax.datasets import _image_folders as folders

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
INSTRUCTIONS = (
    "manual_dir must be, or hold, the archive Market-1501-v15.09.15.zip or the folder unpacked from it, with "
    f"{', '.join(FOLDERS.values())}"
)
_JUNK, _DISTRACTOR = -1, 0
_NAME = re.compile(r"(-1|\d{4,})_c([1-9]\d*)s\d+_\d+_\d+\.jpe?g", re.IGNORECASE)


@dataclasses.dataclass
class Market1501Config(tfds.core.BuilderConfig):
    """Whether some of the persons are held out.

    Attributes:
      validation_identities: how many persons of bounding_box_train make the split `validation`, the last ones by their
        numbers; 0 makes none. Every number is prepared in a folder of its own.

    Raises:
      ValueError: the number is no whole number, or is negative.
    """

    name: str = ""
    validation_identities: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self):
        value = self.validation_identities
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"validation_identities: got {value!r}, want a whole number, at least 0")
        self.name = f"validation{value}" if value else "all"


class Crop(NamedTuple):
    """An image by its file's name, which has the folder's before it."""

    path: str
    identity: int
    camera: int


class Market1501(_builders.LocalBuilder, skip_registration=True):
    """Builder of Market-1501; `Market1501Config` tells its option, `distcam_jax.datasets.load_dataset` its use."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train", "validation", "query", "gallery")
    BUILDER_CONFIGS = [Market1501Config()]  # noqa: RUF012 (the base class declares it so)
    ABSENT_SPLIT = "set validation_identities to a number of persons"
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS

    def _info(self) -> tfds.core.DatasetInfo:
        return self.local_info(
            "Market-1501: pedestrians, cut out of what several cameras have seen, without boxes.",
            identity=tfds.features.Scalar(np.int32, doc="number of the person, 0 for distractors"),
            camera=tfds.features.Scalar(np.int32, doc="number of the camera, from 1"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        manual_dir = pathlib.Path(str(dl_manager._manual_dir))
        source = _sources.find_source(
            manual_dir,
            marker=FOLDERS["train"],
            pattern="[Mm]arket*1501*",
            title="Market-1501",
            instructions=INSTRUCTIONS,
        )
        root, crops = scan(source)
        persons = sorted({crop.identity for crop in crops["train"]})
        held_out = self.builder_config.validation_identities
        if held_out >= len(persons):
            raise ValueError(
                f"validation_identities: got {held_out}, want fewer than the {len(persons)} persons of "
                f"{FOLDERS['train']} in {source}"
            )
        first = len(persons) - held_out  # of those held out
        searched = sorted({crop.identity for split in ("query", "gallery") for crop in crops[split]})
        groups = {"train": persons[:first], "validation": persons[first:], ("query", "gallery"): searched}
        self.set_split_classes({key: _class_names(own) for key, own in groups.items() if own})
        if held_out:
            kept = set(persons[:first])
            crops["validation"] = [crop for crop in crops["train"] if crop.identity not in kept]
            crops["train"] = [crop for crop in crops["train"] if crop.identity in kept]
        return {split: self._generate_examples(source, root, own) for split, own in crops.items()}

    def _generate_examples(self, source: pathlib.Path, root: str, crops: Sequence[Crop]) -> Iterator[tuple[str, dict]]:
        labels = {class_id: label for label, class_id in enumerate(self.info.features["label"].names)}
        crop_of = {crop.path: crop for crop in crops}
        for path, data in _sources.members(source, root, lambda name: name in crop_of):
            if data is not None:
                crop = crop_of[path]
                folders.checked_size(data, f"{source}: {path}")
                example = folders.make_example(data, label=labels[_class_id(crop.identity)], file_name=path)
                yield path, {**example, "identity": crop.identity, "camera": crop.camera}


class DrawnPedestrians(Market1501, skip_registration=True):
    """Builder of what `tools/generate_pedestrians.py` draws: the same layout under a name of its own.

    So no figure on drawn people is taken for one on Market-1501.
    """

    BUILDER_CONFIGS = [Market1501Config()]  # noqa: RUF012 (the base class declares it so)


def _class_id(identity: int) -> str:
    return f"{identity:04d}"


def _class_names(identities: Sequence[int]) -> dict[str, str]:
    """Id -> what a reader calls the person."""
    return {_class_id(number): f"person {number}" if number != _DISTRACTOR else "distractor" for number in identities}


def scan(source: pathlib.Path) -> tuple[str, dict[str, list[Crop]]]:
    """Reads the names of all files.

    Args:
      source: the folder or the archive.

    Returns:
      The root of the data inside an archive, and the images of every split without junk, sorted.

    Raises:
      FileNotFoundError: a split has no images.
      ValueError: a file's name does not fit, or a person is in a split where it may not be.
    """
    paths = [path for path, _ in _sources.members(source, "", lambda name: False)]
    root = _sources.find_root(paths, FOLDERS["train"])
    split_of = {folder: split for split, folder in FOLDERS.items()}
    crops: dict[str, list[Crop]] = {split: [] for split in FOLDERS}
    for path in sorted(path.removeprefix(root) for path in paths if root is not None and path.startswith(root)):
        folder, _, name = path.partition("/")
        if folder in split_of and name:
            crop = _parse(path, name, source)
            if crop.identity != _JUNK:
                crops[split_of[folder]].append(crop)
    empty = [f"{FOLDERS[split]}/" for split, own in crops.items() if not own]
    if empty:
        raise FileNotFoundError(f"{source}: no image in {', '.join(empty)}; {INSTRUCTIONS}")
    _check_persons(crops, source)
    return root or "", crops


def _parse(path: str, name: str, source: pathlib.Path) -> Crop:
    """What a file's name tells."""
    found = _NAME.fullmatch(name)
    if found is None:
        want = "a name such as 0002_c1s1_000451_03.jpg, of person, camera and sequence, frame, box"
        raise ValueError(f"{source}: got {path!r}, want {want}; rename the file or take it out")
    return Crop(path, int(found[1]), int(found[2]))


def _check_persons(crops: Mapping[str, Sequence[Crop]], source: pathlib.Path) -> None:
    """Refuses a person who is in training and in test, and distractors outside of the gallery."""
    trained = {crop.identity: crop.path for crop in crops["train"]}
    for crop in (crop for split in ("query", "gallery") for crop in crops[split]):
        if crop.identity in trained and crop.identity != _DISTRACTOR:
            both = f"{trained[crop.identity]} and {crop.path}"
            raise ValueError(
                f"{source}: person {crop.identity} is in {both}, want persons that are in training or in test; "
                f"{folders.AGAIN}"
            )
    for split in ("train", "query"):
        for crop in crops[split]:
            if crop.identity == _DISTRACTOR:
                raise ValueError(
                    f"{source}: {crop.path} is of person 0, a distractor, want those in {FOLDERS['gallery']} alone; "
                    "move the file there"
                )
