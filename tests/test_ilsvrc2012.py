"""Tests of ILSVRC 2012 with miniatures of its official files."""

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import ilsvrc2012, load_dataset
from distcam_jax.decoding import decode_image
from tools.ilsvrc_files import Photograph, annotation, ilsvrc_ids, tar, write_ilsvrc_files, write_tar

CLASSES = {  # not sorted
    "n02105855": "Shetland sheepdog, Shetland sheep dog, Shetland",
    "n01440764": "tench, Tinca tinca",
    "n03710637": "maillot",
}
LABELS = {"n01440764": 0, "n02105855": 1, "n03710637": 2}  # as torchvision's
VALIDATION = ["n03710637", "n01440764", "n03710637", "n02105855", "n01440764"]
DEVKIT, TRAIN, VAL, VAL_BOXES, TRAIN_BOXES, BLACKLIST = (
    "ILSVRC2012_devkit_t12.tar.gz",
    "ILSVRC2012_img_train.tar",
    "ILSVRC2012_img_val.tar",
    "ILSVRC2012_bbox_val_v3.tgz",
    "ILSVRC2012_bbox_train_v2.tar.gz",
    "ILSVRC2014_devkit.tgz",
)
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
AGAIN = "; download the file again$"


def encode(seed, extension=".jpg", grey=False):
    shape = (30, 40) if grey else (30, 40, 3)
    image = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    return cv2.imencode(extension, image)[1].tobytes()


def train_images():
    """Four images a class: one with a box, one with two and a stranger's, one grey, one without an annotation."""
    images = {}
    for c, wnid in enumerate(CLASSES):
        boxes = [[(c, 2, 5, 6)], [(0, 0, 9, 9), (20, 1, 30, 8, "n09999999"), (4, 3, 39, 29)], [(1, 1, 1, 1)], None]
        images[wnid] = {
            f"{wnid}_{10 * i}.JPEG": Photograph(encode(10 * c + i, grey=i == 2), boxes[i], (40, 30)) for i in range(4)
        }
    return images


def validation_images():
    return [(wnid, Photograph(encode(100 + i), [(i, 0, 20, 20)], (40, 30))) for i, wnid in enumerate(VALIDATION)]


@pytest.fixture
def folder(tmp_path):
    """The official files with 3 classes, 12 training and 5 validation images, of which 2 are blacklisted."""
    write_ilsvrc_files(tmp_path / "downloads", CLASSES, train_images(), validation_images(), blacklist=[2, 5])
    return tmp_path / "downloads"


def load(split, tmp_path, manual_dir=None):
    return load_dataset("ilsvrc2012", split, data_dir=tmp_path / "data", manual_dir=manual_dir)


def as_dict(dataset):
    return {example["file_name"]: example for example in dataset.source}


def members(path):
    """What an archive holds, read by the standard library."""
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}


def edit(path, **changes):
    """Writes an archive anew with some members replaced: by bytes, or by None to leave one out; keys are endings."""
    content = members(path)
    for ending, data in changes.items():
        name = next((name for name in content if name.endswith(ending)), ending)
        content.pop(name, None)
        content |= {} if data is None else {name: data}
    write_tar(path, content.items())


def edit_inner(path, wnid, **changes):
    """The same for a class's archive in that of the training images."""
    inner = members(path)[f"{wnid}.tar"]
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        content = {m.name: archive.extractfile(m).read() for m in archive}
    for name, data in changes.items():
        content.pop(name, None)
        content |= {} if data is None else {name: data}
    edit(path, **{f"{wnid}.tar": tar(content)})


