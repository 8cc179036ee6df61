"""Reads the official files of ILSVRC 2012 (ImageNet-1k) as they are downloaded.

    ILSVRC2012_devkit_t12.tar.gz     .../data/meta.mat: the synsets; those without children are the classes
                                     .../data/ILSVRC2012_validation_ground_truth.txt: an ILSVRC2012_ID a line
    ILSVRC2012_img_train.tar         <wnid>.tar each, with <wnid>_<number>.JPEG
    ILSVRC2012_img_val.tar           ILSVRC2012_val_<number>.JPEG
    ILSVRC2012_bbox_train_v2.tar.gz  <wnid>/<wnid>_<number>.xml, for about 40 % of the images; may be missing
    ILSVRC2012_bbox_val_v3.tgz       val/ILSVRC2012_val_<number>.xml
    ILSVRC2014_devkit.tgz            .../data/ILSVRC2014_clsloc_validation_blacklist.txt: numbers of validation images
                                     whose annotation is bad; may be missing, or be that text file itself

Numbers count from 1. Members are recognised by the last part of their names. How many classes and images there are is
what the files say.
"""

import io
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import scipy.io
from jaxtyping import Float32

from distcam_jax.datasets._archives import AGAIN, base_name, members, nested_members, read

DOWNLOADS = "https://image-net.org/download-images"
_BLACKLIST = "ILSVRC2014_clsloc_validation_blacklist.txt"
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_IMAGES = (".jpeg", ".jpg", ".png")
_LARGEST_TEXT = 2**24  # bytes, of what is read whole and is no image; meta.mat, the largest, has a tenth
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d+)\.\w+", re.IGNORECASE)


class Files(NamedTuple):
    """Where the official files are; None where an optional one is missing."""

    devkit: pathlib.Path
    train: pathlib.Path
    validation: pathlib.Path
    validation_boxes: pathlib.Path
    train_boxes: pathlib.Path | None
    blacklist: pathlib.Path | None


class Devkit(NamedTuple):
    """What the development kit says.

    Attributes:
      classes: WordNet id -> its words, sorted by the id.
      ground_truth: WordNet id of each validation image, by its number - 1.
    """

    classes: dict[str, str]
    ground_truth: list[str]


def find_files(folder: pathlib.Path) -> Files:
    """Looks the official files up in a folder.

    Raises:
      FileNotFoundError: one that is needed is missing; names all of them.
    """
    needed = (
        "ILSVRC2012_devkit_t12.tar.gz",
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "ILSVRC2012_bbox_val_v3.tgz",
    )
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {', '.join(missing)} missing; manual_dir must hold the official files of ILSVRC 2012, get them "
            f"from {DOWNLOADS}"
        )
    optional = (("ILSVRC2012_bbox_train_v2.tar.gz",), (_BLACKLIST, "ILSVRC2014_devkit.tgz"))
    found = [next((folder / name for name in names if (folder / name).is_file()), None) for names in optional]
    return Files(*(folder / name for name in needed), *found)


def read_devkit(path: pathlib.Path) -> Devkit:
    """Reads the classes and the validation images' classes.

    Raises:
      ValueError: damage, a missing or unreadable member, or an id that is no class.
    """
    names = ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
    meta, ground_truth = _named_members(path, names)
    synsets = _read_synsets(meta, f"{path}: meta.mat")
    wnid_of = {number: wnid for number, (wnid, _) in synsets.items()}
    numbers = _read_numbers(ground_truth, f"{path}: {names[1]}")
    if not numbers:
        raise ValueError(f"{path}: {names[1]} is empty; {AGAIN}")
    for line, number in enumerate(numbers, start=1):
        if number not in wnid_of:
            want = f"an ILSVRC2012_ID of one of the {len(wnid_of)} classes"
            raise ValueError(f"{path}: {names[1]} line {line}: got {number}, want {want}; {AGAIN}")
    return Devkit(dict(sorted(synsets.values())), [wnid_of[number] for number in numbers])


