"""Tiny-ImageNet-200: 64 × 64 photographs with one class and one box each, read from the official layout.

    tiny-imagenet-200/
      wnids.txt                        the classes, one WordNet id a line
      words.txt                        id, tab, names
      train/<wnid>/<wnid>_boxes.txt    file, x0, y0, x1, y1 (tabs; the ends belong to the box)
      train/<wnid>/images/*.JPEG
      val/val_annotations.txt          file, wnid, x0, y0, x1, y1
      val/images/*.JPEG

The official `val` becomes the split `validation`; `test` has no labels and is left out. Archives are read in place,
nothing is unpacked. Source: http://cs231n.stanford.edu/tiny-imagenet-200.zip
"""

import dataclasses
import functools
import hashlib
import io
import json
import lzma
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from distcam_jax.datasets import _builders

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
_AGAIN = "download or unpack the data again"
_INSTRUCTIONS = (
    "manual_dir must be, or hold, the archive tiny-imagenet-200.zip (or a .tar.gz of it) or the folder "
    "unpacked from it; download it from http://cs231n.stanford.edu/tiny-imagenet-200.zip"
)


@dataclasses.dataclass
class TinyImagenetConfig(tfds.core.BuilderConfig):
    """Which classes to take.

    Attributes:
      classes: WordNet ids, also as one string with commas, or a file of them (.txt: one a line; .json: a list of
        strings); None or "" takes every class of wnids.txt that has images.
        Labels follow the sorted ids. Every choice is prepared in a folder of its own.

    Raises:
      ValueError: no class, or a class named twice, or a file that is none.
    """

    name: str = ""
    classes: Sequence[str] | os.PathLike[str] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        if self.classes is None or self.classes == "":
            self.classes, self.name = None, "all"
            return
        listed = self.classes
        if isinstance(listed, str) and not listed.endswith((".txt", ".json")):
            listed = [wnid.strip() for wnid in listed.split(",")]
        if isinstance(listed, str | os.PathLike):
            listed = _read_classes(pathlib.Path(listed))
        if not listed or len(set(listed)) < len(listed):
            raise ValueError(
                f"classes: got {len(listed)} ids, {len(set(listed))} different, want at least one, each once"
            )
        self.classes = tuple(sorted(listed))
        self.name = f"{len(self.classes)}_{hashlib.sha256(' '.join(self.classes).encode()).hexdigest()[:12]}"


def _read_classes(path: pathlib.Path) -> list[str]:
    """Reads a list of ids."""
    try:
        text = path.read_text()
        ids = json.loads(text) if path.suffix == ".json" else text.split()
    except (OSError, ValueError) as error:
        raise ValueError(f"classes: got {str(path)!r}, want a list of ids or a file of them ({error})") from error
    if not isinstance(ids, list) or not all(isinstance(wnid, str) for wnid in ids):
        raise ValueError(f"classes: {path} holds {type(ids).__name__}, want a list of ids, such as ['n01443537']")
    return ids


class TinyImagenet(_builders.LocalBuilder, skip_registration=True):
    """Builder of Tiny-ImageNet; `TinyImagenetConfig` tells its option, `distcam_jax.datasets.load_dataset` its use."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train", "validation")
    BUILDER_CONFIGS = [TinyImagenetConfig()]  # noqa: RUF012 (the base class declares it so)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _INSTRUCTIONS

    def _info(self) -> tfds.core.DatasetInfo:
        return self.local_info("Tiny-ImageNet-200: photographs of 64 x 64 pixels, one class and one box each.")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        # The property `manual_dir` refuses a path to the archive itself.
        layout = _scan(_find_source(pathlib.Path(str(dl_manager._manual_dir))))
        names = _class_names(layout, self.builder_config.classes)
        self.set_classes(names)
        train = [line for wnid in names for line in _annotations(layout, f"train/{wnid}/{wnid}_boxes.txt", wnid)]
        val = _annotations(layout, "val/val_annotations.txt")
        if not any(line.wnid in names for line in val):
            raise ValueError(f"{layout.source}: val/val_annotations.txt names no image of these classes; {_AGAIN}")
        return {
            "train": self._generate_examples(layout, train, {f"train/{wnid}/images" for wnid in names}),
            "validation": self._generate_examples(layout, val, {"val/images"}),
        }

    def _generate_examples(
        self, layout: "_Layout", annotations: list["_Annotation"], folders: set[str]
    ) -> Iterator[tuple[str, dict]]:
        labels = {wnid: label for label, wnid in enumerate(self.info.features["label"].names)}
        listed = {line.image for line in annotations}
        awaited = {line.image: line for line in annotations if line.wnid in labels}
        for image, data in _members(layout.source, layout.root, lambda name: name in awaited):
            if data is None:
                folder, _, file_name = image.rpartition("/")
                if folder in folders and _is_image(file_name) and image not in listed:
                    raise ValueError(f"{layout.source}: {image} has no line in the list of boxes; {_AGAIN}")
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
            raise ValueError(f"{layout.source}: {lost}; {_AGAIN}")


class _Layout(NamedTuple):
    """What one look at the data tells: where it is, its text files, and the classes that have training images."""

    source: pathlib.Path
    root: str  # of the data inside an archive: "" or such as "tiny-imagenet-200/"
    texts: dict[str, str]
    wnids: set[str]

    def text(self, name: str) -> str:
        """A text file, which must be there."""
        if name not in self.texts:
            raise ValueError(f"{self.source}: {name} is missing; {_AGAIN}")
        return self.texts[name]


class _Annotation(NamedTuple):
    """One line of a list of boxes; the box's ends are inclusive."""

    image: str
    wnid: str
    box: tuple[int, int, int, int]
    where: str