def test_load_dataset_reads_the_official_files(folder, tmp_path):
    train, validation = load("train", tmp_path, folder), load("validation", tmp_path)
    for dataset in (train, validation):
        assert dataset.class_ids == ("n01440764", "n02105855", "n03710637")
        assert dataset.class_names == ("tench", "Shetland sheepdog", "maillot")
    found = {n: (e["image"], e["label"], e["boxes"].tolist(), e["blacklisted"]) for n, e in as_dict(validation).items()}
    assert found == {
        f"ILSVRC2012_val_0000000{i + 1}.JPEG": (encode(100 + i), LABELS[wnid], [[i, 0, 21, 21]], i in (1, 4))
        for i, wnid in enumerate(VALIDATION)
    }
    boxes = [None, [[0, 0, 10, 10], [4, 3, 40, 30]], [[1, 1, 2, 2]], []]
    found = {n: (e["image"], e["label"], e["boxes"].tolist(), e["blacklisted"]) for n, e in as_dict(train).items()}
    assert found == {
        f"{wnid}_{10 * i}.JPEG": (
            encode(10 * c + i, grey=i == 2),
            LABELS[wnid],
            boxes[i] if i else [[c, 2, 6, 7]],
            False,
        )
        for c, wnid in enumerate(CLASSES)
        for i in range(4)
    }


def test_load_dataset_gives_plain_values(folder, tmp_path):
    example = load("train", tmp_path, folder).source[0]
    types = {"label": int, "file_name": str, "blacklisted": bool, "image_width": int, "image_height": int}
    assert {name: type(example[name]) for name in types} == types
    assert (example["image_width"], example["image_height"]) == (40, 30)
    assert (example["boxes"].dtype, example["boxes"].shape[1:]) == (np.float32, (4,))


def test_load_dataset_source_can_be_pickled(folder, tmp_path):
    source = load("validation", tmp_path, folder).source
    assert pickle.loads(pickle.dumps(source))[0]["image"] == source[0]["image"]


def test_ilsvrc_ids_are_in_another_order_than_labels():
    assert {wnid: number - 1 for wnid, number in ilsvrc_ids(CLASSES).items()} != LABELS


def test_load_dataset_stores_the_classes_mixed_and_always_alike(folder, tmp_path):
    first = [(e["file_name"], e["label"]) for e in load("train", tmp_path, folder).source]
    second = [(e["file_name"], e["label"]) for e in load("train", tmp_path / "again", folder).source]
    assert first == second
    assert len({label for _, label in first[:4]}) > 1  # in the order of the archive they would be of one class


def test_load_dataset_without_training_boxes_gives_none(folder, tmp_path):
    (folder / TRAIN_BOXES).unlink()
    assert {e["boxes"].shape for e in load("train", tmp_path, folder).source} == {(0, 4)}


@pytest.mark.parametrize("form", ["archive", "text file", "none"])
def test_load_dataset_tells_whether_the_blacklist_is_known(folder, tmp_path, form):
    if form != "archive":
        text = members(folder / BLACKLIST).popitem()[1]
        (folder / BLACKLIST).unlink()
        if form == "text file":
            (folder / "ILSVRC2014_clsloc_validation_blacklist.txt").write_bytes(text)
    dataset = load("validation", tmp_path, folder)
    assert dataset.blacklist_known is (form != "none")
    expected = set() if form == "none" else {"ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00000005.JPEG"}
    assert {name for name, example in as_dict(dataset).items() if example["blacklisted"]} == expected


@pytest.mark.parametrize("packing", ["flat", "tar", "tar.gz", "other folders"])
def test_load_dataset_finds_training_annotations_however_they_are_packed(folder, tmp_path, packing):
    content = members(folder / TRAIN_BOXES)
    if packing == "flat":
        content = {name.rpartition("/")[2]: data for name, data in content.items()}
    elif packing == "other folders":
        content = {f"./bbox/train/{name}": data for name, data in content.items()}
    else:
        mode = "w:gz" if packing == "tar.gz" else "w"
        by_class = {wnid: {name: data for name, data in content.items() if name.startswith(wnid)} for wnid in CLASSES}
        content = {f"{wnid}.{packing}": tar(inner, mode) for wnid, inner in by_class.items()}
    write_tar(folder / TRAIN_BOXES, content.items())
    boxes = as_dict(load("train", tmp_path, folder))["n01440764_10.JPEG"]["boxes"]
    assert boxes.tolist() == [[0, 0, 10, 10], [4, 3, 40, 30]]


