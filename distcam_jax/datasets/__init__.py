"""Data sets: images with a class and boxes, prepared once and then read at random.

Every data set is a tensorflow-datasets builder that writes ArrayRecord files; TensorFlow itself is not needed.

| name | what | from |
|---|---|---|
| `digits` | one handwritten digit among clutter, 64 × 64, exact boxes | scikit-learn's digits, drawn on first use |
| `tiny_imagenet` | photographs, 64 × 64, 200 classes or a choice, one box each | the official archive: `manual_dir` |
| `tiny_imagenet_fewshot` | the same photographs, splits that share no class | the same, and lists of classes |
| `mini_imagenet` | photographs, 64, 16 and 20 classes | the lists and images, or ILSVRC's: `manual_dir` |
| `tiered_imagenet` | photographs, 351, 97 and 160 classes | folders of images, one a class: `manual_dir` |
| `omniglot` | drawn characters, 964 and 659 classes | the official archives, unpacked: `manual_dir` |
| `class_folders` | your own few-shot data | folders of images, one a class: `manual_dir` |
| `cub200` | photographs of birds, 200 classes in two halves, one box each | the official files: `manual_dir` |
| `market1501` | pedestrians, to be found again in what other cameras saw | the official files: `manual_dir` |
| `drawn_pedestrians` | the same with people who are drawn | `tools/generate_pedestrians.py`: `manual_dir` |
| `image_folder` | your own images, to be searched | folders of images, one a class: `manual_dir` |
| `ilsvrc2012` | photographs, 1,000 classes, boxes for validation and part of train | the official files: `manual_dir` |
| `imagenet2012` | the same photographs, without boxes | tensorflow-datasets' own preparation: `data_dir` |
"""

import dataclasses
import operator
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from distcam_jax.datasets import _builders, _tfds_imagenet
from distcam_jax.datasets.class_folders import ClassFolders, Omniglot, TieredImagenet
from distcam_jax.datasets.cub200 import Cub200
from distcam_jax.datasets.digits import Digits
from distcam_jax.datasets.ilsvrc2012 import Ilsvrc2012
from distcam_jax.datasets.image_folder import ImageFolder
from distcam_jax.datasets.market1501 import DrawnPedestrians, Market1501
from distcam_jax.datasets.mini_imagenet import MiniImagenet
from distcam_jax.datasets.tiny_imagenet import TinyImagenet
from distcam_jax.datasets.tiny_imagenet_fewshot import TinyImagenetFewshot

__all__ = ["DATASETS", "Dataset", "load_dataset"]

