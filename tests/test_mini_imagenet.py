"""Tests of miniImageNet: its lists over a flat folder, over ILSVRC's folders and archive, and folders of classes."""

import pickle
import shutil

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import load_dataset
from tools.ilsvrc_files import Photograph, tar, write_ilsvrc_files, write_tar

# ILSVRC's numbers of each class's training images, in the order of a folder's listing and not of the numbers
NUMBERS = {
    "n01440764": (1000, 9, 20),
    "n01532829": (10, 2, 333),
    "n02105855": (7, 61, 8),
    "n03710637": (5, 40, 300),
}
WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n01532829": "house finch, linnet",
    "n02105855": "Shetland sheepdog",
    "n03710637": "maillot",
}
PLACES = {  # by hand: place among the sorted numbers, from 1 -> number
    "n01440764": {1: 9, 2: 20, 3: 1000},
    "n01532829": {1: 2, 2: 10, 3: 333},
    "n02105855": {1: 7, 2: 8, 3: 61},
    "n03710637": {1: 5, 2: 40, 3: 300},
}
LISTS = {  # split -> (file, class -> places)
    "train": ("train.csv", {"n03710637": (2,), "n01440764": (1, 3)}),
    "validation": ("val.csv", {"n02105855": (3,)}),
    "test": ("test.csv", {"n01532829": (2, 3)}),
}
SOURCES = ("train", "images", "wnid folders", "archive", "flat")