@pytest.mark.parametrize("file_name", ["%s", "n03710637_0", "n01440764_0.JPEG", ""])
def test_load_dataset_goes_by_the_name_of_the_annotation_file(folder, tmp_path, file_name):
    image = train_images()["n01440764"]["n01440764_0.JPEG"]
    edit(folder / TRAIN_BOXES, **{"n01440764_0.xml": annotation("", "n01440764", image, file_name=file_name)})
    assert as_dict(load("train", tmp_path, folder))["n01440764_0.JPEG"]["boxes"].tolist() == [[1, 2, 6, 7]]


def test_load_dataset_scales_boxes_and_counts_those_it_drops(folder, tmp_path):
    boxes = [(10, 20, 19, 59), (9, 4, 8, 30), (700, 0, 710, 9), (380, 0, 500, 299)]  # the 2nd reversed, the 3rd outside
    image = Photograph(encode(100), boxes, (400, 300))  # ten times the stored size
    name = "ILSVRC2012_val_00000001"
    edit(folder / VAL_BOXES, **{f"{name}.xml": annotation(name, "n03710637", image)})
    example = as_dict(load("validation", tmp_path, folder))[f"{name}.JPEG"]
    np.testing.assert_allclose(example["boxes"], [[1, 2, 2, 6], [38, 0, 40, 30]], atol=1e-5)
    (path,) = tmp_path.rglob("1.0.0/metadata.json")
    assert '"dropped_boxes": {"validation": 2, "train": 0}' in path.read_text()


def test_load_dataset_stores_unusual_images_as_found(folder, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8), (64, 48))
    png = cv2.imencode(".png", smooth[..., ::-1])[1].tobytes()
    cmyk, grey = io.BytesIO(), io.BytesIO()
    image_module.fromarray(smooth).convert("CMYK").save(cmyk, "JPEG", quality=95)
    image_module.fromarray(smooth[..., 0]).save(grey, "JPEG", quality=95)
    assert b"Adobe" in cmyk.getvalue()[:40]  # inverted inks, as Photoshop writes them
    colours = {"n02105855_2933.JPEG": png, "n02105855_1.JPEG": cmyk.getvalue(), "n02105855_2.JPEG": grey.getvalue()}
    edit_inner(folder / TRAIN, "n02105855", **colours)
    examples = as_dict(load("train", tmp_path, folder))
    for name, data in colours.items():
        assert examples[name]["image"] == data
        assert (examples[name]["image_width"], examples[name]["image_height"]) == (64, 48)
        expected = np.repeat(smooth[..., :1], 3, axis=-1) if name.endswith("_2.JPEG") else smooth
        assert np.abs(decode_image(data).astype(int) - expected).mean() < 3


def test_load_dataset_ignores_other_files(folder, tmp_path):
    edit_inner(folder / TRAIN, "n01440764", **{"._n01440764_0.JPEG": b"shadow", "readme.txt": b"", ".DS_Store": b""})
    edit(folder / TRAIN, **{"._n01440764.tar": b"shadow", "readme.txt": b""})
    edit(folder / VAL, **{"._ILSVRC2012_val_00000001.JPEG": b"shadow"})
    edit(folder / VAL_BOXES, **{"val/._ILSVRC2012_val_00000001.xml": b"shadow", "val/notes.xml": b"shadow"})
    edit(folder / TRAIN_BOXES, **{"n09999999/n09999999_1.xml": b"of no class", "n01440764/n01440764_77.xml": b"<a/>"})
    assert len(load("train", tmp_path, folder).source) == 12
    assert len(load("validation", tmp_path).source) == 5


