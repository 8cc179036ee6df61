"""Tests of one's own images for retrieval: a folder for each class, of which some train."""

import json
import pickle

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import load_dataset
from distcam_jax.datasets.image_folder import split_by_share

CLASSES = {
    "crow": ["1.jpg"],
    "daw": ["1.png", "2.JPEG"],
    "jay": ["1.jpg"],
    "owl": ["1.jpg", "2.jpg"],
    "wren": ["1.jpg"],
}


def picture(class_id, name):
    image = np.random.default_rng(list(f"{class_id}/{name}".encode())).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    return cv2.imencode(".png" if name.endswith("png") else ".jpg", image)[1].tobytes()


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    for class_id, names in CLASSES.items():
        (root / class_id).mkdir(parents=True)
        for name in names:
            (root / class_id / name).write_bytes(picture(class_id, name))
    (root / "Thumbs.db").write_bytes(b"\0")
    return root


def load(split, tmp_path, **options):
    options = {"title": "birds", "manual_dir": tmp_path / "images", **options}
    return load_dataset("image_folder", split, data_dir=tmp_path / "data", **options)


@pytest.mark.parametrize(
    ("options", "splits"),
    [
        ({}, {"train": ("crow", "daw", "jay"), "test": ("owl", "wren")}),
        (
            {"train_share": 0.4, "validation_share": 0.2},
            {"train": ("crow", "daw"), "validation": ("jay",), "test": ("owl", "wren")},
        ),
        ({"train_share": 0}, {"test": tuple(CLASSES)}),
        ({"train_share": 1}, {"train": tuple(CLASSES)}),
        (
            {"class_splits": {"test": ["wren", "crow"], "train": ["owl"]}},  # the others are left out
            {"train": ("owl",), "test": ("crow", "wren")},
        ),
    ],
)
def test_load_dataset_gives_splits_their_classes(images, tmp_path, options, splits):
    for split, classes in splits.items():
        dataset = load(split, tmp_path, **options)
        assert dataset.class_ids == dataset.class_names == classes
        assert {e["file_name"]: (dataset.class_ids[e["label"]], e["image"]) for e in dataset.source} == {
            f"{class_id}/{name}": (class_id, picture(class_id, name))
            for class_id in classes
            for name in CLASSES[class_id]
        }


def test_load_dataset_prepares_every_choice_of_own_classes(images, tmp_path):
    (images / "splits.json").write_text(json.dumps({"train": ["jay"], "test": ["owl"]}))
    assert load("train", tmp_path, class_splits=images / "splits.json").class_ids == ("jay",)
    assert load("train", tmp_path).class_ids == ("crow", "daw", "jay")
    lists = {"test": ["owl"], "train": ["jay"]}
    assert load("test", tmp_path, class_splits=lists, manual_dir=None).class_ids == ("owl",)


def test_load_dataset_source_of_own_images_can_be_pickled(images, tmp_path):
    source = load("test", tmp_path).source
    copy = pickle.loads(pickle.dumps(source))
    assert [(e["label"], e["image"]) for e in copy] == [(e["label"], e["image"]) for e in source]


def test_load_dataset_takes_names_of_own_classes_from_words(images, tmp_path):
    (images / "words.txt").write_text("owl\tbarn owl, Tyto alba\n")
    assert load("test", tmp_path).class_names == ("barn owl", "wren")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"title": ""}, "title: got '', want a name for these images"),
        ({"train_share": 1.5}, "train_share: got 1.5, want a number from 0 to 1"),
        ({"validation_share": -0.1}, "validation_share: got -0.1, want a number from 0 to 1"),
        (
            {"validation_share": 0.6},
            "train_share: got 0.5 and validation_share 0.6, want shares whose sum is at most 1",
        ),
        (
            {"train_share": 0.05},
            "train_share 0.05 and validation_share 0.0: leave no class for 'train' of 5; change them",
        ),
        ({"class_splits": "none.json"}, "class_splits: got 'none.json', want a JSON file of lists of ids"),
        ({"class_splits": {"val": ["owl"]}}, "class_splits: got lists for val, want some of train, validation, test"),
        (
            {"class_splits": {"train": ["owl"], "test": ["owl"]}},
            "owl is in 'train' and in 'test', want every class once",
        ),
        ({"class_splits": {"train": []}}, r"class_splits: 'train' is \[\], want a list of ids, such as \['wren'\]"),
        (
            {"class_splits": {"test": ["eagle"]}},
            "class_splits: 'eagle' of 'test' is no folder in .*images, which has 5 classes; correct the list",
        ),
    ],
)
def test_load_dataset_refuses_wrong_choices_of_own_classes(images, tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load("test", tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_load_dataset_tells_how_own_images_get_a_split(images, tmp_path):
    message = "prepared without 'validation'; give it a share of the classes, or a list in class_splits"
    with pytest.raises(ValueError, match=message):
        load("validation", tmp_path)


@pytest.mark.parametrize("manual_dir", [None, "nowhere"])
def test_load_dataset_tells_the_layout_of_own_images(tmp_path, manual_dir):
    with pytest.raises(FileNotFoundError, match="no data set here; manual_dir must hold a folder of images for each"):
        load("train", tmp_path, manual_dir=manual_dir and tmp_path / manual_dir)


def test_load_dataset_names_a_damaged_image_of_ones_own(images, tmp_path):
    (images / "owl" / "2.jpg").write_bytes(picture("owl", "2.jpg")[:-9])
    with pytest.raises(ValueError, match=r"images/owl/2.jpg: truncated \(\d+ bytes, without an end mark\)"):
        load("test", tmp_path)


@pytest.mark.parametrize(
    ("count", "train", "validation", "sizes"),
    [(200, 0.5, 0.0, [100, 100]), (10, 0.3, 0.3, [3, 3, 4]), (7, 0.5, 0.25, [4, 1, 2]), (3, 1 / 3, 1 / 3, [1, 1, 1])],
)
def test_split_by_share_rounds_the_borders(count, train, validation, sizes):
    classes = [f"{number:03d}" for number in range(count)]
    splits = split_by_share(classes, train=train, validation=validation)
    assert [len(own) for own in splits.values()] == sizes
    assert [class_id for own in splits.values() for class_id in own] == classes