def _find_source(manual_dir: pathlib.Path) -> pathlib.Path:
    """The folder with wnids.txt, or the archive, that a user meant by `manual_dir`."""
    if manual_dir.is_file():
        return manual_dir
    folders = [manual_dir, *sorted(manual_dir.glob("tiny-imagenet*/"))]
    archives = [path for path in sorted(manual_dir.glob("tiny-imagenet*")) if path.name.endswith(_ARCHIVES)]
    found = [folder for folder in folders if (folder / "wnids.txt").is_file()][:1] or archives
    if not found:
        raise FileNotFoundError(f"{manual_dir}: no Tiny-ImageNet here; {_INSTRUCTIONS}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{manual_dir}: more than one archive ({names}); pass the one you want as manual_dir")
    return found[0]


def _members(source: pathlib.Path, root: str, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Walks through the files below `root`: their names, relative to it, and the content of those wanted."""
    try:
        reader = _folder if source.is_dir() else _zip if _is_zip(source) else _tar
        for path, read in reader(source):
            if path.startswith(root):
                name = path.removeprefix(root)
                yield name, read() if is_wanted(name) else None
    except _DAMAGE as error:
        raise ValueError(
            f"{source}: cannot be read to its end ({str(error) or type(error).__name__}); {_AGAIN}"
        ) from error


def _is_zip(source: pathlib.Path) -> bool:
    with open(source, "rb") as file:
        return file.read(2) == b"PK"


def _folder(source: pathlib.Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for folder, _, names in os.walk(source, onerror=_raise, followlinks=True):
        for name in names:
            path = pathlib.Path(folder, name)
            yield path.relative_to(source).as_posix(), path.read_bytes


def _raise(error: OSError) -> None:
    raise error


def _zip(source: pathlib.Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename.removeprefix("./"), functools.partial(archive.read, member)


def _tar(source: pathlib.Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(source, "r|*") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name.removeprefix("./"), file.read


def _scan(source: pathlib.Path) -> _Layout:
    """Reads every text file and notes which classes have training images."""
    texts, wnids, images = {}, set(), []
    for name, data in _members(source, "", lambda name: name.endswith(".txt")):
        if data is not None:
            texts[name] = data.decode("utf-8-sig", errors="replace")
        elif _is_image(name):
            images.append(name)
    candidates = [name for name in texts if name.rpartition("/")[2] == "wnids.txt"]
    if not candidates:
        raise ValueError(f"{source}: wnids.txt is missing; {_AGAIN}")
    root = min(candidates, key=lambda name: name.count("/")).removesuffix("wnids.txt")
    for name in images:
        top, _, rest = name.removeprefix(root).partition("/")
        if name.startswith(root) and top == "train":
            wnids.add(rest.partition("/")[0])
    return _Layout(source, root, {n.removeprefix(root): t for n, t in texts.items() if n.startswith(root)}, wnids)


def _is_image(path: str) -> bool:
    """Whether a path is a JPEG's, and not one of the shadows that macOS packs beside it."""
    name = path.rpartition("/")[2]
    return name.lower().endswith((".jpeg", ".jpg")) and not name.startswith(".")


def _class_names(layout: _Layout, classes: Sequence[str] | None) -> dict[str, str]:
    """The chosen ids, sorted, with their first names."""
    known = set(layout.text("wnids.txt").split())
    for wnid in classes or ():
        if wnid not in known & layout.wnids:
            fault = "has no images in train/" if wnid in known else f"is none of the {len(known)} ids in wnids.txt"
            raise ValueError(f"classes: {wnid!r} {fault} ({layout.source})")
    chosen = sorted(classes or known & layout.wnids)
    if not chosen:
        raise ValueError(f"{layout.source}: no class of wnids.txt has images in train/; {_AGAIN}")
    names = dict(line.split("\t", 1) for line in layout.text("words.txt").splitlines() if "\t" in line)
    for wnid in chosen:
        if wnid not in names:
            raise ValueError(f"{layout.source}: words.txt has no line for {wnid}; {_AGAIN}")
    return {wnid: names[wnid].split(",")[0].strip() for wnid in chosen}


def _annotations(layout: _Layout, list_name: str, wnid: str | None = None) -> list[_Annotation]:
    """Reads a list of boxes: of one class's training images, or (`wnid` None) the validation images of all classes."""
    folder = list_name.rpartition("/")[0]
    annotations = []
    for number, line in enumerate(layout.text(list_name).splitlines(), start=1):
        where = f"{list_name} line {number}"
        parsed = _parse_line(line, 5 if wnid else 6)
        if parsed is None:
            want = "file, x0, y0, x1, y1" if wnid else "file, wnid, x0, y0, x1, y1"
            raise ValueError(f"{layout.source}: {where}: got {line!r}, want {want}; {_AGAIN}")
        (file_name, *own_wnid), box = parsed
        annotations.append(_Annotation(f"{folder}/images/{file_name}", wnid or own_wnid[0], box, where))
    return annotations


def _parse_line(line: str, count: int) -> tuple[list[str], tuple[int, int, int, int]] | None:
    """Splits a line of `count` words, the last four a box; None where the line is not one."""
    words = line.split()
    try:
        x0, y0, x1, y1 = (int(word) for word in words[count - 4 :])
    except ValueError:
        return None
    return (words[:-4], (x0, y0, x1, y1)) if 0 <= x0 <= x1 and 0 <= y0 <= y1 else None


def _check_image(data: bytes, line: _Annotation, where: str) -> None:
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
        raise ValueError(f"{where}: {fault}; {_AGAIN}")