@pytest.mark.parametrize("lost", [DEVKIT, TRAIN, VAL, VAL_BOXES])
def test_load_dataset_names_the_missing_file_and_where_it_is(folder, tmp_path, lost):
    (folder / lost).unlink()
    message = rf"{folder}: {lost} missing; .*from https://image-net.org/download-images$"
    with pytest.raises(FileNotFoundError, match=message):
        load("train", tmp_path, folder)


def test_load_dataset_names_all_missing_files_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{DEVKIT}, {TRAIN}, {VAL}, {VAL_BOXES} missing"):
        load("train", tmp_path)


FAULTS = {
    "unknown class": (
        lambda root: edit(root / TRAIN, **{"n09999999.tar": tar({})}),
        r"train.tar: n09999999.tar: n09999999 is none of the 3 classes in meta.mat",
    ),
    "class without an archive": (
        lambda root: edit(root / TRAIN, **{"n02105855.tar": None}),
        r"train.tar: no image of n02105855 \(1 such classes of 3\)",
    ),
    "class without images": (
        lambda root: edit(root / TRAIN, **{"n02105855.tar": tar({})}),
        r"train.tar: no image of n02105855 \(1 such classes of 3\)",
    ),
    "image of another class": (
        lambda root: edit_inner(root / TRAIN, "n02105855", **{"n01440764_3.JPEG": encode(0)}),
        r"train.tar: n02105855.tar: n01440764_3.JPEG is no image of n02105855",
    ),
    "image that comes twice": (
        lambda root: edit_inner(root / TRAIN, "n02105855", **{"again/n02105855_0.JPEG": encode(0)}),
        r"train.tar: n02105855.tar: n02105855_0.JPEG comes twice",
    ),
    "truncated image": (
        lambda root: edit_inner(root / TRAIN, "n02105855", **{"n02105855_3.JPEG": encode(0)[:-99]}),
        r"train.tar: n02105855_3.JPEG: truncated \(\d+ bytes, without an end mark\)",
    ),
    "no image": (
        lambda root: edit(root / VAL, **{"_00000003.JPEG": b"<html>"}),
        r"val.tar: ILSVRC2012_val_00000003.JPEG: no JPEG or PNG file \(6 bytes\)",
    ),
    "inner archive that is none": (
        lambda root: edit(root / TRAIN, **{"n02105855.tar": b"<html>not found</html>" * 50}),
        r"train.tar: n02105855.tar: cannot be read to its end \(.*\)",
    ),
    "missing validation image": (
        lambda root: edit(root / VAL, **{"_00000003.JPEG": None}),
        r"val.tar: ILSVRC2012_val_00000003.JPEG is missing \(1 such images of 5\)",
    ),
    "validation image without a number": (
        lambda root: edit(root / VAL, **{"cat.JPEG": encode(0)}),
        r"val.tar: cat.JPEG is none of the 5 images with a ground truth",
    ),
    "ground truth too short": (
        lambda root: (edit(root / DEVKIT, **{TRUTH: b"1\n2\n3\n1\n"}), (root / BLACKLIST).unlink()),
        r"val.tar: ILSVRC2012_val_00000005.JPEG is none of the 4 images with a ground truth",
    ),
    "ground truth too long": (
        lambda root: (
            edit(root / DEVKIT, **{TRUTH: b"1\n2\n3\n1\n1\n2\n"}),
            edit(root / VAL_BOXES, **{"val/ILSVRC2012_val_00000006.xml": b"<annotation/>"}),
        ),
        r"val.tar: ILSVRC2012_val_00000006.JPEG is missing \(1 such images of 6\)",
    ),
    "ground truth of no class": (
        lambda root: edit(root / DEVKIT, **{TRUTH: b"1\n2\n4\n1\n1\n"}),
        r"truth.txt line 3: got 4, want an ILSVRC2012_ID of one of the 3 classes",
    ),
    "ground truth that is no number": (
        lambda root: edit(root / DEVKIT, **{TRUTH: b"1\n2\nx\n1\n1\n"}),
        r"truth.txt line 3: got 'x', want a number",
    ),
    "empty ground truth": (lambda root: edit(root / DEVKIT, **{TRUTH: b""}), r"truth.txt is empty"),
    "no ground truth": (lambda root: edit(root / DEVKIT, **{TRUTH: None}), r"t12.tar.gz: .*truth.txt is missing"),
    "no meta.mat": (lambda root: edit(root / DEVKIT, **{META: None}), r"t12.tar.gz: meta.mat is missing"),
    "damaged meta.mat": (
        lambda root: edit(root / DEVKIT, **{META: b"MATLAB 5.0" * 99}),
        r"t12.tar.gz: meta.mat: cannot be read \(.*\)",
    ),
    "missing annotation": (
        lambda root: edit(root / VAL_BOXES, **{"_00000003.xml": None}),
        r"v3.tgz: ILSVRC2012_val_00000003.xml is missing \(1 such annotations of 5\)",
    ),
    "annotation that is no XML": (
        lambda root: edit(root / TRAIN_BOXES, **{"n02105855_10.xml": b"<annotation>"}),
        r"v2.tar.gz: n02105855/n02105855_10.xml: no annotation of boxes \(.*\)",
    ),
    "blacklist of too many": (
        lambda root: edit(root / BLACKLIST, **{"blacklist.txt": b"2\n6\n"}),
        r"blacklist.txt line 2: got 6, want a number from 1 to 5",
    ),
    "no blacklist": (
        lambda root: edit(root / BLACKLIST, **{"blacklist.txt": None, "readme.txt": b""}),
        r"ILSVRC2014_devkit.tgz: ILSVRC2014_clsloc_validation_blacklist.txt is missing",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_dataset_names_the_file_at_fault_and_the_mend(folder, tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(folder)
    for _ in range(2):  # nothing half-done is taken for data
        with pytest.raises(ValueError, match=f"^{folder}/.*{message}{AGAIN}") as caught:
            load("train", tmp_path, folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [DEVKIT, TRAIN, VAL, VAL_BOXES, TRAIN_BOXES, BLACKLIST])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6])
def test_load_dataset_refuses_truncated_archives(folder, tmp_path, name, kept):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=f"^{folder / name}: .*{AGAIN}") as caught:
        load("train", tmp_path, folder)
    assert "\n" not in str(caught.value)


