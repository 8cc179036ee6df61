"""What the data sets' builders share: features, quiet preparation without network, and clean starts after a crash."""

import contextlib
import fcntl
import io
import os
import pathlib
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from distcam_jax.checks import one_line
from distcam_jax.datasets import _shuffle


class _LocalInfo(tfds.core.DatasetInfo):
    """A `DatasetInfo` that never asks the network for figures computed elsewhere."""

    def initialize_from_bucket(self) -> None:
        pass


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders: images with a class and boxes, prepared from local files alone.

    A subclass sets `VERSION`, `SPLITS` and `BUILDER_CONFIGS` (one, with every option's default; the options are the
    fields that its config class adds), calls `set_classes` or `set_split_classes` in `_split_generators`, and is
    defined with `skip_registration=True`, so that importing it never collides with a builder of the same name
    elsewhere.
    """

    SPLITS: tuple[str, ...] = ()
    ABSENT_SPLIT = "put its images into manual_dir, delete the folder {folder} and load again"  # what to do then

    def __setstate__(self, state: dict[str, Any]) -> None:
        # tfds refuses a copy of a config that the class itself lists.
        original = state["_original_state"]
        config = _known(type(self), original["config"])
        with _quiet():
            super().__setstate__({"_original_state": {**original, "config": config}})

    def local_info(self, description: str, **extra_features: Any) -> tfds.core.DatasetInfo:
        """The `DatasetInfo` of every data set here; `extra_features` come on top of the four common ones."""
        features = {
            "image": tfds.features.Image(doc="the encoded file, as it was found"),
            "label": tfds.features.ClassLabel(),
            "boxes": tfds.features.Tensor(
                shape=(None, 4), dtype=np.float32, doc="x0, y0, x1, y1, pixels, exclusive end"
            ),
            "file_name": tfds.features.Text(),
        }
        return _LocalInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(features | extra_features),
            metadata=tfds.core.MetadataDict(),
        )

    def set_classes(self, names: Mapping[str, str]) -> None:
        """Stores the classes in the order of their labels: id -> name that a reader understands."""
        self.info.features["label"].names = list(names)
        self.info.metadata["class_names"] = list(names.values())

    def set_split_classes(self, splits: Mapping[str | tuple[str, ...], Mapping[str, str]]) -> None:
        """Stores the classes of splits that share none, in place of `set_classes`: split -> id -> name.

        A tuple of splits stands for splits that have the same classes. The examples are stored with the label that a
        class has among those of all splits, in this order; `classes_of` tells which are a split's own.

        Raises:
          ValueError: a class is in two splits.
        """
        split_of: dict[str, str] = {}
        ranges, start = {}, 0
        for key, names in splits.items():
            alike = (key,) if isinstance(key, str) else key
            for class_id in names:
                if class_id in split_of:
                    both = f"{split_of[class_id]} and {alike[0]}"
                    raise ValueError(f"class {class_id!r} is in {both}, want splits that share no class")
                split_of[class_id] = alike[0]
            ranges |= {split: [start, start + len(names)] for split in alike}
            start += len(names)
        self.set_classes({class_id: name for names in splits.values() for class_id, name in names.items()})
        self.info.metadata["split_classes"] = ranges

    def classes_of(self, splits: Collection[str]) -> list[int]:
        """The stored labels of these splits' classes, ascending; those of all classes where splits share them."""
        ranges = self.info.metadata.get("split_classes")
        if ranges is None:
            return list(range(len(self.info.features["label"].names)))
        return sorted({label for split in splits for label in range(*ranges.get(split, (0, 0)))})


def prepare(
    builder_class: type[LocalBuilder],
    config: tfds.core.BuilderConfig,
    *,
    data_dir: str | os.PathLike[str],
    manual_dir: str | os.PathLike[str] | None,
) -> LocalBuilder:
    """Returns a builder whose data is prepared, preparing it where that has not been done.

    Other processes that want the same data wait. What a killed process left is removed first.

    Raises:
      ValueError: prepared data lacks a file.
    """
    config = _known(builder_class, config)

    def open_builder() -> LocalBuilder:
        return builder_class(data_dir=os.fspath(data_dir), config=config, file_format="array_record")

    with _quiet():
        builder = open_builder()
        if not builder.is_prepared():
            with _locked(pathlib.Path(builder.data_path).parent):
                builder = open_builder()  # another process may have prepared it meanwhile
                if not builder.is_prepared():
                    _build(builder, manual_dir)
    _check_files(builder)
    return builder


def _known(builder_class: type[LocalBuilder], config: tfds.core.BuilderConfig) -> tfds.core.BuilderConfig:
    """The config of this name that the class lists, or else the config itself."""
    return next((known for known in builder_class.BUILDER_CONFIGS if known.name == config.name), config)


def _build(builder: LocalBuilder, manual_dir: str | os.PathLike[str] | None) -> None:
    """Prepares the data from a clean start; the caller holds the lock."""
    for leftover in [builder.data_path, *builder.data_path.parent.glob("incomplete.*")]:
        if leftover.exists():
            leftover.rmtree()
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        with _shuffle.plain_files():
            builder.download_and_prepare(download_config=config)
    except RuntimeError as error:
        if "write()" not in str(error):  # of the ArrayRecord writer, for a full disk and the like
            raise
        raise OSError(
            f"the data set cannot be written to {builder.data_path} ({one_line(error)}); make room or name another "
            "data_dir"
        ) from error


def _check_files(builder: LocalBuilder) -> None:
    """Refuses prepared data that lost a file."""
    for split in builder.info.splits.values():
        for path in split.filepaths:
            if not path.exists():
                raise ValueError(f"{path}: missing; delete the folder {builder.data_path} and load the data set again")


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock; the system releases it when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves of the preparation's messages only errors, and on a terminal the progress bar."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.display_progress_bar(sys.stderr.isatty())
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        tfds.display_progress_bar(True)
