"""Reads Tiny-ImageNet-200 in its official layout; `distcam_jax.datasets.tiny_imagenet` shows it."""

import io
import pathlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from distcam_jax.datasets import _sources
from distcam_jax.datasets._image_folders import AGAIN, first_words
from distcam_jax.datasets._sources import members

INSTRUCTIONS = (
    "manual_dir must be, or hold, the archive tiny-imagenet-200.zip (or a .tar.gz of it) or the folder "
    "unpacked from it; download it from http://cs231n.stanford.edu/tiny-imagenet-200.zip"
)
VAL_IMAGES = "val/images"


class Layout(NamedTuple):
    """What one look at the data tells: where it is, its text files, and the classes that have training images."""

    source: pathlib.Path
    root: str  # of the data inside an archive: "" or such as "tiny-imagenet-200/"
    texts: dict[str, str]
    wnids: set[str]

    def text(self, name: str) -> str:
        """A text file, which must be there."""
        if name not in self.texts:
            raise ValueError(f"{self.source}: {name} is missing; {AGAIN}")
        return self.texts[name]


class Annotation(NamedTuple):
    """One line of a list of boxes; the box's ends are inclusive."""

    image: str
    wnid: str
    box: tuple[int, int, int, int]
    where: str


def find_source(manual_dir: pathlib.Path) -> pathlib.Path:
    """The folder with wnids.txt, or the archive, that a user meant by `manual_dir`."""
    return _sources.find_source(
        manual_dir, marker="wnids.txt", pattern="tiny-imagenet*", title="Tiny-ImageNet", instructions=INSTRUCTIONS
    )


def scan(source: pathlib.Path) -> Layout:
    """Reads every text file and notes which classes have training images."""
    texts, wnids, images = {}, set(), []
    for name, data in members(source, "", lambda name: name.endswith(".txt")):
        if data is not None:
            texts[name] = data.decode("utf-8-sig", errors="replace")
        elif _is_image(name):
            images.append(name)
    candidates = [name for name in texts if name.rpartition("/")[2] == "wnids.txt"]
    if not candidates:
        raise ValueError(f"{source}: wnids.txt is missing; {AGAIN}")
    root = min(candidates, key=lambda name: name.count("/")).removesuffix("wnids.txt")
    for name in images:
        top, _, rest = name.removeprefix(root).partition("/")
        if name.startswith(root) and top == "train":
            wnids.add(rest.partition("/")[0])
    return Layout(source, root, {n.removeprefix(root): t for n, t in texts.items() if n.startswith(root)}, wnids)


def _is_image(path: str) -> bool:
    """Whether a path is a JPEG's."""
    return path.lower().endswith((".jpeg", ".jpg"))


def class_names(layout: Layout, classes: Sequence[str] | None, option: str = "classes") -> dict[str, str]:
    """The chosen ids, sorted, with their first names; `option` is what errors call the choice."""
    known = set(layout.text("wnids.txt").split())
    for wnid in classes or ():
        if wnid not in known & layout.wnids:
            fault = "has no images in train/" if wnid in known else f"is none of the {len(known)} ids in wnids.txt"
            raise ValueError(f"{option}: {wnid!r} {fault} ({layout.source})")
    chosen = sorted(classes or known & layout.wnids)
    if not chosen:
        raise ValueError(f"{layout.source}: no class of wnids.txt has images in train/; {AGAIN}")
    names = first_words(layout.text("words.txt"))
    for wnid in chosen:
        if wnid not in names:
            raise ValueError(f"{layout.source}: words.txt has no line for {wnid}; {AGAIN}")
    return {wnid: names[wnid] for wnid in chosen}


def train_lines(layout: Layout, wnids: Iterable[str]) -> list[Annotation]:
    """The lists of boxes of these classes' training images."""
    return [line for wnid in wnids for line in _annotations(layout, f"train/{wnid}/{wnid}_boxes.txt", wnid)]


def train_folders(wnids: Iterable[str]) -> set[str]:
    """The folders of these classes' training images."""
    return {f"train/{wnid}/images" for wnid in wnids}


