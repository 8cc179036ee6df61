"""Writes files in the layout of ILSVRC 2012's official ones, of any number of classes and images.

`tools/convert_tiny_imagenet.py` writes photographs in this form, and the tests write miniatures. WordNet ids, file
names and annotations look as they do in the official files; see `distcam_jax.datasets._ilsvrc_files` for their names.
"""

import io
import pathlib
import random
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import scipy.io

Box = tuple[float, float, float, float] | tuple[float, float, float, float, str]


class Photograph(NamedTuple):
    """One image.

    Attributes:
      data: the encoded bytes.
      boxes: xmin, ymin, xmax, ymax with inclusive ends, and, where the object is of another class than the image, its
        WordNet id; None writes no annotation.
      size: width and height that the annotation tells.
    """

    data: bytes
    boxes: Sequence[Box] | None
    size: tuple[int, int]


def write_ilsvrc_files(
    folder: pathlib.Path,
    classes: Mapping[str, str],
    train: Mapping[str, Mapping[str, Photograph]],
    validation: Sequence[tuple[str, Photograph]],
    *,
    blacklist: Iterable[int] | None = None,
    train_boxes: bool = True,
) -> None:
    """Writes all the files into a folder.

    Args:
      folder: is made where it does not exist.
      classes: WordNet id -> words, such as "tench, Tinca tinca".
      train: WordNet id -> file name, such as n01440764_10026.JPEG -> image.
      validation: WordNet id and image, in the order of their numbers from 1.
      blacklist: numbers for ILSVRC2014_devkit.tgz; None writes none.
      train_boxes: whether to write ILSVRC2012_bbox_train_v2.tar.gz.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = ilsvrc_ids(classes)
    ground_truth = "".join(f"{numbers[wnid]}\n" for wnid, _ in validation)
    data = "ILSVRC2012_devkit_t12/data"
    texts = {
        f"{data}/ILSVRC2012_validation_ground_truth.txt": ground_truth.encode(),
        f"{data}/meta.mat": meta_mat(classes, {wnid: len(images) for wnid, images in train.items()}),
        "ILSVRC2012_devkit_t12/readme.txt": b"Development kit\n",
    }
    write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", texts.items())
    inner = ((f"{wnid}.tar", tar({name: image.data for name, image in train[wnid].items()})) for wnid in train)
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)
    names = [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(validation) + 1)]
    images = ((f"{name}.JPEG", image.data) for name, (_, image) in zip(names, validation, strict=True))
    write_tar(folder / "ILSVRC2012_img_val.tar", images)
    boxes = ((f"val/{name}.xml", annotation(name, *entry)) for name, entry in zip(names, validation, strict=True))
    write_tar(folder / "ILSVRC2012_bbox_val_v3.tgz", boxes)
    if train_boxes:
        annotated = (
            (f"{wnid}/{name.rpartition('.')[0]}.xml", annotation(name.rpartition(".")[0], wnid, image))
            for wnid, images in train.items()
            for name, image in images.items()
            if image.boxes is not None
        )
        write_tar(folder / "ILSVRC2012_bbox_train_v2.tar.gz", annotated)
    if blacklist is not None:
        name = "ILSVRC2014_devkit/data/ILSVRC2014_clsloc_validation_blacklist.txt"
        lines = "".join(f"{number}\n" for number in sorted(blacklist))
        write_tar(folder / "ILSVRC2014_devkit.tgz", [(name, lines.encode())])


def ilsvrc_ids(classes: Iterable[str]) -> dict[str, int]:
    """The numbers ILSVRC2012_ID, from 1: in an order other than that of the WordNet ids, as in the official files."""
    order = sorted(classes)
    random.Random(0).shuffle(order)
    if len(order) > 1 and order == sorted(order):
        order.reverse()
    return {wnid: number for number, wnid in enumerate(order, start=1)}


def meta_mat(classes: Mapping[str, str], counts: Mapping[str, int]) -> bytes:
    """The synsets in MATLAB's format: the classes in the order of their numbers, then two that stand above them."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    fields.append("num_train_images")
    numbers = ilsvrc_ids(classes)
    leaves = sorted(numbers, key=numbers.__getitem__)
    rows = [(numbers[wnid], wnid, classes[wnid], "a thing", 0, [], 0, counts.get(wnid, 0)) for wnid in leaves]
    first = len(rows) + 1
    rows.append((first, "n00001930", "entity", "that which is", 1, [first + 1], 2, 0))
    rows.append((first + 1, "n00002684", "object", "a thing", len(leaves), [*numbers.values()], 1, 0))
    synsets = np.zeros((len(rows), 1), [(field, object) for field in fields])
    for place, row in enumerate(rows):
        synsets[place, 0] = tuple(np.array(value, np.float64) if not isinstance(value, str) else value for value in row)
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets}, do_compression=True)
    return file.getvalue()


def annotation(name: str, wnid: str, image: Photograph, *, file_name: str | None = None) -> bytes:
    """The boxes of an image as XML; `file_name` is what it says of itself, `name` where that is not given."""
    objects = "".join(_object(box, wnid) for box in image.boxes or ())
    width, height = image.size
    text = f"""<annotation>
\t<folder>{escape(wnid)}</folder>
\t<filename>{escape(name if file_name is None else file_name)}</filename>
\t<source>
\t\t<database>ILSVRC_2012</database>
\t</source>
\t<size>
\t\t<width>{width}</width>
\t\t<height>{height}</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>0</segmented>
{objects}</annotation>
"""
    return text.encode()


def _object(box: Box, wnid: str) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    ends = "".join(f"\t\t\t<{end}>{value}</{end}>\n" for end, value in zip(names, box[:4], strict=True))
    name = escape(box[4] if len(box) > 4 else wnid)
    rest = "\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n\t\t<difficult>0</difficult>\n"
    return f"\t<object>\n\t\t<name>{name}</name>\n{rest}\t\t<bndbox>\n{ends}\t\t</bndbox>\n\t</object>\n"


def tar(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    """An archive of these files, in memory."""
    file = io.BytesIO()
    _fill(members.items(), mode, fileobj=file)
    return file.getvalue()


def write_tar(path: pathlib.Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes an archive of these files, gzipped where the name says so."""
    _fill(members, "w" if path.suffix == ".tar" else "w:gz", name=path)


def _fill(members: Iterable[tuple[str, bytes]], mode: str, **target) -> None:
    with tarfile.open(mode=mode, **target) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
