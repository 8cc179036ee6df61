"""Tests of CUB-200-2011 with a miniature of the official files."""

import pickle
import shutil
import tarfile

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import load_dataset
from distcam_jax.input_pipeline import make_eval_batches

CLASSES = {  # number -> name, not in the order of the numbers
    3: "003.Sooty_Albatross",
    1: "001.Black_footed_Albatross",
    4: "004.Groove_billed_Ani",
    5: "005.Crested_Auklet",
    2: "002.Laysan_Albatross",
}
TRAINING = {"retrieval": (1, 2), "classification": (1, 2, 3, 4, 5)}
WIDTH, HEIGHT = 12, 10


def birds():
    """Number, class, file, official split (1: training): two images of a class, one of the last."""
    for number in range(1, 10):
        class_number = (number + 1) // 2
        name = f"Bird_{number:04d}_{7 * number}"
        yield number, class_number, f"{CLASSES[class_number]}/{name}", number % 2


def jpeg(number):
    """The first image of a class is grey."""
    shape = (HEIGHT, WIDTH) if number % 2 else (HEIGHT, WIDTH, 3)
    image = np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def mask(number):
    return cv2.imencode(".png", np.full((HEIGHT, WIDTH), 20 * number, np.uint8))[1].tobytes()


def write_official(root):
    """Writes CUB_200_2011 and, beside it, segmentations."""
    images = root / "CUB_200_2011" / "images"
    lists = {"images": "", "image_class_labels": "", "bounding_boxes": "", "train_test_split": ""}
    for number, class_number, path, training in birds():
        for name, data in ((images / f"{path}.jpg", jpeg(number)), (root / f"segmentations/{path}.png", mask(number))):
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(data)
        lists["images"] += f"{number} {path}.jpg\n"
        lists["image_class_labels"] += f"{number} {class_number}\n"
        lists["bounding_boxes"] += f"{number} {number % 3}.0 1.0 {2 + number % 3}.0 8.0\n"
        lists["train_test_split"] += f"{number} {training}\n"
    lists["classes"] = "".join(f"{number} {name}\n" for number, name in CLASSES.items())
    for name, text in lists.items():
        (images.parent / f"{name}.txt").write_text(text)
    (images / "Thumbs.db").write_bytes(b"\0")
    (images.parent / "attributes").mkdir()
    (images.parent / "attributes" / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    return root


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def data_dir(official, tmp_path_factory):
    """A folder in which both protocols are prepared."""
    folder = tmp_path_factory.mktemp("data")
    for protocol in TRAINING:
        load("train", folder, official, protocol=protocol)
    return folder


@pytest.fixture
def folder(official, tmp_path):
    """A copy to be spoilt."""
    shutil.copytree(official, tmp_path / "downloads")
    return tmp_path / "downloads"


def load(split, data_dir, manual_dir=None, **options):
    return load_dataset("cub200", split, data_dir=data_dir, manual_dir=manual_dir, **options)


def found(dataset):
    return {
        example["file_name"]: (dataset.class_ids[example["label"]], example["boxes"].tolist(), example["image"])
        for example in dataset.source
    }


def expected(numbers):
    """What a split holds, by hand: x, y, x + width + 1, y + height + 1."""
    return {
        f"{path}.jpg": (CLASSES[c], [[number % 3, 1, number % 3 + 2 + number % 3 + 1, 10]], jpeg(number))
        for number, c, path, _ in birds()
        if number in numbers
    }


@pytest.mark.parametrize(
    ("split", "classes", "numbers"),
    [
        ("train", (1, 2), (1, 2, 3, 4)),  # half of five
        ("test", (3, 4, 5), (5, 6, 7, 8, 9)),
        ("train+test", (1, 2, 3, 4, 5), range(1, 10)),
    ],
)
def test_load_dataset_halves_the_classes_for_retrieval(data_dir, split, classes, numbers):
    dataset = load(split, data_dir)
    assert dataset.class_ids == tuple(CLASSES[number] for number in classes)
    assert found(dataset) == expected(numbers)


@pytest.mark.parametrize(("split", "numbers"), [("train", (1, 3, 5, 7, 9)), ("test", (2, 4, 6, 8))])
def test_load_dataset_takes_the_official_split_for_classification(data_dir, split, numbers):
    dataset = load(split, data_dir, protocol="classification")
    assert dataset.class_ids == tuple(CLASSES[number] for number in (1, 2, 3, 4, 5))
    assert found(dataset) == expected(numbers)


def test_load_dataset_names_birds_readably(data_dir):
    assert load("train", data_dir).class_names == ("Black footed Albatross", "Laysan Albatross")


def test_load_dataset_holds_out_the_last_training_classes(official, tmp_path):
    splits = {split: load(split, tmp_path, official, validation_classes=1) for split in ("train", "validation", "test")}
    assert {split: dataset.class_ids for split, dataset in splits.items()} == {
        "train": (CLASSES[1],),
        "validation": (CLASSES[2],),
        "test": (CLASSES[3], CLASSES[4], CLASSES[5]),
    }
    assert found(splits["validation"]) == expected((3, 4))


def test_load_dataset_source_of_birds_can_be_pickled(data_dir):
    source = load("test", data_dir).source
    copy = pickle.loads(pickle.dumps(source))
    assert [(e["label"], e["image"]) for e in copy] == [(e["label"], e["image"]) for e in source]
    assert repr(copy) == repr(source)


def test_make_eval_batches_reads_grey_birds(data_dir):
    dataset = load("train", data_dir)
    batch = next(iter(make_eval_batches(dataset.source, batch_size=4, image_size=(HEIGHT, WIDTH), num_threads=0)))
    for image, index in zip(batch["image"], batch["index"], strict=True):
        is_grey = int(dataset.source[int(index)]["file_name"].split("_")[-2]) % 2 == 1
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert (np.ptp(image, axis=-1).max() == 0) == is_grey


@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_load_dataset_gives_segmentations_as_they_are(official, tmp_path, kind):
    if kind == "tgz":
        official = packed(official, tmp_path, "segmentations")
    source = load("test", tmp_path, official, segmentations=True).source
    assert {example["file_name"]: example["segmentation"] for example in source} == {
        f"{path}.jpg": mask(number) for number, c, path, _ in birds() if c > 2
    }
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0]["segmentation"] == source[0]["segmentation"]


