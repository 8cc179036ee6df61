"""Tests of Market-1501 with a miniature of the official files."""

import pickle
import shutil
import zipfile

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import load_dataset
from distcam_jax.input_pipeline import make_train_iterator

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
FILES = (  # path, person, camera
    (f"{TRAIN}/0002_c1s1_000451_03.jpg", 2, 1),
    (f"{TRAIN}/0002_c5s1_001451_00.jpg", 2, 5),
    (f"{TRAIN}/0011_c6s4_027271_01.jpg", 11, 6),
    (f"{TRAIN}/0007_c2s3_070952_01.jpg", 7, 2),
    (f"{QUERY}/0003_c1s6_015971_00.jpg", 3, 1),
    (f"{QUERY}/1501_c3s3_071477_00.jpg", 1501, 3),
    (f"{GALLERY}/0003_c4s6_015641_04.jpg", 3, 4),
    (f"{GALLERY}/0003_c1s6_015996_02.jpg", 3, 1),
    (f"{GALLERY}/1501_c6s3_086567_01.jpg", 1501, 6),
    (f"{GALLERY}/0000_c1s1_000151_01.jpg", 0, 1),
    (f"{GALLERY}/0000_c2s1_000301_02.jpg", 0, 2),
)
STRAYS = (  # of which nothing must be seen
    f"{GALLERY}/-1_c1s1_000401_03.jpg",
    f"{GALLERY}/Thumbs.db",
    f"{TRAIN}/Thumbs.db",
    f"{QUERY}/.DS_Store",
    "gt_bbox/0002_c1s1_000451_00.jpg",
    "gt_query/0003_c1s6_015971_00_good.mat",
    "readme.txt",
)


