"""Tests of few-shot data as a folder of images for each class: one's own, tieredImageNet, Omniglot."""

import pickle

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import load_dataset

LAYOUTS = {  # folder of the split -> class -> files
    "class_folders": {
        "train": {"wren": ["1.jpg", "2.JPEG"], "robin": ["1.jpg"]},
        "val": {"owl": ["a.png"]},
        "test": {"crow": ["1.jpg"], "daw": ["1.PNG", "2.jpg"]},
    },
    "tiered_imagenet": {"train": {"n02": ["n02_7.jpg"]}, "val": {"n01": ["n01_7.jpg"]}, "test": {"n03": ["n03_1.jpg"]}},
    "omniglot": {
        "images_background": {"Greek/character02": ["0394_01.png"], "Greek/character01": ["0393_01.png"]},
        "images_evaluation": {"Angelic/character01": ["0965_01.png", "0965_02.png"]},
    },
}
SPLITS = {"train": "train", "val": "validation", "test": "test"}
SPLITS |= {"images_background": "train", "images_evaluation": "test"}
OPTIONS = {"class_folders": {"title": "birds"}}


def picture(*key, extension):
    """An image that is another for every key."""
    seed = list("/".join(key).encode())
    image = np.random.default_rng(seed).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    return cv2.imencode(".png" if extension.lower() == "png" else ".jpg", image)[1].tobytes()


def write_layout(root, layout):
    """Writes a layout and returns split -> class and file -> bytes."""
    written = {}
    for folder, classes in layout.items():
        for class_id, names in classes.items():
            (root / folder / class_id).mkdir(parents=True)
            for name in names:
                data = picture(folder, class_id, name, extension=name.rpartition(".")[2])
                (root / folder / class_id / name).write_bytes(data)
                written.setdefault(SPLITS[folder], {})[f"{class_id}/{name}"] = data
    return written


def load(name, split, tmp_path, manual_dir="images", **options):
    folder = manual_dir and tmp_path / manual_dir
    options = options or OPTIONS.get(name, {})
    return load_dataset(name, split, data_dir=tmp_path / "data", manual_dir=folder, **options)


@pytest.fixture
def birds(tmp_path):
    write_layout(tmp_path / "images", LAYOUTS["class_folders"])
    return tmp_path / "images"


@pytest.mark.parametrize("name", LAYOUTS)
def test_load_dataset_reads_folders_of_classes(tmp_path, name):
    written = write_layout(tmp_path / "images", LAYOUTS[name])
    for split, images in written.items():
        dataset = load(name, split, tmp_path)
        classes = sorted({key.rpartition("/")[0] for key in images})
        assert dataset.class_ids == dataset.class_names == tuple(classes)
        assert {e["file_name"]: e["image"] for e in dataset.source} == images
        assert {e["file_name"]: classes[e["label"]] for e in dataset.source} == {
            key: key.rpartition("/")[0] for key in images
        }
        assert {e["boxes"].shape for e in dataset.source} == {(0, 4)}


def test_load_dataset_source_of_folders_can_be_pickled(birds, tmp_path):
    source = load("class_folders", "test", tmp_path).source
    copy = pickle.loads(pickle.dumps(source))
    assert [(e["label"], e["image"]) for e in copy] == [(e["label"], e["image"]) for e in source]
    assert (repr(copy), "0x" in repr(copy)) == (repr(source), False)


def test_load_dataset_takes_names_of_classes_from_words(birds, tmp_path):
    (birds / "words.txt").write_text("crow\tcarrion crow, Corvus corone\nowl\tbarn owl\nelk\tmoose\n")
    assert load("class_folders", "validation+test", tmp_path).class_names == ("barn owl", "carrion crow", "daw")
    assert load("class_folders", "test", tmp_path).class_ids == ("crow", "daw")


def test_load_dataset_keeps_titles_apart(birds, tmp_path):
    write_layout(tmp_path / "others", {"train": {"elk": ["1.jpg"]}})
    assert load("class_folders", "train", tmp_path, title="birds").class_ids == ("robin", "wren")
    assert load("class_folders", "train", tmp_path, "others", title="elks").class_ids == ("elk",)
    assert load("class_folders", "train", tmp_path, None, title="birds").class_ids == ("robin", "wren")


def test_load_dataset_ignores_hidden_files(birds, tmp_path):
    for stray in (".DS_Store", "train/Thumbs.db", "train/wren/._1.jpg", "train/wren/thumbs.db", "train/.cache"):
        (birds / stray).write_bytes(b"\0")
    (birds / "train" / "__MACOSX").mkdir()
    assert load("class_folders", "train", tmp_path).class_ids == ("robin", "wren")