def packed(official, folder, *also):
    """The official archive in a folder of its own."""
    home = folder / "archives"
    home.mkdir()
    for name in ("CUB_200_2011", *also):
        with tarfile.open(home / f"{name}.tgz", "w:gz") as archive:
            archive.add(official / name, name)
    return home


@pytest.mark.parametrize("what", ["folder", "archive", "folder of the archive"])
def test_load_dataset_finds_the_birds(official, data_dir, tmp_path, what):
    manual_dir = official / "CUB_200_2011" if what == "folder" else packed(official, tmp_path)
    dataset = load("test", tmp_path, manual_dir / "CUB_200_2011.tgz" if what == "archive" else manual_dir)
    assert found(dataset) == expected((5, 6, 7, 8, 9))
    names = [example["file_name"] for example in dataset.source]
    assert names == [example["file_name"] for example in load("test", data_dir).source]


def test_load_dataset_cuts_what_is_little_beyond_the_border(folder, tmp_path):
    lines = folder / "CUB_200_2011" / "bounding_boxes.txt"
    lines.write_text(lines.read_text().replace("1 1.0 1.0 3.0 8.0", "1 -1.5 0.5 12.5 9.0"))
    box = next(e["boxes"] for e in load("train", tmp_path, folder).source if "0001" in e["file_name"])
    assert box.tolist() == [[0, 0.5, 12, 10]]


def edit(name, old, new):
    def spoil(root):
        path = root / "CUB_200_2011" / f"{name}.txt"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return spoil


def image_of(root, number):
    path = next(path for own, _, path, _ in birds() if own == number)
    return root / "CUB_200_2011" / "images" / f"{path}.jpg"