def read_blacklist(path: pathlib.Path, count: int) -> frozenset[int]:
    """Reads the numbers of the validation images, of `count`, whose annotation is bad.

    Raises:
      ValueError: damage, or a line that is no image's number.
    """
    unpacked = path.name == _BLACKLIST
    text = path.read_bytes() if unpacked else _named_members(path, (_BLACKLIST,))[0]
    where = str(path) if unpacked else f"{path}: {_BLACKLIST}"
    numbers = _read_numbers(text, where)
    for line, number in enumerate(numbers, start=1):
        if not 1 <= number <= count:
            raise ValueError(f"{where} line {line}: got {number}, want a number from 1 to {count}; {AGAIN}")
    return frozenset(numbers)


def train_images(path: pathlib.Path, wnids: set[str]) -> Iterator[tuple[str, str, bytes]]:
    """Walks through the training images: WordNet id, file name, encoded bytes.

    Raises:
      ValueError: damage, an image of another class than its archive's, one that comes twice, or a class without images.
    """
    awaited = set(wnids)
    for member, inner in members(path):
        wnid = base_name(member).removesuffix(".tar")
        if wnid == base_name(member):
            continue
        where = f"{path}: {member}"
        if wnid not in wnids:
            raise ValueError(f"{where}: {wnid} is none of the {len(wnids)} classes in meta.mat; {AGAIN}")
        seen: set[str] = set()
        for image, content in nested_members(inner, where):
            name = base_name(image)
            if not name.lower().endswith(_IMAGES):
                continue
            if not name.startswith(f"{wnid}_") or name in seen:
                fault = "comes twice" if name in seen else f"is no image of {wnid}"
                raise ValueError(f"{where}: {name} {fault}; {AGAIN}")
            seen.add(name)
            yield wnid, name, read(content, f"{where}: {name}")
        if seen:
            awaited.discard(wnid)
    if awaited:
        raise ValueError(f"{path}: no image of {min(awaited)} ({len(awaited)} such classes of {len(wnids)}); {AGAIN}")


def validation_images(path: pathlib.Path, count: int) -> Iterator[tuple[int, str, bytes]]:
    """Walks through the `count` validation images: number from 1, file name, encoded bytes.

    Raises:
      ValueError: damage, or an image that is missing, comes twice or has no number from 1 to `count`.
    """
    awaited = set(range(1, count + 1))
    for member, content in members(path):
        name = base_name(member)
        if not name.lower().endswith(_IMAGES):
            continue
        matched = _VALIDATION.fullmatch(name)
        number = int(matched[1]) if matched else 0
        if number not in awaited:
            fault = "comes twice" if 1 <= number <= count else f"is none of the {count} images with a ground truth"
            raise ValueError(f"{path}: {name} {fault}; {AGAIN}")
        awaited.remove(number)
        yield number, name, read(content, f"{path}: {name}")
    if awaited:
        lost = f"ILSVRC2012_val_{min(awaited):08d}.JPEG is missing ({len(awaited)} such images of {count})"
        raise ValueError(f"{path}: {lost}; {AGAIN}")


def read_annotations(path: pathlib.Path, wnid_of: Callable[[str], str | None]) -> dict[str, bytes]:
    """Reads the boxes of all images of one split; archives inside the archive are looked into.

    Half a million annotations take about 100 MB: each is kept as the float32 numbers width, height, then xmin, ymin,
    xmax, ymax of each box, as bytes.

    Args:
      path: of the archive.
      wnid_of: the class of an image, by its file name without the ending; None for no image of the data set.

    Returns:
      File name without the ending -> what `boxes_in_image` takes, with the boxes of the image's own class.

    Raises:
      ValueError: damage, or an annotation that cannot be read.
    """
    annotations: dict[str, bytes] = {}

    def take(member: str, content: io.BufferedReader, where: str) -> None:
        stem = base_name(member).removesuffix(".xml")
        wnid = wnid_of(stem) if member.endswith(".xml") else None
        if wnid is not None:
            annotations[stem] = _parse_annotation(read(content, where, _LARGEST_TEXT), wnid, where)

    for member, content in members(path):
        if not member.endswith(_ARCHIVES):
            take(member, content, f"{path}: {member}")
            continue
        for inner_member, inner_content in nested_members(content, f"{path}: {member}"):
            take(inner_member, inner_content, f"{path}: {member}: {inner_member}")
    return annotations