DATASETS: dict[str, type[_builders.LocalBuilder]] = {
    "digits": Digits,
    "tiny_imagenet": TinyImagenet,
    "tiny_imagenet_fewshot": TinyImagenetFewshot,
    "mini_imagenet": MiniImagenet,
    "tiered_imagenet": TieredImagenet,
    "omniglot": Omniglot,
    "class_folders": ClassFolders,
    "cub200": Cub200,
    "market1501": Market1501,
    "drawn_pedestrians": DrawnPedestrians,
    "image_folder": ImageFolder,
    "ilsvrc2012": Ilsvrc2012,
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a data set, with random access; it can be pickled and is cheap to open.

    In the data sets of few-shot learning and retrieval, splits share no class. The classes are then those of the split
    that was opened, a sum such as `train+validation` has those of its parts, and labels count from 0 in every one of
    them. Only `query` and `gallery` of persons have their classes in common.

    Attributes:
      name: of the data set.
      split: as it was asked for, such as `train[:90%]`.
      source: `source[i]` is a dict of `image` (bytes: the encoded file, not decoded), `label` (int), `boxes` (float32
        [m, 4]: x0, y0, x1, y1 in pixels, exclusive end), `file_name` (str), and what the data set adds.
      class_names: what a reader calls the classes, in the order of the labels.
      class_ids: what the data set calls them.
      blacklist_known: whether an example's `blacklisted` tells anything. The list is one of validation images whose
        annotation is bad, given to `ilsvrc2012` when it was prepared; figures without these images can be told beside
        those of all.
    """

    name: str
    split: str
    source: Sequence[dict[str, Any]]
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    blacklist_known: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes; labels run from 0 to `num_classes - 1`."""
        return len(self.class_ids)


def load_dataset(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Dataset:
    r"""Opens one split of a data set, preparing the data on first use.

    Prepared data is reused while name, options and `data_dir` are the same, whatever `manual_dir` holds by then; delete
    its folder below `data_dir` to prepare it again. An interrupted preparation leaves nothing that is taken for data.
    Processes that share `data_dir` prepare the data once, the others wait.

    Args:
      name: one of `DATASETS`, or `imagenet2012` where tensorflow-datasets itself prepared it in `data_dir`, as
        ArrayRecord files.
      split: `train`, `validation` or, for `digits` and data of few-shot learning and retrieval, `test`, in the place
        of which `market1501` has `query` and `gallery`; also slices and sums, such as `train[:90%]` and `train[90%:]`:
        the examples are stored in a random order that is always the same.
      data_dir: folder of prepared data. Default: the environment variable DISTCAM_DATA_DIR, else ~/.cache/distcam_jax.
      manual_dir: where the files are that you downloaded: `tiny_imagenet` takes the official archive, the folder
        unpacked from it, or a folder that holds one of the two, and `tiny_imagenet_fewshot` the same; `ilsvrc2012`
        takes the folder of the official files, see `distcam_jax.datasets.ilsvrc2012` for their names and the room that
        is needed; the modules in `distcam_jax.datasets` that are called as the other data sets are, and
        `class_folders`, show their layouts.
      **options: of the data set: `seed`, `train_size`, `validation_size` and `test_size` for `digits`; `classes` for
        `tiny_imagenet`; `class_splits` and `split_names` for `tiny_imagenet_fewshot`; `title` for `class_folders`;
        `protocol` ("retrieval" or "classification"), `validation_classes` and `segmentations` for `cub200`;
        `validation_identities` for `market1501`; `title`, and `train_share` and `validation_share` or `class_splits`,
        for `image_folder`.

    Raises:
      ValueError: unknown name, split or option, or a file with wrong content.
      FileNotFoundError: `manual_dir` lacks the files to prepare the data from.
      OSError: the prepared data would not fit on the disk.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     sizes = {"train_size": 20, "validation_size": 10, "test_size": 10}
      ...     dataset = load_dataset("digits", "train[:50%]", data_dir=folder, **sizes)
      ...     example = dataset.source[0]
      >>> len(dataset.source), dataset.num_classes
      (10, 10)
      >>> example["image"][:4], example["boxes"].shape
      (b'\x89PNG', (1, 4))
    """
    data_dir = os.path.expanduser(data_dir or os.environ.get("DISTCAM_DATA_DIR") or "~/.cache/distcam_jax")
    if name == _tfds_imagenet.NAME:
        _check_options(options, [])
        _check_split(split, _tfds_imagenet.SPLITS)
        return _open_tfds_imagenet(split, pathlib.Path(data_dir))
    if name not in DATASETS:
        raise ValueError(f"name: got {name!r}, want one of {', '.join([*DATASETS, _tfds_imagenet.NAME])}")
    builder_class = DATASETS[name]
    _check_split(split, builder_class.SPLITS)
    config = _make_config(builder_class, options)
    builder = _builders.prepare(builder_class, config, data_dir=data_dir, manual_dir=manual_dir)
    records = _open_split(builder, split)
    ids, names = builder.info.features["label"].names, builder.info.metadata["class_names"]
    classes = builder.classes_of(split_names(split))
    return Dataset(
        name=name,
        split=split,
        source=_Examples(records, {stored: label for label, stored in enumerate(classes)}),
        class_names=tuple(names[stored] for stored in classes),
        class_ids=tuple(ids[stored] for stored in classes),
        blacklist_known=bool(builder.info.metadata.get("blacklist_known", False)),
    )


def _open_tfds_imagenet(split: str, data_dir: pathlib.Path) -> Dataset:
    """One split of `imagenet2012` as tensorflow-datasets prepared it."""
    builder = _tfds_imagenet.open_builder(data_dir)
    _check_split(split, tuple(name for name in _tfds_imagenet.SPLITS if name in builder.info.splits))
    class_ids, label_order = _tfds_imagenet.sorted_ids(builder)
    source = _tfds_imagenet.Unboxed(_open_split(builder, split), label_order)
    return Dataset(_tfds_imagenet.NAME, split, _Examples(source), class_names=class_ids, class_ids=class_ids)


def _open_split(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    """The records of a split, which must hold some."""
    missing = [name for name in split_names(split) if name not in builder.info.splits]
    if missing:
        raise ValueError(
            f"split: got {split!r}, but the data was prepared without {missing[0]!r}; "
            + builder.ABSENT_SPLIT.format(folder=builder.data_path)
        )
    if not builder.info.splits[split].num_examples:
        sizes = ", ".join(f"{key} has {value.num_examples}" for key, value in builder.info.splits.items())
        raise ValueError(f"split: got {split!r}, which holds no examples ({sizes})")
    images = [name for name, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    return builder.as_data_source(split, decoders={name: tfds.decode.SkipDecoding() for name in images})


class _Examples(Sequence):
    """The records of a split as the plain values that `Dataset` promises; `labels` are those of the stored ones."""

    def __init__(self, records: Any, labels: Mapping[int, int] | None = None):
        self._records = records
        self._labels = labels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index: got {position}, want one below {len(self)}")
        example = self._records[position % len(self)]
        label = example["label"]
        if self._labels is not None:
            label = self._labels[label]
        return {**example, "label": label, "file_name": example["file_name"].decode()}

    def __repr__(self) -> str:  # Grain compares it when an iterator is restored, so it must not change between runs
        return f"{type(self).__name__}({self._records!r}, length={len(self)})"


def split_names(split: str) -> list[str]:
    """The whole splits that a split is made of, one a part.

    Examples:
        >>> split_names("train[:90%]+validation")
        ['train', 'validation']
    """
    return re.findall(r"(?:^|\+)\s*(\w*)", split)


def _check_split(split: str, valid: tuple[str, ...]) -> None:
    """Refuses a split that the data set lacks, before any work is done."""
    wanted = f"one of {', '.join(valid)}, or a part of it such as {valid[0]}[:90%]"
    if not set(split_names(split)) <= set(valid):
        raise ValueError(f"split: got {split!r}, want {wanted}")
    try:
        tfds.core.ReadInstruction.from_spec(split)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"split: got {split!r}, want {wanted}") from error


def _make_config(builder_class: type[_builders.LocalBuilder], options: dict[str, Any]) -> tfds.core.BuilderConfig:
    """The builder's config with these options."""
    config_class = type(builder_class.BUILDER_CONFIGS[0])
    common = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    valid = [field.name for field in dataclasses.fields(config_class) if field.name not in common]
    _check_options(options, valid)
    return config_class(**options)


def _check_options(options: dict[str, Any], valid: list[str]) -> None:
    """Refuses an option that the data set does not have."""
    for option in options:
        if option not in valid:
            raise ValueError(f"options: got {option!r}, want {'some of ' + ', '.join(valid) if valid else 'none'}")
