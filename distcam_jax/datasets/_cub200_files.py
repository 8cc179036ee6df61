"""Reads CUB-200-2011 in its official layout; `distcam_jax.datasets.cub200` shows it."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from distcam_jax.datasets import _image_folders as folders
from distcam_jax.datasets import _sources

DOWNLOADS = "https://www.vision.caltech.edu/datasets/cub_200_2011"
INSTRUCTIONS = (
    "manual_dir must be, or hold, the archive CUB_200_2011.tgz or the folder CUB_200_2011 unpacked from it; download "
    f"it from {DOWNLOADS}"
)
_AGAIN = folders.AGAIN
_IMAGES, _CLASSES, _LABELS = "images.txt", "classes.txt", "image_class_labels.txt"
_BOXES, _TRAINING = "bounding_boxes.txt", "train_test_split.txt"
_COLUMNS = {
    _IMAGES: ("image", "path"),
    _CLASSES: ("class", "name"),
    _LABELS: ("image", "class"),
    _BOXES: ("image", "x", "y", "width", "height"),
    _TRAINING: ("image", "0 or 1"),
}
_BEYOND = 2.0  # pixels by which a box may leave its image; they are cut off


class Bird(NamedTuple):
    """What the lists say of an image.

    Attributes:
      path: below images/, such as "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg".
      class_id: such as "001.Black_footed_Albatross".
      box: x0, y0, x1, y1 in pixels, exclusive end.
      is_training: in the official split.
      where: the box is, for errors.
    """

    path: str
    class_id: str
    box: tuple[float, float, float, float]
    is_training: bool
    where: str


class Lists(NamedTuple):
    """What one look at the data tells: where it is, its classes in the order of their numbers, and its images."""

    source: pathlib.Path
    root: str
    class_ids: list[str]
    birds: list[Bird]


class _Line(NamedTuple):
    """A line of a list: its words after the number of image or class."""

    words: list[str]
    where: str


def find_source(manual_dir: pathlib.Path) -> pathlib.Path:
    """The folder with images.txt, or the archive, that a user meant by `manual_dir`."""
    return _sources.find_source(
        manual_dir, marker=_IMAGES, pattern="CUB_200_2011*", title="CUB-200-2011", instructions=INSTRUCTIONS
    )


def read_lists(source: pathlib.Path) -> Lists:
    """Reads the lists of images, classes, boxes and the official split.

    Raises:
      ValueError: a list is missing or has a wrong line, or an image is not in all of them.
    """
    found = {
        path: data.decode("utf-8-sig", errors="replace")
        for path, data in _sources.members(source, "", lambda path: path.rpartition("/")[2] in _COLUMNS)
        if data is not None
    }
    root = _sources.find_root(found, _IMAGES)
    for name in _COLUMNS:
        if root is None or root + name not in found:
            raise ValueError(f"{source}: {name} is missing; {_AGAIN}")
    lists = {name: _parse_list(found[f"{root}{name}"], name, source) for name in _COLUMNS}
    birds = [_bird(number, line, lists, source) for number, line in lists[_IMAGES].items()]
    class_ids = [line.words[0] for _, line in sorted(lists[_CLASSES].items())]
    return Lists(source, root or "", class_ids, birds)


def class_name(class_id: str) -> str:
    """What a reader calls a class.

    Examples:
        >>> class_name("001.Black_footed_Albatross")
        'Black footed Albatross'
    """
    return class_id.partition(".")[2].replace("_", " ") or class_id


def find_masks(source: pathlib.Path) -> pathlib.Path:
    """The folder segmentations/, or its archive, in the data set's folder or beside it.

    Raises:
      FileNotFoundError: neither is there.
    """
    homes = ([source] if source.is_dir() else []) + [source.parent]
    for path in (home / name for home in homes for name in ("segmentations", "segmentations.tgz")):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{homes[0]}: segmentations/ missing; put the folder or the archive segmentations.tgz there, from {DOWNLOADS}, "
        "or leave segmentations out"
    )


def read_masks(masks: pathlib.Path, birds: Sequence[Bird]) -> dict[str, bytes]:
    """The encoded segmentations of some images: path of the image -> PNG.

    Raises:
      ValueError: one is missing.
    """
    image_of = {f"{bird.path.rpartition('.')[0]}.png": bird.path for bird in birds}
    found = {}
    for path, data in _sources.members(masks, "", lambda path: path.removeprefix("segmentations/") in image_of):
        if data is not None:
            found[image_of[path.removeprefix("segmentations/")]] = data
    for name, image in image_of.items():
        if image not in found:
            raise ValueError(f"{masks}: {name} is missing, though {_IMAGES} names its image; {_AGAIN}")
    return found


def read_images(lists: Lists, birds: Sequence[Bird]) -> Iterator[tuple[Bird, bytes, Float32[np.ndarray, "1 4"]]]:
    """Walks through some of the images.

    Yields:
      What the lists say of an image, its bytes and its box.

    Raises:
      ValueError: damage, a missing image, or a box that leaves its image.
    """
    awaited = {f"images/{bird.path}": bird for bird in birds}
    for path, data in _sources.members(lists.source, lists.root, lambda path: path in awaited):
        if data is not None:
            bird = awaited.pop(path)
            size = folders.checked_size(data, f"{lists.source}: {path}")
            yield bird, data, _box_in_image(bird, size, lists.source)
    if awaited:
        path = next(iter(awaited))
        lost = f"{path} is missing, though {_IMAGES} names it ({len(awaited)} such images)"
        raise ValueError(f"{lists.source}: {lost}; {_AGAIN}")


def _parse_list(text: str, name: str, source: pathlib.Path) -> dict[int, _Line]:
    """Reads lines that begin with a number."""
    columns, lines = _COLUMNS[name], {}
    for place, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        words, where = line.split(), f"{name} line {place}"
        if len(words) != len(columns) or not words[0].isdecimal():
            raise ValueError(f"{source}: {where}: got {line!r}, want {', '.join(columns)}; {_AGAIN}")
        number = int(words[0])
        if number in lines:
            raise ValueError(
                f"{source}: {lines[number].where} and {where} are of {columns[0]} {number}, want one; {_AGAIN}"
            )
        lines[number] = _Line(words[1:], where)
    if not lines:
        raise ValueError(f"{source}: {name} is empty; {_AGAIN}")
    return lines


def _bird(number: int, line: _Line, lists: Mapping[str, Mapping[int, _Line]], source: pathlib.Path) -> Bird:
    """Puts together what the lists say of an image."""
    for name in (_LABELS, _BOXES, _TRAINING):
        if number not in lists[name]:
            raise ValueError(f"{source}: {name} has no line for image {number}, though {line.where} does; {_AGAIN}")
    label, box, training = (lists[name][number] for name in (_LABELS, _BOXES, _TRAINING))
    class_number = int(label.words[0]) if label.words[0].isdecimal() else -1
    if class_number not in lists[_CLASSES]:
        want = f"one of the {len(lists[_CLASSES])} classes in {_CLASSES}"
        raise ValueError(f"{source}: {label.where}: got class {label.words[0]}, want {want}; {_AGAIN}")
    if training.words[0] not in ("0", "1"):
        raise ValueError(f"{source}: {training.where}: got {training.words[0]!r}, want 0 or 1; {_AGAIN}")
    class_id = lists[_CLASSES][class_number].words[0]
    return Bird(line.words[0], class_id, _parse_box(box, source), training.words[0] == "1", box.where)


def _parse_box(line: _Line, source: pathlib.Path) -> tuple[float, float, float, float]:
    """x, y, width and height -> the box; x + width is its last pixel."""
    try:
        x, y, width, height = (float(word) for word in line.words)
    except ValueError:
        x = y = width = height = float("nan")
    if not (np.isfinite([x, y]).all() and 0 < width < np.inf and 0 < height < np.inf):
        want = "numbers, width and height above 0"
        raise ValueError(f"{source}: {line.where}: got {' '.join(line.words)!r}, want {want}; {_AGAIN}")
    return x, y, x + width + 1, y + height + 1


def _box_in_image(bird: Bird, size: tuple[int, int], source: pathlib.Path) -> Float32[np.ndarray, "1 4"]:
    """The box, cut to its image."""
    box = np.array([bird.box], np.float32)
    inside = np.clip(box, 0, [*size, *size]).astype(np.float32)
    if np.abs(box - inside).max() > _BEYOND:
        fault = f"{size[0]} x {size[1]} pixels, too small for the box {bird.box} of {bird.where}"
        raise ValueError(f"{source}: images/{bird.path}: {fault} (x0, y0, x1, y1); {_AGAIN}")
    return inside
