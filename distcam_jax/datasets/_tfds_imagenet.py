"""Reads `imagenet2012` as tensorflow-datasets itself prepared it, without TensorFlow: images and labels, no boxes."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

NAME = "imagenet2012"
SPLITS = ("train", "validation")


class Unboxed(Sequence):
    """The records of a split with labels in the order of the sorted ids, and with boxes that are none."""

    def __init__(self, records: Sequence[dict[str, Any]], label_order: tuple[int, ...]):
        self._records = records
        self._label_order = label_order

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        example = self._records[index]
        return {**example, "label": self._label_order[example["label"]], "boxes": np.zeros((0, 4), np.float32)}

    def __repr__(self) -> str:  # it must not change between runs, see `_Examples`
        return f"{type(self).__name__}({self._records!r})"


def open_builder(data_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Opens the newest version in `<data_dir>/imagenet2012/<version>/`.

    Raises:
      FileNotFoundError: none is there.
      ValueError: it is not stored as ArrayRecord files, or lacks some of them.
    """
    versions = [path.parent for path in (data_dir / NAME).glob("*/dataset_info.json")]
    versions = [path for path in versions if tfds.core.Version.is_valid(path.name)]
    if not versions:
        raise FileNotFoundError(
            f"{data_dir / NAME}: no {NAME} here; data_dir must be the folder in which tensorflow-datasets prepared it "
            "with file_format='array_record'; 'ilsvrc2012' prepares the same images from the official files, with boxes"
        )
    folder = max(versions, key=lambda path: tfds.core.Version(path.name))
    builder = tfds.builder_from_directory(folder)
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise ValueError(
            f"{folder}: stored as {builder.info.file_format.value}, want array_record; where TensorFlow is installed, "
            f"run `tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record`"
        )
    builder.info.set_file_format("array_record", override=True, override_if_initialized=True)  # it may be the second
    for split in builder.info.splits.values():
        for path in split.filepaths:
            if not path.exists():
                raise ValueError(f"{path}: missing; copy it from where {NAME} was prepared, or prepare it again")
    return builder


def sorted_ids(builder: tfds.core.DatasetBuilder) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The sorted class ids, and for each of the builder's labels its place among them."""
    names = builder.info.features["label"].names
    ids = tuple(sorted(names))
    place = {wnid: label for label, wnid in enumerate(ids)}
    return ids, tuple(place[wnid] for wnid in names)
