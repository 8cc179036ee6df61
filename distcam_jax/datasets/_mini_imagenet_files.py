"""Reads miniImageNet by its three lists, from the images that they name or from those of ILSVRC 2012.

`distcam_jax.datasets.mini_imagenet` shows the layouts and tells what the names in the lists mean.
"""

import csv
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from distcam_jax.datasets._archives import AGAIN, base_name, members, nested_members, read

LISTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
INSTRUCTIONS = (
    "manual_dir must hold train.csv, val.csv and test.csv with either a folder images/ or the training images of "
    "ILSVRC 2012, or else the folders train/, val/ and test/ with a folder of images for each class"
)
_ARCHIVE = "ILSVRC2012_img_train.tar"
_HEADER = ["filename", "label"]
_LISTED = re.compile(r"(n\d+)(\d{8})\.\w+")
_ORIGINAL = re.compile(r"(n\d+)_(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


class Row(NamedTuple):
    """A line of a list."""

    file_name: str
    wnid: str
    where: str


class Image(NamedTuple):
    """An image with what is known of it.

    Attributes:
      row: the line that names it.
      data: its bytes.
      original: its name in ILSVRC, without the ending; "" where that is not known.
      where: it was found, for errors.
    """

    row: Row
    data: bytes
    original: str
    where: str


def find_lists(root: pathlib.Path) -> dict[str, pathlib.Path] | None:
    """Looks the lists up in a folder, or in split/ or splits/ below it; None where there is none.

    Raises:
      FileNotFoundError: some are there and others are missing.
    """
    for home in (root, root / "split", root / "splits"):
        missing = [name for name in LISTS.values() if not (home / name).is_file()]
        if not missing:
            return {split: home / name for split, name in LISTS.items()}
        if len(missing) < len(LISTS):
            raise FileNotFoundError(f"{home}: {', '.join(missing)} missing; {INSTRUCTIONS}")
    return None


def read_lists(paths: Mapping[str, pathlib.Path]) -> dict[str, list[Row]]:
    """Reads the lists: split -> lines.

    Raises:
      ValueError: a line is none, an image is named twice, or a list names none.
    """
    rows = {split: _read_list(path) for split, path in paths.items()}
    where: dict[str, str] = {}
    for row in (row for own in rows.values() for row in own):
        if row.file_name in where:
            places = f"{where[row.file_name]} and {row.where}"
            raise ValueError(f"{row.file_name} is in {places}, want every image once; download the lists again")
        where[row.file_name] = row.where
    return rows


def _read_list(path: pathlib.Path) -> list[Row]:
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = [[cell.strip() for cell in line] for line in csv.reader(file)]
    if not lines or lines[0] != _HEADER:
        got = ",".join(lines[0]) if lines else ""
        raise ValueError(f"{path} line 1: got {got!r}, want {','.join(_HEADER)!r}; {AGAIN}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue
        where = f"{path} line {number}"
        if len(line) != len(_HEADER) or not all(line) or pathlib.PurePath(line[0]).name != line[0]:
            raise ValueError(f"{where}: got {','.join(line)!r}, want the name of a file and a class; {AGAIN}")
        listed = _LISTED.fullmatch(line[0])
        if listed and listed[1] != line[1]:
            raise ValueError(f"{where}: {line[0]} is of {listed[1]}, got the class {line[1]!r}; {AGAIN}")
        rows.append(Row(line[0], line[1], where))
    if not rows:
        raise ValueError(f"{path}: names no image; {AGAIN}")
    return rows


def find_images(root: pathlib.Path, wnids: Iterable[str]) -> pathlib.Path:
    """The folder of the images or of the classes' folders, or the archive of ILSVRC's training images.

    Raises:
      FileNotFoundError: there is none.
    """
    for folder in (root / "images", root / "train", root):
        if any((folder / wnid).is_dir() for wnid in wnids):
            return folder
    found = [path for path in (root / "images", root / _ARCHIVE) if path.exists()]
    if not found:
        raise FileNotFoundError(f"{root}: neither images/ nor {_ARCHIVE} nor a class's folder here; {INSTRUCTIONS}")
    return found[0]


def read_images(source: pathlib.Path, rows: Sequence[Row]) -> Iterator[Image]:
    """Walks through the images that lines name; `source` is from `find_images`.

    Raises:
      ValueError: an image or a class is missing, or the archive is damaged.
    """
    rows_of: dict[str, list[Row]] = {}
    for row in rows:
        rows_of.setdefault(row.wnid, []).append(row)
    if source.is_file():
        yield from _read_archive(source, rows_of)
        return
    for wnid, own in rows_of.items():
        folder = source / wnid
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        originals = _originals(names, wnid, str(folder))
        for row in own:
            path, original = source / row.file_name, ""
            if row.file_name in names:
                path = folder / row.file_name
            elif originals:
                original = _pick(originals, row, str(folder))
                path = folder / original
            if not path.is_file():
                raise ValueError(f"{source}: {row.file_name} is missing, though {row.where} names it; {AGAIN}")
            yield Image(row, path.read_bytes(), original.rpartition(".")[0], str(path))


def _read_archive(source: pathlib.Path, rows_of: Mapping[str, Sequence[Row]]) -> Iterator[Image]:
    """The same from the archive, which is read in place: each class's own archive twice, first for the names."""
    awaited = set(rows_of)
    for member, inner in members(source):
        wnid = base_name(member).removesuffix(".tar")
        if wnid not in awaited or wnid == base_name(member):
            continue
        awaited.remove(wnid)
        where = f"{source}: {member}"
        originals = _originals([base_name(name) for name, _ in nested_members(inner, where)], wnid, where)
        row_of = {_pick(originals, row, where): row for row in rows_of[wnid]}
        for name, content in nested_members(inner, where):
            original = base_name(name)
            if original in row_of:
                place = f"{where}: {original}"
                yield Image(row_of[original], read(content, place), original.rpartition(".")[0], place)
    if awaited:
        row = rows_of[min(awaited)][0]
        raise ValueError(f"{source}: {row.wnid}.tar is missing, though {row.where} names the class; {AGAIN}")


def _originals(names: Iterable[str], wnid: str, where: str) -> list[str]:
    """ILSVRC's images of a class, sorted by the numbers in their names."""
    numbered: dict[int, str] = {}
    for name in names:
        original = _ORIGINAL.fullmatch(name)
        if original is None or original[1] != wnid:
            continue
        number = int(original[2])
        if number in numbered:
            raise ValueError(f"{where}: {name} comes twice, want every number once; {AGAIN}")
        numbered[number] = name
    return [numbered[number] for number in sorted(numbered)]


def _pick(originals: Sequence[str], row: Row, where: str) -> str:
    """The image of ILSVRC that a line names by its place among those of its class, from 1."""
    listed = _LISTED.fullmatch(row.file_name)
    if listed is None:
        want = "a name of the class and eight digits, such as n0153282900000005.jpg"
        raise ValueError(f"{row.where}: got {row.file_name!r}, want {want}, for images of ILSVRC; {AGAIN}")
    place = int(listed[2])
    if not 1 <= place <= len(originals):
        fault = f"{row.file_name} in {row.where} is image {place} of {row.wnid}, of which {len(originals)} are here"
        raise ValueError(f"{where}: {fault}; all training images of the class in ILSVRC 2012 are needed")
    return originals[place - 1]