def val_lines(layout: Layout, wnids: Container[str]) -> list[Annotation]:
    """The list of boxes of all official validation images, some of which must be of these classes."""
    lines = _annotations(layout, "val/val_annotations.txt")
    if not any(line.wnid in wnids for line in lines):
        raise ValueError(f"{layout.source}: val/val_annotations.txt names no image of these classes; {AGAIN}")
    return lines


def examples(
    layout: Layout, annotations: Sequence[Annotation], folders: Container[str], labels: Mapping[str, int]
) -> Iterator[tuple[str, dict]]:
    """Walks through the images of some classes.

    Args:
      layout: of the data.
      annotations: lists of boxes of all images in `folders`; lines of other classes are passed over.
      folders: every image in them must have a line.
      labels: WordNet id -> label of the classes to take.

    Yields:
      The image's name below the data, and its example.

    Raises:
      ValueError: damage, an image without a line or a line without an image, or a box that leaves its image.
    """
    listed = {line.image for line in annotations}
    awaited = {line.image: line for line in annotations if line.wnid in labels}
    for image, data in members(layout.source, layout.root, lambda name: name in awaited):
        if data is None:
            folder, _, file_name = image.rpartition("/")
            if folder in folders and _is_image(file_name) and image not in listed:
                raise ValueError(f"{layout.source}: {image} has no line in the list of boxes; {AGAIN}")
            continue
        line = awaited.pop(image)
        _check_image(data, line, f"{layout.source}: {image}")
        x0, y0, x1, y1 = line.box
        example = {
            "image": io.BytesIO(data),
            "label": labels[line.wnid],
            "boxes": np.array([[x0, y0, x1 + 1, y1 + 1]], np.float32),
            "file_name": image.rpartition("/")[2],
        }
        yield image, example
    if awaited:
        line = next(iter(awaited.values()))
        lost = f"{line.image} is missing, though {line.where} names it ({len(awaited)} such images)"
        raise ValueError(f"{layout.source}: {lost}; {AGAIN}")


def _annotations(layout: Layout, list_name: str, wnid: str | None = None) -> list[Annotation]:
    """Reads a list of boxes: of one class's training images, or (`wnid` None) the validation images of all classes."""
    folder = list_name.rpartition("/")[0]
    annotations = []
    for number, line in enumerate(layout.text(list_name).splitlines(), start=1):
        where = f"{list_name} line {number}"
        parsed = _parse_line(line, 5 if wnid else 6)
        if parsed is None:
            want = "file, x0, y0, x1, y1" if wnid else "file, wnid, x0, y0, x1, y1"
            raise ValueError(f"{layout.source}: {where}: got {line!r}, want {want}; {AGAIN}")
        (file_name, *own_wnid), box = parsed
        annotations.append(Annotation(f"{folder}/images/{file_name}", wnid or own_wnid[0], box, where))
    return annotations


def _parse_line(line: str, count: int) -> tuple[list[str], tuple[int, int, int, int]] | None:
    """Splits a line of `count` words, the last four a box; None where the line is not one."""
    words = line.split()
    try:
        x0, y0, x1, y1 = (int(word) for word in words[count - 4 :])
    except ValueError:
        return None
    return (words[:-4], (x0, y0, x1, y1)) if 0 <= x0 <= x1 and 0 <= y0 <= y1 else None


def _check_image(data: bytes, line: Annotation, where: str) -> None:
    """Refuses a file that is no complete JPEG, or that its box does not fit."""
    fault = None
    if not data.startswith(b"\xff\xd8"):
        fault = f"no JPEG file ({len(data)} bytes)"
    elif not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        fault = f"truncated ({len(data)} bytes, without an end mark)"
    else:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:
            fault = "damaged, cannot be decoded"
        elif line.box[2] >= image.shape[1] or line.box[3] >= image.shape[0]:
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            fault = f"{size}, too small for the box {line.box} in {line.where}"
    if fault:
        raise ValueError(f"{where}: {fault}; {AGAIN}")
