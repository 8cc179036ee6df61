"""Tests of Tiny-ImageNet with splits that share no class, and of what every such data set promises."""

import json
import pickle

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import load_dataset, tiny_imagenet_fewshot
from distcam_jax.datasets.tiny_imagenet_fewshot import TinyImagenetFewshotConfig

CLASSES = {"n01": "goldfish", "n02": "goose", "n03": "crane", "n04": "tench", "n05": "koala"}
SPLITS = {"few": ["n04", "n02"], "tune": ["n01"], "new": ["n05", "n03"], "other": ["n01", "n02"], "none": []}
NAMES = ("few", "tune", "new")


def jpeg(seed):
    image = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The official layout with 5 classes of 2 training images and 1 validation image, and a file of lists."""
    root = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(CLASSES)))
    (root / "words.txt").write_text("".join(f"{wnid}\t{name}, another\n" for wnid, name in CLASSES.items()))
    (root / "splits.json").write_text(json.dumps(SPLITS))
    val = ""
    for c, wnid in enumerate(CLASSES):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for i in range(2):
            (root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(jpeg(10 * c + i))
        lines = [f"{wnid}_{i}.JPEG\t{c}\t{i}\t30\t40\n" for i in range(2)]
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(lines))
        (root / "val" / "images" / f"val_{c}.JPEG").write_bytes(jpeg(100 + c))
        val += f"val_{c}.JPEG\t{wnid}\t{c}\t5\t6\t63\n"
    (root / "val" / "val_annotations.txt").write_text(val)
    return root


@pytest.fixture(scope="module")
def data_dir(folder, tmp_path_factory):
    """A folder in which the three lists are prepared."""
    data_dir = tmp_path_factory.mktemp("data")
    load("train", data_dir, folder)
    return data_dir


def load(split, data_dir, folder, **options):
    options = {"class_splits": folder / "splits.json", "split_names": NAMES, **options}
    return load_dataset("tiny_imagenet_fewshot", split, data_dir=data_dir, manual_dir=folder, **options)


@pytest.mark.parametrize(
    ("split", "wnids"),
    [
        ("train", ("n02", "n04")),
        ("validation", ("n01",)),
        ("test", ("n03", "n05")),
        ("train+validation", ("n02", "n04", "n01")),
        ("test+train", ("n02", "n04", "n03", "n05")),
    ],
)
def test_load_dataset_gives_a_split_its_own_classes(folder, data_dir, split, wnids):
    dataset = load(split, data_dir, folder)
    assert (dataset.class_ids, dataset.num_classes) == (wnids, len(wnids))
    assert dataset.class_names == tuple(CLASSES[wnid] for wnid in wnids)
    expected = {}
    for label, wnid in enumerate(wnids):
        c = list(CLASSES).index(wnid)
        for i in range(2):
            expected[f"{wnid}_{i}.JPEG"] = (label, [[c, i, 31, 41]], jpeg(10 * c + i))
        expected[f"val_{c}.JPEG"] = (label, [[c, 5, 7, 64]], jpeg(100 + c))
    found = {e["file_name"]: (e["label"], e["boxes"].tolist(), e["image"]) for e in dataset.source}
    assert found == expected
    assert len(dataset.source) == 3 * len(wnids)


def test_load_dataset_gives_part_of_a_split_all_its_classes(folder, data_dir):
    dataset = load("test[:1]", data_dir, folder)
    assert (len(dataset.source), dataset.class_ids) == (1, ("n03", "n05"))


def test_load_dataset_source_keeps_its_labels_when_pickled(folder, data_dir):
    source = load("test", data_dir, folder).source
    copy = pickle.loads(pickle.dumps(source))
    assert [example["label"] for example in copy] == [example["label"] for example in source]
    assert repr(copy) == repr(source)
    assert "0x" not in repr(source)


def test_load_dataset_says_nothing_when_a_source_is_unpickled(folder, data_dir, capfd, caplog):
    pickle.loads(pickle.dumps(load("test", data_dir, folder).source))
    assert (capfd.readouterr().err, caplog.text) == ("", "")


def test_load_dataset_prepares_every_choice_of_classes_once(folder, data_dir, monkeypatch):
    monkeypatch.setattr(tiny_imagenet_fewshot.files, "scan", None)  # whoever prepares fails
    lists = {"a": ["n02", "n04"], "b": ["n01"], "c": ["n03", "n05"]}
    assert load("test", data_dir, folder, class_splits=lists, split_names="a, b,c").class_ids == ("n03", "n05")
    with pytest.raises(TypeError):
        load("test", data_dir, folder, split_names=("new", "tune", "few"))


def test_tiny_imagenet_fewshot_config_takes_plain_text(folder):
    path = folder / "splits.json"
    name = TinyImagenetFewshotConfig(class_splits=path, split_names=NAMES).name
    assert TinyImagenetFewshotConfig(class_splits=str(path), split_names="few,tune,new").name == name
    assert TinyImagenetFewshotConfig(class_splits="", split_names="").split_names == ("base64", "val16", "novel20")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_splits": ""}, "class_splits: got none, want a JSON file of lists of WordNet ids by name"),
        (
            {"class_splits": "missing.json"},
            r"class_splits: got 'missing.json', want a JSON file of lists of ids \(.*\)",
        ),
        ({"split_names": ("few", "tune")}, r"split_names: got \['few', 'tune'\], want 3 names, for train, validation"),
        ({"split_names": ("few", "tune", "old")}, "split_names: got 'old', want names of lists in .*: few, tune, new,"),
        ({"split_names": ("few", "none", "new")}, r"class_splits: .*: 'none' is \[\], want a list of ids"),
        ({"split_names": ("few", "other", "new")}, "n02 is in 'few' and in 'other', want every class once"),
        ({"class_splits": {"few": ["n01", "n01"], "tune": ["n02"], "new": ["n03"]}}, "n01 is twice in 'few'"),
        ({"class_splits": {"few": "n01", "tune": ["n02"], "new": ["n03"]}}, "'few' is 'n01', want a list of ids"),
        ({"class_splits": {"few": ["n7"], "tune": ["n02"], "new": ["n03"]}}, "class_splits: 'n7' is none of the 5 ids"),
    ],
)
def test_load_dataset_refuses_wrong_lists(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load("train", tmp_path, folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("[1]", "holds list, want lists of ids by"), ("no", "want a JSON file")])
def test_load_dataset_refuses_a_file_without_lists(folder, tmp_path, text, message):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(ValueError, match=f"class_splits: .*splits.json'? ?.*{message}"):
        load("train", tmp_path, folder, class_splits=tmp_path / "splits.json")


def test_load_dataset_refuses_images_without_a_line(folder, tmp_path):
    extra = folder / "val" / "images" / "val_9.JPEG"
    extra.write_bytes(jpeg(0))
    with pytest.raises(ValueError, match=r"val/images/val_9.JPEG has no line in the list of boxes"):
        load("train", tmp_path, folder)
    extra.unlink()


def test_load_dataset_tells_where_the_data_comes_from(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no Tiny-ImageNet here; manual_dir must be, or hold, .*\.zip$"):
        load("train", tmp_path, tmp_path, class_splits=folder / "splits.json")