FAULTS = {
    "list missing": (
        lambda root: (root / "CUB_200_2011" / "classes.txt").unlink(),
        "CUB_200_2011: classes.txt is missing; download or unpack the data again",
    ),
    "too few fields": (
        edit("bounding_boxes", "2 2.0 1.0 4.0 8.0", "2 2.0 1.0 4.0"),
        "bounding_boxes.txt line 2: got '2 2.0 1.0 4.0', want image, x, y, width, height; download",
    ),
    "no number": (
        edit("image_class_labels", "3 2\n", "x 2\n"),
        "image_class_labels.txt line 3: got 'x 2', want image, class; download",
    ),
    "image twice": (
        edit("train_test_split", "2 0\n", "1 0\n"),
        "train_test_split.txt line 1 and train_test_split.txt line 2 are of image 1, want one",
    ),
    "image without a class": (
        edit("image_class_labels", "3 2\n", ""),
        "image_class_labels.txt has no line for image 3, though images.txt line 3 does",
    ),
    "unknown class": (
        edit("image_class_labels", "3 2\n", "3 7\n"),
        "image_class_labels.txt line 3: got class 7, want one of the 5 classes in classes.txt",
    ),
    "neither training nor test": (
        edit("train_test_split", "2 0\n", "2 2\n"),
        "train_test_split.txt line 2: got '2', want 0 or 1",
    ),
    "box without a width": (
        edit("bounding_boxes", "2 2.0 1.0 4.0 8.0", "2 2.0 1.0 0.0 8.0"),
        "bounding_boxes.txt line 2: got '2.0 1.0 0.0 8.0', want numbers, width and height above 0",
    ),
    "box of words": (edit("bounding_boxes", "2 2.0", "2 left"), "got 'left 1.0 4.0 8.0', want numbers"),
    "box outside": (
        edit("bounding_boxes", "2 2.0 1.0 4.0 8.0", "2 2.0 1.0 14.0 8.0"),
        r"images/001.*Bird_0002_14.jpg: 12 x 10 pixels, too small for the box \(2.0, 1.0, 17.0, 10.0\) of bounding_box",
    ),
    "image missing": (
        lambda root: image_of(root, 2).unlink(),
        r"images/001.*0002_14.jpg is missing, though images.txt names it \(1 such images\)",
    ),
    "truncated image": (
        lambda root: image_of(root, 2).write_bytes(jpeg(2)[:-9]),
        r"images/001.*0002_14.jpg: truncated \(\d+ bytes, without an end mark\); download",
    ),
    "empty list": (
        lambda root: (root / "CUB_200_2011" / "classes.txt").write_text(""),
        "CUB_200_2011: classes.txt is empty",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_dataset_names_what_is_wrong_with_the_birds(folder, tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load("train", tmp_path, folder)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("dataset_info.json")) == []


def test_load_dataset_refuses_a_truncated_archive(official, tmp_path):
    archive = packed(official, tmp_path) / "CUB_200_2011.tgz"
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"CUB_200_2011.tgz: .*; download or unpack the data again") as caught:
        load("train", tmp_path, archive)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda masks: shutil.rmtree(masks),
            FileNotFoundError,
            "CUB_200_2011: segmentations/ missing; put the folder or the archive segmentations.tgz there",
        ),
        (
            lambda masks: (masks / f"{CLASSES[1]}/Bird_0002_14.png").unlink(),
            ValueError,
            r"segmentations: 001.*Bird_0002_14.png is missing, though images.txt names its image",
        ),
        (
            lambda masks: (masks / f"{CLASSES[1]}/Bird_0002_14.png").write_bytes(mask(2)[:-20]),
            ValueError,
            r"segmentation of 001.*Bird_0002_14.jpg: truncated",
        ),
        (
            lambda masks: (masks / f"{CLASSES[1]}/Bird_0002_14.png").write_bytes(
                cv2.imencode(".png", np.zeros((HEIGHT, 7), np.uint8))[1].tobytes()
            ),
            ValueError,
            r"the segmentation of 001.*Bird_0002_14.jpg has 7 x 10 pixels, which is not the size of the image",
        ),
    ],
    ids=["all", "missing", "truncated", "size"],
)
def test_load_dataset_names_what_is_wrong_with_segmentations(folder, tmp_path, spoil, error, message):
    spoil(folder / "segmentations")
    with pytest.raises(error, match=message) as caught:
        load("train", tmp_path, folder, segmentations=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "search"}, "protocol: got 'search', want one of retrieval, classification"),
        ({"validation_classes": -1}, "validation_classes: got -1, want a whole number, at least 0"),
        ({"validation_classes": 2}, "validation_classes: got 2, want fewer than the 2 classes that train"),
        (
            {"validation_classes": 1, "protocol": "classification"},
            "validation_classes: got 1 for the protocol 'classification', want 0",
        ),
    ],
)
def test_load_dataset_refuses_wrong_options_for_birds(official, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load("train", tmp_path, official, **options)


def test_load_dataset_tells_how_to_get_a_validation_split(data_dir):
    with pytest.raises(ValueError, match="prepared without 'validation'; set validation_classes to a number of"):
        load("validation", data_dir)


def test_load_dataset_tells_where_birds_come_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="no CUB-200-2011 here; manual_dir must be, or hold, the archive CUB_2"):
        load("train", tmp_path, tmp_path)