def picture(wnid, number):
    """The training image of ILSVRC with this number."""
    image = np.random.default_rng([int(wnid[1:]), number]).integers(0, 255, (10, 12, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def listed(wnid, place):
    return f"{wnid}{place:08d}.jpg"


def write_lists(folder, lists=LISTS):
    folder.mkdir(parents=True, exist_ok=True)
    for name, classes in lists.values():
        lines = [f"{listed(wnid, place)},{wnid}\n" for wnid, places in classes.items() for place in places]
        (folder / name).write_text("filename,label\n" + "".join(lines))


def write_source(root, source):
    """Writes the images in one of the forms."""
    if source == "archive":
        inner = {
            wnid: tar({f"{wnid}_{number}.JPEG": picture(wnid, number) for number in numbers})
            for wnid, numbers in {**NUMBERS, "n09999999": (1,)}.items()
        }
        write_tar(root / "ILSVRC2012_img_train.tar", [(f"{wnid}.tar", data) for wnid, data in inner.items()])
        return
    for wnid, numbers in NUMBERS.items():
        folder = root / {"wnid folders": wnid, "flat": "images"}.get(source, f"{source}/{wnid}")
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            place = next(place for place, own in PLACES[wnid].items() if own == number)
            name = listed(wnid, place) if source == "flat" else f"{wnid}_{number}.JPEG"
            (folder / name).write_bytes(picture(wnid, number))


@pytest.fixture
def folder(tmp_path):
    """The lists and a flat folder of images."""
    write_lists(tmp_path / "mini")
    write_source(tmp_path / "mini", "flat")
    return tmp_path / "mini"


def load(split, tmp_path, manual_dir=None):
    return load_dataset("mini_imagenet", split, data_dir=tmp_path / "data", manual_dir=manual_dir)


def expected(split):
    """What a split holds, by hand: file -> (label, bytes)."""
    classes = LISTS[split][1]
    return {
        f"{wnid}/{listed(wnid, place)}": (sorted(classes).index(wnid), picture(wnid, PLACES[wnid][place]))
        for wnid, places in classes.items()
        for place in places
    }


def found(dataset):
    return {example["file_name"]: (example["label"], example["image"]) for example in dataset.source}


@pytest.mark.parametrize("source", SOURCES)
def test_load_dataset_finds_the_images_that_the_lists_name(tmp_path, source):
    write_lists(tmp_path / "mini" / ("split" if source == "flat" else ""))
    write_source(tmp_path / "mini", source)
    for split, (_, classes) in LISTS.items():
        dataset = load(split, tmp_path, tmp_path / "mini")
        assert dataset.class_ids == dataset.class_names == tuple(sorted(classes))
        assert found(dataset) == expected(split)
        assert {example["boxes"].shape for example in dataset.source} == {(0, 4)}


def test_load_dataset_reads_folders_of_classes_where_there_are_no_lists(tmp_path):
    for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        for file_name, (_, data) in expected(split).items():
            path = tmp_path / "mini" / folder / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    assert found(load("train", tmp_path, tmp_path / "mini")) == expected("train")
    assert found(load("test", tmp_path)) == expected("test")


def test_load_dataset_orders_the_images_alike_in_every_form(folder, tmp_path):
    first = [example["file_name"] for example in load("train+test", tmp_path, folder).source]
    shutil.rmtree(folder / "images")
    shutil.rmtree(tmp_path / "data")
    write_source(folder, "train")
    assert [example["file_name"] for example in load("train+test", tmp_path, folder).source] == first


def test_load_dataset_sums_the_classes_of_the_lists(folder, tmp_path):
    dataset = load("train+validation", tmp_path, folder)
    assert dataset.class_ids == ("n01440764", "n03710637", "n02105855")
    assert {(example["file_name"][:9], example["label"]) for example in dataset.source} == {
        ("n01440764", 0),
        ("n03710637", 1),
        ("n02105855", 2),
    }
    assert found(pickle.loads(pickle.dumps(dataset))) == found(dataset)


def test_load_dataset_takes_boxes_and_names_from_the_files_of_ilsvrc(tmp_path):
    images = {}
    for wnid, places in PLACES.items():
        images[wnid] = {
            f"{wnid}_{number}.JPEG": Photograph(
                picture(wnid, number), [(number % 7, 1, 8, 5)] if number != 1000 else None, (12, 10)
            )
            for number in places.values()
        }
    write_ilsvrc_files(tmp_path / "mini", WORDS, images, [("n01440764", images["n01440764"]["n01440764_9.JPEG"])])
    write_lists(tmp_path / "mini")
    dataset = load("train", tmp_path, tmp_path / "mini")
    assert dataset.class_names == ("tench", "maillot")
    assert {example["file_name"]: example["boxes"].tolist() for example in dataset.source} == {
        "n01440764/n0144076400000001.jpg": [[9 % 7, 1, 9, 6]],
        "n01440764/n0144076400000003.jpg": [],
        "n03710637/n0371063700000002.jpg": [[40 % 7, 1, 9, 6]],
    }


def test_load_dataset_takes_names_from_words_first(folder, tmp_path):
    (folder / "words.txt").write_text("n01440764\ttench, Tinca tinca\n")
    assert load("train", tmp_path, folder).class_names == ("tench", "n03710637")


def test_load_dataset_reads_lists_with_spaces_and_other_line_ends(folder, tmp_path):
    text = (folder / "train.csv").read_text().replace(",", ", ").replace("\n", "\r\n")
    (folder / "train.csv").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    assert found(load("train", tmp_path, folder)) == expected("train")


def test_load_dataset_ignores_images_that_no_list_names(folder, tmp_path):
    (folder / "images" / "Thumbs.db").write_bytes(b"\0")
    (folder / "images" / listed("n01440764", 99)).write_bytes(b"no image")
    assert len(load("train", tmp_path, folder).source) == 3


def rewrite(path, change):
    path.write_text(change(path.read_text()))


def originals(root):
    """The training images of ILSVRC in the place of the flat folder."""
    shutil.rmtree(root / "images")
    write_source(root, "train")


def archive(root, **changes):
    """The archive in the place of the flat folder, with some of its members replaced or (None) left out."""
    shutil.rmtree(root / "images")
    inner = {w: tar({f"{w}_{n}.JPEG": picture(w, n) for n in numbers}) for w, numbers in NUMBERS.items()}
    inner = {name: data for name, data in (inner | changes).items() if data is not None}
    write_tar(root / "ILSVRC2012_img_train.tar", [(f"{wnid}.tar", data) for wnid, data in inner.items()])


FAULTS = {
    "line without an image": (
        lambda root: (root / "images/n0210585500000003.jpg").unlink(),
        "mini/images: n0210585500000003.jpg is missing, though .*val.csv line 2 names it; download",
    ),
    "truncated image": (
        lambda root: (root / "images/n0371063700000002.jpg").write_bytes(picture("n03710637", 40)[:-9]),
        r"mini/images/n0371063700000002.jpg: truncated \(\d+ bytes, without an end mark\); download",
    ),
    "too many columns": (
        lambda root: rewrite(root / "train.csv", lambda text: text.replace("02.jpg,", "02.jpg,3,")),
        "train.csv line 2: got 'n0371063700000002.jpg,3,n03710637', want the name of a file and a class; download",
    ),
    "too few columns": (
        lambda root: rewrite(root / "val.csv", lambda text: text.replace(",n02105855", "")),
        "val.csv line 2: got 'n0210585500000003.jpg', want the name of a file and a class",
    ),
    "path in the place of a name": (
        lambda root: rewrite(root / "val.csv", lambda text: text.replace("n02105855000", "../n02105855000")),
        "val.csv line 2: got '../n0210585500000003.jpg,n02105855', want the name of a file",
    ),
    "no header": (
        lambda root: rewrite(root / "val.csv", lambda text: text.partition("\n")[2]),
        "val.csv line 1: got 'n0210585500000003.jpg,n02105855', want 'filename,label'; download",
    ),
    "empty list": (lambda root: (root / "val.csv").write_text("filename,label\n"), "val.csv: names no image"),
    "empty file": (lambda root: (root / "val.csv").write_text(""), "val.csv line 1: got '', want 'filename,label'"),
    "unknown class": (
        lambda root: rewrite(root / "val.csv", lambda text: text.replace(",n02105855", ",n02105856")),
        "val.csv line 2: n0210585500000003.jpg is of n02105855, got the class 'n02105856'; download",
    ),
    "image twice in a list": (
        lambda root: rewrite(root / "val.csv", lambda text: text + text.split("\n")[1]),
        "n0210585500000003.jpg is in .*val.csv line 2 and .*val.csv line 3, want every image once; download",
    ),
    "image in two splits": (
        lambda root: rewrite(root / "test.csv", lambda text: text + "n0210585500000003.jpg,n02105855\n"),
        "n0210585500000003.jpg is in .*val.csv line 2 and .*test.csv line 4, want every image once",
    ),
    "class in two splits": (
        lambda root: rewrite(root / "test.csv", lambda text: text + "n0210585500000001.jpg,n02105855\n"),
        "class 'n02105855' is in validation and test, want splits that share no class",
    ),
    "original beyond the last": (
        lambda root: (originals(root), (root / "train/n02105855/n02105855_7.JPEG").unlink()),
        "n02105855: n0210585500000003.jpg in .*val.csv line 2 is image 3 of n02105855, of which 2 are here; all",
    ),
    "original before the first": (
        lambda root: (originals(root), rewrite(root / "val.csv", lambda text: text.replace("3.jpg", "0.jpg"))),
        "is image 0 of n02105855, of which 3 are here",
    ),
    "original with a number twice": (
        lambda root: (originals(root), (root / "train/n02105855/n02105855_07.jpg").write_bytes(b"")),
        "n02105855: n02105855_.* comes twice, want every number once",
    ),
    "class without originals": (
        lambda root: (originals(root), shutil.rmtree(root / "train/n02105855")),
        "mini/train: n0210585500000003.jpg is missing, though .*val.csv line 2 names it",
    ),
    "name without a place": (
        lambda root: (
            originals(root),
            rewrite(root / "val.csv", lambda text: text.replace("n0210585500000003", "cat")),
        ),
        "val.csv line 2: got 'cat.jpg', want a name of the class and eight digits",
    ),
    "class missing in the archive": (
        lambda root: archive(root, n02105855=None),
        "train.tar: n02105855.tar is missing, though .*val.csv line 2 names the class; download the file again",
    ),
    "class too short in the archive": (
        lambda root: archive(root, n02105855=tar({"n02105855_7.JPEG": picture("n02105855", 7)})),
        "train.tar: n02105855.tar: n0210585500000003.jpg in .* is image 3 of n02105855, of which 1 are here",
    ),
    "truncated image in the archive": (
        lambda root: archive(root, n02105855=tar({f"n02105855_{n}.JPEG": b"\xff\xd8\xff" for n in (7, 8, 61)})),
        "train.tar: n02105855.tar: n02105855_61.JPEG: truncated",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_dataset_names_what_is_wrong_with_lists_or_images(folder, tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load("train", tmp_path, folder)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("dataset_info.json")) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "val.csv").unlink(),
            "mini: val.csv missing; manual_dir must hold train.csv, val.csv and",
        ),
        (lambda root: shutil.rmtree(root / "images"), "mini: neither images/ nor ILSVRC2012_img_train.tar nor a class"),
        (
            lambda root: [path.unlink() for path in root.glob("*.csv")],
            "mini: no data set here; manual_dir must",
        ),
        (shutil.rmtree, "mini: no data set here; manual_dir must hold train.csv, val.csv and test.csv"),
    ],
    ids=["a list", "the images", "all lists", "manual_dir"],
)
def test_load_dataset_tells_what_miniimagenet_needs(folder, tmp_path, spoil, message):
    spoil(folder)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load("train", tmp_path, folder)
    assert "\n" not in str(caught.value)
