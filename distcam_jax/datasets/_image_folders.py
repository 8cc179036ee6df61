"""Reads images that lie in a folder for each class: what the class is, is told by the folder's name."""

import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from distcam_jax.decoding import image_size

IMAGES = (".jpeg", ".jpg", ".png")
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
_WORDS = "words.txt"
_STRAY = ("thumbs.db", "desktop.ini", "__macosx")
AGAIN = "download or unpack the data again"


def find_splits(
    root: pathlib.Path, folders: Mapping[str, Sequence[str]], *, instructions: str, complete: bool
) -> dict[str, pathlib.Path]:
    """Looks the splits' folders up.

    Args:
      root: the folder that holds them.
      folders: split -> names that its folder may have.
      instructions: what errors tell of the layout.
      complete: whether every split is needed; otherwise one is enough.

    Raises:
      FileNotFoundError: a folder is missing.
      ValueError: a split has two folders.
    """
    found = {}
    for split, names in folders.items():
        paths = [root / name for name in names if (root / name).is_dir()]
        if len(paths) > 1:
            raise ValueError(f"{root}: holds both {names[0]}/ and {names[1]}/, want one folder for {split!r}")
        if paths:
            found[split] = paths[0]
    if not found:
        raise FileNotFoundError(f"{root}: no data set here; {instructions}")
    missing = [f"{names[0]}/" for split, names in folders.items() if split not in found]
    if missing and complete:
        raise FileNotFoundError(f"{root}: {', '.join(missing)} missing; {instructions}")
    return found


def find_classes(folder: pathlib.Path, depth: int = 1) -> dict[str, pathlib.Path]:
    """The classes of a split, sorted.

    Args:
      folder: of the split.
      depth: how many folders deep the images lie; their names make the class's id, with slashes.

    Returns:
      Id of the class -> its folder.

    Raises:
      ValueError: there is none, or an image lies outside of them.
    """
    found = {}
    for path in _visible(folder):
        if path.is_dir() and depth > 1:
            found |= {f"{path.name}/{rest}": inner for rest, inner in find_classes(path, depth - 1).items()}
        elif path.is_dir():
            found[path.name] = path
        elif is_image(path.name):
            raise ValueError(f"{path}: an image beside the folders of the classes; move it into one of them")
    if not found:
        raise ValueError(f"{folder}: no class in it; want a folder for each class, with its images")
    return dict(sorted(found.items()))


def list_images(folder: pathlib.Path) -> list[str]:
    """The file names of a class, sorted.

    Raises:
      ValueError: there is none, or something else is among them.
    """
    names = []
    for path in _visible(folder):
        if path.is_dir():
            raise ValueError(f"{path}: a folder where only images may lie; move its images into the class's folder")
        if not is_image(path.name):
            raise ValueError(f"{path}: no JPEG or PNG by its name; take it out of the folder, or convert it")
        names.append(path.name)
    if not names:
        raise ValueError(f"{folder}: a class without an image; put some into the folder, or delete it")
    return names


def read_examples(
    classes: Mapping[str, pathlib.Path], names: Mapping[str, Sequence[str]], labels: Mapping[str, int]
) -> Iterator[tuple[str, dict]]:
    """Walks through the images of some classes.

    Args:
      classes: id -> folder, from `find_classes`.
      names: id -> file names, from `list_images`.
      labels: id -> label.

    Yields:
      Id and file name with a slash between, and the example.

    Raises:
      ValueError: a file is no complete image.
    """
    for class_id, folder in classes.items():
        for name in names[class_id]:
            data, key = (folder / name).read_bytes(), f"{class_id}/{name}"
            checked_size(data, str(folder / name))
            yield key, make_example(data, label=labels[class_id], file_name=key)


def checked_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height of an image; `where` names it in the error for a file that is no complete JPEG or PNG."""
    try:
        return image_size(data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {AGAIN}") from error


def make_example(
    data: bytes, *, label: int, file_name: str, boxes: Float32[np.ndarray, "m 4"] | None = None
) -> dict[str, Any]:
    """An example; None stands for no boxes."""
    boxes = np.zeros((0, 4), np.float32) if boxes is None else boxes
    return {"image": io.BytesIO(data), "label": label, "boxes": boxes, "file_name": file_name}


def read_words(root: pathlib.Path) -> dict[str, str]:
    """Id of a class -> the first of its names, from words.txt where that file lies in the folder."""
    path = root / _WORDS
    return first_words(path.read_text("utf-8-sig", errors="replace")) if path.is_file() else {}


def first_words(text: str) -> dict[str, str]:
    """Reads lines of an id, a tab and names with commas: id -> first name."""
    names = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {class_id: words.split(",")[0].strip() for class_id, words in names.items()}


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies in a folder, sorted, without what operating systems put there."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return [folder / name for name in names if not is_stray(name)]


def is_stray(name: str) -> bool:
    """Whether a file or folder of this name is one that operating systems put there, or hidden."""
    return name.startswith(".") or name.lower() in _STRAY


def is_image(name: str) -> bool:
    """Whether a file is a JPEG or a PNG by its name."""
    return name.lower().endswith(IMAGES)
