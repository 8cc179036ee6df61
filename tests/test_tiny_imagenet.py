"""Tests of Tiny-ImageNet with miniature archives in the official layout."""

import json
import os
import tarfile
import zipfile

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import load_dataset
from distcam_jax.datasets.tiny_imagenet import TinyImagenetConfig

WNIDS = ("n02", "n01", "n03")  # not sorted, as in the official file
WORDS = {"n01": "goldfish, Carassius auratus", "n02": "goose", "n03": "crane"}


def jpeg(seed, grey=False):
    image = np.random.default_rng(seed).integers(0, 255, (64, 64) if grey else (64, 64, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    """tiny-imagenet-200 with 3 classes: 4 training and 2 validation images each, the first of a class grey."""
    root = tmp_path / "downloads" / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    (root / "test" / "images" / "test_0.JPEG").write_bytes(jpeg(0))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()) + "n99\tunused\n")
    annotations = []
    for c, wnid in enumerate(WNIDS):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        for i in range(4):
            (images / f"{wnid}_{i}.JPEG").write_bytes(jpeg(10 * c + i, grey=i == 0))
        lines = [f"{wnid}_{i}.JPEG\t{c}\t{i}\t{20 + c}\t63\n" for i in range(4)]
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(lines))
        for i in range(2):
            (root / "val" / "images" / f"val_{2 * c + i}.JPEG").write_bytes(jpeg(100 + 2 * c + i))
            annotations.append(f"val_{2 * c + i}.JPEG\t{wnid}\t5\t{i}\t5\t40\n")
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    return root


def pack_zip(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))


def pack_tar(folder, target, mode="w:gz", top="tiny-imagenet-200"):
    with tarfile.open(target, mode) as archive:
        for path in sorted(folder.rglob("*"), reverse=True):  # lists of boxes after their images
            archive.add(path, os.path.join(top, path.relative_to(folder)), recursive=False)


def load(split, tmp_path, manual_dir=None, **options):
    return load_dataset("tiny_imagenet", split, data_dir=tmp_path / "data", manual_dir=manual_dir, **options)


def as_dict(dataset):
    return {example["file_name"]: example for example in dataset.source}


