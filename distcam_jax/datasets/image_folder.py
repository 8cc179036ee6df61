"""Your own images for retrieval: a folder for each class, of which some train and the others are searched.

    <class>/*.jpg                    also .jpeg and .png
    words.txt                        optional: class, tab, names with commas, as WordNet ids need them

The splits `train`, `validation` and `test` share no class. Which classes a split has, is told by shares of the sorted
classes, the first ones train, as is usual for CUB-200-2011 and its like; or by a JSON file of lists by split:

    {"train": ["jay", "wren", ...], "validation": [...], "test": [...]}

where `train` or `validation` may be missing, and classes in no list are left out. Images are stored as found, whatever
their size; there are no boxes. A class may have one image: measures of retrieval leave it out and count it. Hidden
files, Thumbs.db and the like are passed over; anything else that is no image is refused.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

from distcam_jax.datasets import _class_lists, class_folders
from distcam_jax.datasets import _image_folders as folders

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass
class ImageFolderConfig(class_folders.ClassFoldersConfig):
    """What the images are called, and which classes a split has.

    Attributes:
      title: names the folder of the prepared data, so that one title stands for the same images for ever.
      train_share: share of the classes that train, the first ones of the sorted names.
      validation_share: share of the classes after these; `test` has the rest.
      class_splits: in place of the shares, a JSON file of lists of classes by split, or a mapping of such lists; None
        or "" takes the shares. Every choice is prepared in a folder of its own.

    Raises:
      ValueError: a title that is no name of a folder, a wrong share, a file that is none, or a list that is empty, or
        that has a class twice or of another list.
    """

    train_share: float | int = dataclasses.field(default=0.5, kw_only=True)
    validation_share: float | int = dataclasses.field(default=0.0, kw_only=True)
    class_splits: Mapping[str, Sequence[str]] | os.PathLike[str] | str | None = dataclasses.field(
        default=None, kw_only=True
    )

    def __post_init__(self):
        super().__post_init__()
        for option in ("train_share", "validation_share"):
            value = getattr(self, option)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{option}: got {value!r}, want a number from 0 to 1")
        if self.train_share + self.validation_share > 1 + 1e-9:
            both = f"{self.train_share!r} and validation_share {self.validation_share!r}"
            raise ValueError(f"train_share: got {both}, want shares whose sum is at most 1")
        if self.class_splits is None or self.class_splits == "":
            self.class_splits = None
            self.name += f"_{float(self.train_share)}_{float(self.validation_share)}"
            return
        where, lists = _class_lists.read(self.class_splits)
        if not lists or not set(lists) <= set(SPLITS):
            raise ValueError(f"{where}: got lists for {', '.join(lists) or 'none'}, want some of {', '.join(SPLITS)}")
        names = [split for split in SPLITS if split in lists]
        chosen = _class_lists.choose(lists, names, where, option="class_splits", example="wren")
        self.class_splits = dict(zip(names, chosen, strict=True))
        self.name += f"_{_class_lists.digest([[name, *ids] for name, ids in self.class_splits.items()])}"


class ImageFolder(class_folders.ClassFolders, skip_registration=True):
    """Builder of your own images; see `ImageFolderConfig` for its options."""

    SPLITS = SPLITS
    BUILDER_CONFIGS = [ImageFolderConfig()]  # noqa: RUF012 (the base class declares it so)
    ABSENT_SPLIT = "give it a share of the classes, or a list in class_splits"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir must hold a folder of images for each class"

    def _find_classes(self, root: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
        """Split -> class -> its folder."""
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no data set here; {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        classes, config = folders.find_classes(root), self.builder_config
        splits = config.class_splits
        if splits is None:
            shares = {"train": float(config.train_share), "validation": float(config.validation_share)}
            splits = split_by_share(list(classes), **shares)
        for split, ids in splits.items():
            for class_id in ids:
                if class_id not in classes:
                    fault = f"{class_id!r} of {split!r} is no folder in {root}"
                    raise ValueError(f"class_splits: {fault}, which has {len(classes)} classes; correct the list")
        return {split: {class_id: classes[class_id] for class_id in ids} for split, ids in splits.items()}


def split_by_share(classes: Sequence[str], *, train: float, validation: float) -> dict[str, list[str]]:
    """Gives every split its classes, in their order; a split without a share is left out.

    Args:
      classes: sorted.
      train: share of the classes for `train`, from 0 to 1.
      validation: share of those after them for `validation`; `test` has the rest.

    Raises:
      ValueError: there are too few classes for a split to have one.

    Examples:
        >>> split_by_share(["a", "b", "c", "d"], train=0.5, validation=0.25)
        {'train': ['a', 'b'], 'validation': ['c'], 'test': ['d']}
        >>> split_by_share(["a", "b"], train=0.0, validation=0.0)
        {'test': ['a', 'b']}
    """
    shares = dict(zip(SPLITS, (train, validation, 1 - train - validation), strict=True))
    splits, reached, start = {}, 0.0, 0
    for split, share in shares.items():
        reached += share
        stop = math.floor(len(classes) * reached + 0.5 + 1e-9)
        if share > 1e-9:
            splits[split] = list(classes[start:stop])
            if not splits[split]:
                shares_of = f"train_share {train} and validation_share {validation}"
                raise ValueError(f"{shares_of}: leave no class for {split!r} of {len(classes)}; change them")
        start = stop
    return splits