def test_load_dataset_tells_which_split_is_missing(birds, tmp_path):
    (birds / "val").rename(birds / "dev")
    assert len(load("class_folders", "train+test", tmp_path).source) == 6
    message = (
        r"split: got 'train\+validation', but the data was prepared without 'validation'; put .* delete the folder"
    )
    with pytest.raises(ValueError, match=message):
        load("class_folders", "train+validation", tmp_path)


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("tiered_imagenet", "val", r"images: val/ missing; manual_dir must hold train/, val/ and test/"),
        (
            "omniglot",
            "images_evaluation",
            r"images: images_evaluation/ missing; manual_dir must hold images_background/",
        ),
    ],
)
def test_load_dataset_names_a_missing_folder(tmp_path, name, lost, message):
    write_layout(tmp_path / "images", {folder: classes for folder, classes in LAYOUTS[name].items() if folder != lost})
    with pytest.raises(FileNotFoundError, match=message):
        load(name, "train", tmp_path)


@pytest.mark.parametrize("manual_dir", [None, "nowhere"])
def test_load_dataset_tells_the_layout_of_folders(tmp_path, manual_dir):
    message = r": no data set here; manual_dir must hold train/, val/ and test/, with a folder"
    with pytest.raises(FileNotFoundError, match=message):
        load("class_folders", "train", tmp_path, manual_dir)


@pytest.mark.parametrize(
    ("title", "message"),
    [("", "title: got '', want a name for these images"), ("a/b", "title: got 'a/b', want letters, digits")],
)
def test_load_dataset_refuses_wrong_titles(birds, tmp_path, title, message):
    with pytest.raises(ValueError, match=message):
        load("class_folders", "train", tmp_path, title=title)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-9])


FAULTS = {
    "class in two splits": (
        lambda root: (root / "val/owl").rename(root / "val/wren"),
        "class 'wren' is in train and validation, want splits that share no class",
    ),
    "empty class": (
        lambda root: (root / "test/crow/1.jpg").unlink(),
        "images/test/crow: a class without an image; put some into the folder, or delete it",
    ),
    "class of hidden files": (
        lambda root: (root / "test/crow/1.jpg").rename(root / "test/crow/.1.jpg"),
        "images/test/crow: a class without an image",
    ),
    "split without classes": (
        lambda root: (root / "val/owl").rename(root / "train/owl"),
        "images/val: no class in it; want a folder for each class, with its images",
    ),
    "no image": (
        lambda root: (root / "train/wren/notes.txt").write_text(""),
        "images/train/wren/notes.txt: no JPEG or PNG by its name; take it out of the folder, or convert it",
    ),
    "image outside of a class": (
        lambda root: (root / "train/wren/1.jpg").rename(root / "train/1.jpg"),
        "images/train/1.jpg: an image beside the folders of the classes; move it into one of them",
    ),
    "folder in a class": (
        lambda root: (root / "train/wren/images").mkdir(),
        "images/train/wren/images: a folder where only images may lie",
    ),
    "two folders for a split": (
        lambda root: (root / "validation").mkdir(),
        "images: holds both val/ and validation/, want one folder for 'validation'",
    ),
    "truncated JPEG": (
        lambda root: shorten(root / "train/wren/1.jpg"),
        r"images/train/wren/1.jpg: truncated \(\d+ bytes, without an end mark\); download or unpack the data again",
    ),
    "truncated PNG": (lambda root: shorten(root / "val/owl/a.png"), r"images/val/owl/a.png: truncated \(\d+ bytes"),
    "page under an image's name": (
        lambda root: (root / "test/daw/2.jpg").write_text("<html>not found</html>"),
        r"images/test/daw/2.jpg: no JPEG or PNG file \(22 bytes\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_dataset_names_what_is_wrong_in_folders(birds, tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(birds)
    for _ in range(2):  # nothing half-done is taken for data
        with pytest.raises(ValueError, match=message) as caught:
            load("class_folders", "train", tmp_path)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("dataset_info.json")) == []


def test_load_dataset_refuses_an_alphabet_without_characters(tmp_path):
    write_layout(tmp_path / "images", LAYOUTS["omniglot"])
    (tmp_path / "images" / "images_background" / "Latin").mkdir()
    with pytest.raises(ValueError, match="images/images_background/Latin: no class in it"):
        load("omniglot", "train", tmp_path)