def expected(folder, split):
    """What the fixture wrote, by hand: file -> (label, exclusive box, bytes)."""
    label = {"n01": 0, "n02": 1, "n03": 2}
    if split == "train":
        return {
            f"{wnid}_{i}.JPEG": (
                label[wnid],
                [[c, i, 21 + c, 64]],
                (folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").read_bytes(),
            )
            for c, wnid in enumerate(WNIDS)
            for i in range(4)
        }
    return {
        f"val_{2 * c + i}.JPEG": (
            label[wnid],
            [[5, i, 6, 41]],
            (folder / "val" / "images" / f"val_{2 * c + i}.JPEG").read_bytes(),
        )
        for c, wnid in enumerate(WNIDS)
        for i in range(2)
    }


FORMS = ("parent", "folder", "zip", "zip in folder", "tar.gz", "tar", "tar without top folder", "tar with ./")


@pytest.mark.parametrize("form", FORMS)
def test_load_dataset_reads_every_official_form(folder, tmp_path, form):
    packed = tmp_path / "packed"
    packed.mkdir()
    if form.startswith("zip"):
        pack_zip(folder, packed / "tiny-imagenet-200.zip")
    elif form == "tar.gz":
        pack_tar(folder, packed / "tiny-imagenet-mini.tar.gz")
    elif form.startswith("tar"):
        pack_tar(
            folder, packed / "tiny-imagenet.tar", "w", {"tar": "tiny-imagenet-200", "tar with ./": "."}.get(form, "")
        )
    manual_dir = {"parent": folder.parent, "folder": folder, "zip": packed / "tiny-imagenet-200.zip"}.get(form, packed)
    for split in ("train", "validation"):
        dataset = load(split, tmp_path, manual_dir)
        assert dataset.class_ids == ("n01", "n02", "n03")
        assert dataset.class_names == ("goldfish", "goose", "crane")
        found = {n: (e["label"], e["boxes"].tolist(), e["image"]) for n, e in as_dict(dataset).items()}
        assert found == expected(folder, split)


def test_load_dataset_needs_the_archive_only_once(folder, tmp_path):
    load("train", tmp_path, folder)
    assert len(load("validation", tmp_path).source) == 6


def test_load_dataset_takes_chosen_classes_in_sorted_order(folder, tmp_path):
    dataset = load("train", tmp_path, folder, classes=["n03", "n01"])
    assert dataset.class_names == ("goldfish", "crane")
    assert {(e["file_name"][:3], e["label"]) for e in dataset.source} == {("n01", 0), ("n03", 1)}
    assert len(load("validation", tmp_path, classes=("n01", "n03")).source) == 4


def test_load_dataset_takes_classes_in_one_string(folder, tmp_path):
    assert load("train", tmp_path, folder, classes="n03, n01").class_ids == ("n01", "n03")
    assert len(load("train", tmp_path, folder, classes="").class_ids) == 3


def test_load_dataset_keeps_choices_of_classes_apart(folder, tmp_path):
    choices = (["n01", "n02"], ["n01", "n03"], None)
    found = [load("train", tmp_path, folder, classes=classes).class_ids for classes in choices]
    assert found == [("n01", "n02"), ("n01", "n03"), ("n01", "n02", "n03")]
    assert [load("train", tmp_path, classes=classes).class_ids for classes in choices] == found


@pytest.mark.parametrize(("name", "text"), [("few.txt", "n03\nn02\n"), ("few.json", json.dumps(["n03", "n02"]))])
def test_load_dataset_reads_classes_from_a_file(folder, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert load("train", tmp_path, folder, classes=path).class_ids == ("n02", "n03")


def test_load_dataset_leaves_out_classes_without_images(folder, tmp_path):
    (folder / "wnids.txt").write_text("n99\nn02\nn01\nn03\n")
    with open(folder / "val" / "val_annotations.txt", "a") as file:
        file.write("val_99.JPEG\tn99\t0\t0\t9\t9\n")
    assert load("validation", tmp_path, folder).class_ids == ("n01", "n02", "n03")
    with pytest.raises(ValueError, match=r"classes: 'n99' has no images in train/ \(.*tiny-imagenet-200\)"):
        load("train", tmp_path, folder, classes=["n01", "n99"])


def test_load_dataset_ignores_other_files(folder, tmp_path):
    for name in ("train/.DS_Store", "train/n01/images/._n01_0.JPEG", "val/images/Thumbs.db"):
        (folder / name).write_bytes(b"\0")
    assert len(load("train", tmp_path, folder).source) == 12
    assert len(load("validation", tmp_path).source) == 6


def test_load_dataset_writes_nothing_outside_its_folder(folder, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    pack_zip(folder, packed / "tiny-imagenet-200.zip")
    with zipfile.ZipFile(packed / "tiny-imagenet-200.zip", "a") as archive:
        archive.writestr("../../evil.JPEG", b"evil")
        archive.writestr(str(tmp_path / "evil.txt"), b"evil")
        archive.writestr("tiny-imagenet-200/train/n01/images/../../../../../evil.JPEG", b"evil")
    before = set(tmp_path.rglob("*"))
    assert len(load("train", tmp_path, packed).source) == 12
    outside = {path for path in tmp_path.rglob("*") if path.relative_to(tmp_path).parts[0] != "data"}
    assert outside == before
    assert list(tmp_path.rglob("*evil*")) == []


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


AGAIN = "; download or unpack the data again$"
FAULTS = {
    "truncated JPEG": (
        lambda root: rewrite(root / "train/n01/images/n01_2.JPEG", lambda data: data[:-300]),
        r"200: train/n01/images/n01_2.JPEG: truncated \(\d+ bytes, without an end mark\)" + AGAIN,
    ),
    "empty JPEG": (
        lambda root: rewrite(root / "val/images/val_3.JPEG", lambda data: b""),
        r"200: val/images/val_3.JPEG: no JPEG file \(0 bytes\)" + AGAIN,
    ),
    "no JPEG": (
        lambda root: rewrite(root / "val/images/val_3.JPEG", lambda data: b"<html>not found</html>"),
        r"200: val/images/val_3.JPEG: no JPEG file \(22 bytes\)" + AGAIN,
    ),
    "undecodable JPEG": (
        lambda root: rewrite(root / "val/images/val_3.JPEG", lambda data: b"\xff\xd8 nothing \xff\xd9"),
        r"200: val/images/val_3.JPEG: damaged, cannot be decoded" + AGAIN,
    ),
    "missing image": (
        lambda root: (root / "train/n02/images/n02_1.JPEG").unlink(),
        r"200: train/n02/images/n02_1.JPEG is missing, though train/n02/n02_boxes.txt line 2 names it \(1 such"
        + ".*"
        + AGAIN,
    ),
    "image without a line": (
        lambda root: rewrite(root / "train/n02/n02_boxes.txt", lambda data: b"\n".join(data.split(b"\n")[:3])),
        r"200: train/n02/images/n02_3.JPEG has no line in the list of boxes" + AGAIN,
    ),
    "validation list cut at a line": (
        lambda root: rewrite(root / "val/val_annotations.txt", lambda data: b"\n".join(data.split(b"\n")[:5])),
        r"200: val/images/val_5.JPEG has no line in the list of boxes" + AGAIN,
    ),
    "too few fields": (
        lambda root: rewrite(
            root / "train/n03/n03_boxes.txt", lambda data: data.replace(b"_1.JPEG\t2\t", b"_1.JPEG\t")
        ),
        r"200: train/n03/n03_boxes.txt line 2: got 'n03_1.JPEG\\t1\\t22\\t63', want file, x0, y0, x1, y1" + AGAIN,
    ),
    "too many fields": (
        lambda root: rewrite(root / "train/n03/n03_boxes.txt", lambda data: data.replace(b"_1.JPEG", b"_1.JPEG\tn03")),
        r"200: train/n03/n03_boxes.txt line 2: got 'n03_1.JPEG\\tn03.*', want file, x0, y0, x1, y1" + AGAIN,
    ),
    "no number": (
        lambda root: rewrite(
            root / "val/val_annotations.txt", lambda data: data.replace(b"n02\t5\t1", b"n02\tfive\t1")
        ),
        r"200: val/val_annotations.txt line 2: got '.*five.*', want file, wnid, x0, y0, x1, y1" + AGAIN,
    ),
    "negative box": (
        lambda root: rewrite(root / "val/val_annotations.txt", lambda data: data.replace(b"n02\t5\t1", b"n02\t-5\t1")),
        r"200: val/val_annotations.txt line 2: got '.*-5",
    ),
    "box the wrong way round": (
        lambda root: rewrite(root / "val/val_annotations.txt", lambda data: data.replace(b"n02\t5\t1", b"n02\t6\t1")),
        r"200: val/val_annotations.txt line 2: got '.*n02\\t6\\t1\\t5\\t40'",
    ),
    "box beyond the image": (
        lambda root: rewrite(root / "val/val_annotations.txt", lambda data: data.replace(b"\t5\t40", b"\t64\t40", 1)),
        r"200: val/images/val_0.JPEG: 64 x 64 pixels, too small for the box \(5, 0, 64, 40\) in val/.*line 1" + AGAIN,
    ),
    "no list of boxes": (
        lambda root: (root / "train/n03/n03_boxes.txt").unlink(),
        r"200: train/n03/n03_boxes.txt is missing" + AGAIN,
    ),
    "no validation list": (
        lambda root: (root / "val/val_annotations.txt").unlink(),
        r"200: val/val_annotations.txt is missing" + AGAIN,
    ),
    "empty validation list": (
        lambda root: (root / "val/val_annotations.txt").write_text(""),
        r"200: val/val_annotations.txt names no image of these classes" + AGAIN,
    ),
    "no words": (lambda root: (root / "words.txt").unlink(), r"200: words.txt is missing" + AGAIN),
    "word missing": (
        lambda root: rewrite(root / "words.txt", lambda data: data.replace(b"n02", b"n98")),
        r"200: words.txt has no line for n02" + AGAIN,
    ),
    "no known class": (
        lambda root: (root / "wnids.txt").write_text("n98\n"),
        r"200: no class of wnids.txt has images in train/" + AGAIN,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_dataset_names_the_file_at_fault_and_the_mend(folder, tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load("train", tmp_path, folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):  # nothing half-done is taken for data
        load("train", tmp_path, folder)


@pytest.mark.parametrize("name", ["tiny-imagenet-200.zip", "tiny-imagenet-200.tar.gz", "tiny-imagenet-200.tar"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6])
def test_load_dataset_refuses_truncated_archives(folder, tmp_path, name, kept):
    path = tmp_path / name
    if path.suffix == ".zip":
        pack_zip(folder, path)
    else:
        pack_tar(folder, path, "w:gz" if path.suffix == ".gz" else "w")
    rewrite(path, lambda data: data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=f"^{path}: .*{AGAIN}") as caught:
        load("train", tmp_path, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["n01", "n7"], r"classes: 'n7' is none of the 3 ids in wnids.txt \(.*tiny-imagenet-200\)"),
        ([], r"classes: got 0 ids"),
        (["n01", "n01"], r"classes: got 2 ids, 1 different, want at least one, each once"),
        ("n01,n7", r"classes: 'n7' is none of the 3 ids in wnids.txt"),
        ("missing.txt", r"classes: got 'missing.txt', want a list of ids or a file of them"),
    ],
)
def test_load_dataset_refuses_wrong_classes(folder, tmp_path, classes, message):
    with pytest.raises(ValueError, match=message):
        load("train", tmp_path, folder, classes=classes)


@pytest.mark.parametrize("content", ['{"core": ["n01"]}', "[1, 2]", "not JSON"])
def test_tiny_imagenet_config_refuses_files_without_a_list(tmp_path, content):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=r"classes: .*classes.json.* want a list of ids"):
        TinyImagenetConfig(classes=tmp_path / "classes.json")


@pytest.mark.parametrize("manual_dir", [None, "nowhere", "empty"])
def test_load_dataset_tells_where_the_data_comes_from(tmp_path, manual_dir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no Tiny-ImageNet here; manual_dir must be, or hold, .*\.zip$"):
        load("train", tmp_path, manual_dir and tmp_path / manual_dir)


def test_load_dataset_asks_which_archive_is_meant(tmp_path):
    for name in ("tiny-imagenet-200.zip", "tiny-imagenet-100.tar.gz"):
        (tmp_path / name).write_bytes(b"")
    message = r"more than one archive \(tiny-imagenet-100.tar.gz, tiny-imagenet-200.zip\); pass the one you want"
    with pytest.raises(ValueError, match=message):
        load("train", tmp_path, tmp_path)


@pytest.mark.skipif("DISTCAM_TINY_IMAGENET" not in os.environ, reason="DISTCAM_TINY_IMAGENET names no Tiny-ImageNet")
def test_load_dataset_reads_the_real_data(tmp_path):
    classes = ["n07749582", "n02099601"]  # lemon, golden retriever
    train, validation = (
        load(split, tmp_path, os.environ["DISTCAM_TINY_IMAGENET"], classes=classes) for split in ("train", "validation")
    )
    assert train.class_names == ("golden retriever", "lemon")
    assert (len(train.source), len(validation.source)) == (1000, 100)
    for example in validation.source:
        height, width = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR).shape[:2]
        x0, y0, x1, y1 = example["boxes"][0]
        assert 0 <= x0 < x1 <= width == 64
        assert 0 <= y0 < y1 <= height == 64