def boxes_in_image(annotation: bytes, size: tuple[int, int]) -> tuple[Float32[np.ndarray, "m 4"], int]:
    """Boxes in pixels of the stored image.

    Where the annotation was made at another size, the boxes are scaled. They are not where the annotation gives no
    size, or the image's with width and height swapped: the numbers are then taken as they are. What is beyond the
    border is cut off.

    Args:
      annotation: of the image, from `read_annotations`.
      size: width and height of the stored image.

    Returns:
      x0, y0, x1, y1 with exclusive ends (the annotation's are inclusive), and how many boxes were dropped because
      nothing is left of them.
    """
    numbers = np.frombuffer(annotation, np.float32).astype(np.float64)
    annotated, boxes = numbers[:2], numbers[2:].reshape(-1, 4) + np.array([0, 0, 1, 1])
    if (annotated > 0).all() and sorted(annotated) != sorted(size):
        boxes *= np.tile(np.array(size) / annotated, 2)
    boxes = np.clip(boxes, 0, np.tile(size, 2))
    kept = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    return boxes[kept].astype(np.float32), int((~kept).sum())


def _named_members(path: pathlib.Path, names: tuple[str, ...]) -> list[bytes]:
    """The contents of these members, by the last parts of their names."""
    found: dict[str, bytes] = {}
    for member, content in members(path):
        if base_name(member) in names:
            found[base_name(member)] = read(content, f"{path}: {member}", _LARGEST_TEXT)
    for name in names:
        if name not in found:
            raise ValueError(f"{path}: {name} is missing; {AGAIN}")
    return [found[name] for name in names]


def _read_numbers(text: bytes, where: str) -> list[int]:
    """Reads a text of one number a line."""
    lines = text.decode("utf-8-sig", errors="replace").split()
    for line, word in enumerate(lines, start=1):
        if not (word.isascii() and word.isdigit()):
            raise ValueError(f"{where} line {line}: got {word!r}, want a number; {AGAIN}")
    return [int(word) for word in lines]


def _read_synsets(meta: bytes, where: str) -> dict[int, tuple[str, str]]:
    """Reads the synsets without children: ILSVRC2012_ID -> WordNet id, words."""
    try:
        synsets = np.atleast_1d(scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        leaves = synsets[synsets["num_children"].astype(int) == 0]
        rows = zip(leaves["ILSVRC2012_ID"].astype(int), leaves["WNID"], leaves["words"], strict=True)
        classes = {int(number): (str(wnid), str(words)) for number, wnid, words in rows}
    except Exception as error:  # loadmat raises whatever its parser meets in a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{where}: cannot be read ({reason}); {AGAIN}") from error
    if not classes or len({wnid for wnid, _ in classes.values()}) < len(leaves):
        raise ValueError(f"{where}: {len(leaves)} classes, want at least one, each once; {AGAIN}")
    return classes


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type, for it can define entities that grow without bounds."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which no official file has")


def _parse_annotation(xml: bytes, wnid: str, where: str) -> bytes:
    """The annotated size and the boxes of this class; see `read_annotations`."""
    try:
        root = ElementTree.fromstring(xml, ElementTree.XMLParser(target=_NoDoctype()))
        numbers = [float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")]
        for thing in root.iter("object"):
            if (thing.findtext("name") or "").strip() == wnid:
                numbers += [float(thing.findtext(f"bndbox/{end}", "")) for end in ("xmin", "ymin", "xmax", "ymax")]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{where}: no annotation of boxes ({error}); {AGAIN}") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"{where}: got {numbers}, want finite numbers; {AGAIN}")
    return np.array(numbers, np.float32).tobytes()