def test_load_dataset_checks_the_room_before_it_begins(folder, tmp_path, monkeypatch):
    size = (folder / TRAIN).stat().st_size + (folder / VAL).stat().st_size
    usage = shutil._ntuple_diskusage(10 * size, 9 * size, size)
    monkeypatch.setattr(ilsvrc2012.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"data.*: 0.0 GB free, ILSVRC 2012 takes 0.0 GB; free some or name another"):
        load("train", tmp_path, folder)


def test_load_dataset_shows_on_a_terminal_how_far_it_is(folder, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    load("train", tmp_path, folder)
    shown = sys.stderr.getvalue()
    assert all(name in shown for name in (TRAIN, VAL, TRAIN_BOXES))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    load("train", tmp_path / "again", folder)
    assert sys.stderr.getvalue() == ""


def test_load_dataset_starts_clean_after_a_killed_process(folder, tmp_path):
    code = f"""
import os, signal
from distcam_jax.datasets import ilsvrc2012, load_dataset
measure, calls = ilsvrc2012.image_size, []
def die(data):
    calls.append(1)
    if len(calls) == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(data)
ilsvrc2012.image_size = die
load_dataset("ilsvrc2012", "train", data_dir={str(tmp_path / "data")!r}, manual_dir={str(folder)!r})
"""
    killed = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("incomplete*"))) >= 1
    assert len(load("train", tmp_path, folder).source) == 12
    assert list(tmp_path.rglob("incomplete*")) == []