def jpeg(path):
    image = np.random.default_rng(list(path.encode())).integers(0, 255, (8, 4, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    root = tmp_path_factory.mktemp("downloads") / "Market-1501-v15.09.15"
    for path in (*(path for path, _, _ in FILES), *STRAYS):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"\0" if path in STRAYS else jpeg(path))
    return root


@pytest.fixture(scope="module")
def data_dir(official, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    load("train", folder, official)
    return folder


@pytest.fixture
def folder(official, tmp_path):
    """A copy to be spoilt."""
    shutil.copytree(official, tmp_path / "market")
    return tmp_path / "market"


def load(split, data_dir, manual_dir=None, **options):
    return load_dataset("market1501", split, data_dir=data_dir, manual_dir=manual_dir, **options)


def found(dataset):
    return {e["file_name"]: (e["identity"], e["camera"], e["label"], e["image"]) for e in dataset.source}


def expected(folder, persons):
    """What a split holds, by hand; `persons` are its classes in their order."""
    return {
        path: (person, camera, persons.index(person), jpeg(path))
        for path, person, camera in FILES
        if path.startswith(folder + "/")
    }


@pytest.mark.parametrize(
    ("split", "folder", "persons"),
    [("train", TRAIN, [2, 7, 11]), ("query", QUERY, [0, 3, 1501]), ("gallery", GALLERY, [0, 3, 1501])],
)
def test_load_dataset_reads_pedestrians(data_dir, split, folder, persons):
    dataset = load(split, data_dir)
    assert dataset.class_ids == tuple(f"{person:04d}" for person in persons)
    assert found(dataset) == expected(folder, persons)
    assert {e["boxes"].shape for e in dataset.source} == {(0, 4)}
    assert {(type(e["identity"]), type(e["camera"])) for e in dataset.source} == {(int, int)}


def test_load_dataset_names_persons(data_dir):
    assert load("train", data_dir).class_names == ("person 2", "person 7", "person 11")
    assert load("gallery", data_dir).class_names == ("distractor", "person 3", "person 1501")


def test_load_dataset_numbers_classes_in_common_once(data_dir):
    dataset = load("query+gallery", data_dir)
    assert dataset.class_ids == ("0000", "0003", "1501")
    assert found(dataset) == expected(QUERY, [0, 3, 1501]) | expected(GALLERY, [0, 3, 1501])
    assert load("gallery+train", data_dir).class_ids == ("0002", "0007", "0011", "0000", "0003", "1501")


def test_load_dataset_holds_out_the_last_persons(official, tmp_path):
    dataset = load("validation", tmp_path, official, validation_identities=2)
    assert dataset.class_ids == ("0007", "0011")
    assert found(dataset) == {p: v for p, v in expected(TRAIN, [7, 11, 2]).items() if v[0] != 2}
    rest = load("train", tmp_path, validation_identities=2)
    assert (rest.class_ids, {e["identity"] for e in rest.source}) == (("0002",), {2})
    assert len(load("gallery", tmp_path, validation_identities=2).source) == 5


def test_load_dataset_source_of_pedestrians_can_be_pickled(data_dir):
    source = load("query", data_dir).source
    copy = pickle.loads(pickle.dumps(source))
    assert [(e["identity"], e["label"]) for e in copy] == [(e["identity"], e["label"]) for e in source]
    assert repr(copy) == repr(source)


def test_make_train_iterator_reads_pedestrians(data_dir):
    source = load("train", data_dir).source
    batches = make_train_iterator(
        source, batch_size=4, image_size=(8, 4), seed=0, augmentation={"kind": "pad_crop", "padding": 1}, num_threads=0
    )
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (4, 8, 4, 3)
    assert batch["label"].tolist() == [source[int(index)]["label"] for index in batch["index"]]


@pytest.mark.parametrize("what", ["folder", "folder of it", "archive", "folder of the archive"])
def test_load_dataset_finds_the_pedestrians(official, data_dir, tmp_path, what):
    manual_dir = official if what == "folder" else official.parent
    if "archive" in what:
        path = tmp_path / "archive" / "Market-1501-v15.09.15.zip"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("__MACOSX/" + f"{TRAIN}/._0002_c1s1_000451_03.jpg", *(path for path, _, _ in FILES), *STRAYS):
                data = jpeg(name) if name in {path for path, _, _ in FILES} else b"\0"
                archive.writestr(f"Market-1501-v15.09.15/{name}", data)
        manual_dir = path if what == "archive" else path.parent
    dataset = load("gallery", tmp_path, manual_dir)
    assert found(dataset) == expected(GALLERY, [0, 3, 1501])
    names = [example["file_name"] for example in dataset.source]
    assert names == [example["file_name"] for example in load("gallery", data_dir).source]


def move(old, new):
    return lambda root: (root / old).rename(root / new)


FAULTS = {
    "person in training and gallery": (
        move(FILES[0][0], f"{GALLERY}/0002_c1s1_000451_03.jpg"),
        rf"market: person 2 is in {TRAIN}/0002_c5.*jpg and {GALLERY}/0002_c1.*jpg, want persons that are in",
    ),
    "person in training and query": (
        move(FILES[2][0], f"{QUERY}/0007_c6s4_027271_01.jpg"),
        rf"person 7 is in {TRAIN}/0007_.*jpg and {QUERY}/0007_.*jpg, want persons",
    ),
    "distractor as a query": (
        move(FILES[4][0], f"{QUERY}/0000_c1s6_015971_00.jpg"),
        rf"{QUERY}/0000_c1s6_015971_00.jpg is of person 0, a distractor, want those in {GALLERY} alone; move",
    ),
    "distractor in training": (
        move(FILES[0][0], f"{TRAIN}/0000_c1s6_015971_00.jpg"),
        rf"{TRAIN}/0000_c1s6_015971_00.jpg is of person 0",
    ),
    "name of another data set": (
        move(FILES[0][0], f"{TRAIN}/0002_c1_f0044158.jpg"),
        rf"market: got '{TRAIN}/0002_c1_f0044158.jpg', want a name such as 0002_c1s1_000451_03.jpg, of person, camera",
    ),
    "no image": (
        lambda root: (root / TRAIN / "notes.txt").write_text(""),
        rf"got '{TRAIN}/notes.txt', want a name such as .*; rename the file or take it out",
    ),
    "folder in a folder": (
        lambda root: (
            (root / QUERY / "more").mkdir(),
            move(FILES[4][0], f"{QUERY}/more/0003_c1s6_015971_00.jpg")(root),
        ),
        rf"got '{QUERY}/more/0003_c1s6_015971_00.jpg', want a name",
    ),
    "truncated image": (
        lambda root: (root / FILES[3][0]).write_bytes(jpeg(FILES[3][0])[:-9]),
        rf"market: {FILES[3][0]}: truncated \(\d+ bytes, without an end mark\); download or unpack",
    ),
    "page under an image's name": (
        lambda root: (root / FILES[6][0]).write_text("<html>not found</html>"),
        rf"market: {FILES[6][0]}: no JPEG or PNG file \(22 bytes\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_dataset_names_what_is_wrong_with_the_pedestrians(folder, tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load("train", tmp_path, folder)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("dataset_info.json")) == []


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ([QUERY], "market: no image in query/; manual_dir must be, or hold, the archive Market-1501-v15.09.15.zip"),
        ([TRAIN], "market: no Market-1501 here; manual_dir must be, or hold,"),
        ([QUERY, GALLERY], "market: no image in query/, bounding_box_test/; manual_dir"),
    ],
)
def test_load_dataset_names_missing_folders_of_pedestrians(folder, tmp_path, lost, message):
    for name in lost:
        shutil.rmtree(folder / name)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load("train", tmp_path, folder)
    assert "\n" not in str(caught.value)


def test_load_dataset_refuses_a_truncated_zip(tmp_path):
    path = tmp_path / "Market-1501.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(FILES[0][0], jpeg(FILES[0][0]))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"Market-1501.zip: cannot be read to its end \(File is not a zip file\)"):
        load("train", tmp_path, path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "validation_identities: got -1, want a whole number, at least 0"),
        (3, r"validation_identities: got 3, want fewer than the 3 persons of bounding_box_train in .*Market"),
    ],
)
def test_load_dataset_refuses_wrong_numbers_of_persons(official, tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        load("train", tmp_path, official, validation_identities=value)


def test_load_dataset_tells_how_to_hold_persons_out(data_dir):
    with pytest.raises(ValueError, match="prepared without 'validation'; set validation_identities to a number of"):
        load("validation", data_dir)
