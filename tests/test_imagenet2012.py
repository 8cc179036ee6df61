"""Tests of `imagenet2012` as tensorflow-datasets prepares it, in miniature."""

import io
import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from distcam_jax.datasets import _builders, load_dataset

NAMES = ["n03", "n01", "n02"]  # of its labels 0, 1, 2; not sorted, so that the place matters
LABEL = {"n01": 0, "n02": 1, "n03": 2}


def encode(seed):
    return cv2.imencode(".jpg", np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8))[1].tobytes()


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """With the features of the library's own builder."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=NAMES),
            "file_name": tfds.features.Text(),
        }
        return _builders._LocalInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("", 5), "validation": self._generate_examples("val_", 2)}

    def _generate_examples(self, prefix, count):
        for i in range(count):
            for wnid in NAMES:
                name = f"{prefix}{wnid}_{i}.JPEG"
                yield name, {"image": io.BytesIO(encode(i)), "label": wnid, "file_name": name}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with _builders._quiet():
        Imagenet2012(data_dir=folder, file_format="array_record").download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return folder


@pytest.fixture
def spoilt(prepared, tmp_path):
    """A copy to spoil, and the folder in it that holds the files."""
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / "imagenet2012" / "5.1.0"


def describe_as(folder, **fields):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_load_dataset_reads_imagenet2012_with_labels_of_sorted_ids(prepared):
    dataset = load_dataset("imagenet2012", "train", data_dir=prepared)
    assert dataset.class_ids == dataset.class_names == ("n01", "n02", "n03")
    assert not dataset.blacklist_known
    found = {e["file_name"]: (e["image"], e["label"]) for e in dataset.source}
    assert found == {f"{wnid}_{i}.JPEG": (encode(i), LABEL[wnid]) for wnid in NAMES for i in range(5)}


def test_load_dataset_gives_imagenet2012_no_boxes(prepared):
    example = load_dataset("imagenet2012", "validation", data_dir=prepared).source[-1]
    assert (example["boxes"].shape, example["boxes"].dtype) == ((0, 4), np.float32)
    assert (type(example["label"]), type(example["image"]), type(example["file_name"])) == (int, bytes, str)


def test_load_dataset_slices_imagenet2012(prepared):
    parts = [load_dataset("imagenet2012", f"train{part}", data_dir=prepared).source for part in ("[:80%]", "[80%:]")]
    assert [len(part) for part in parts] == [12, 3]


def test_load_dataset_source_of_imagenet2012_can_be_pickled(prepared):
    source = load_dataset("imagenet2012", "train", data_dir=prepared).source
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3]["image"] == source[3]["image"]
    assert repr(copy) == repr(source)
    assert "0x" not in repr(source)


def test_load_dataset_takes_the_newest_imagenet2012(spoilt):
    data_dir, folder = spoilt
    shutil.copytree(folder, folder.parent / "5.0.0")
    describe_as(folder.parent / "5.0.0", version="5.0.0", fileFormat="tfrecord")
    assert len(load_dataset("imagenet2012", "train", data_dir=data_dir).source) == 15


def test_load_dataset_reads_imagenet2012_converted_beside_its_first_format(spoilt):
    data_dir, folder = spoilt
    describe_as(folder, fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    source = load_dataset("imagenet2012", "train", data_dir=data_dir).source
    assert pickle.loads(pickle.dumps(source))[14]["image"] == source[14]["image"]


def test_load_dataset_says_how_to_convert_imagenet2012(spoilt):
    data_dir, folder = spoilt
    describe_as(folder, fileFormat="tfrecord")
    message = rf"{folder}: stored as tfrecord, want array_record; .*run `tfds convert_format --dataset_version_dir="
    with pytest.raises(ValueError, match=message):
        load_dataset("imagenet2012", "train", data_dir=data_dir)


def test_load_dataset_names_a_missing_file_of_imagenet2012(spoilt):
    data_dir, folder = spoilt
    (path,) = folder.glob("*validation.array_record*")
    path.unlink()
    with pytest.raises(ValueError, match=f"{path}: missing"):
        load_dataset("imagenet2012", "train", data_dir=data_dir)


def test_load_dataset_says_which_splits_of_imagenet2012_are_there(spoilt):
    data_dir, folder = spoilt
    splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
    describe_as(folder, splits=[split for split in splits if split["name"] == "train"])
    with pytest.raises(ValueError, match=r"split: got 'validation', want one of train, or"):
        load_dataset("imagenet2012", "validation", data_dir=data_dir)


def test_load_dataset_says_where_imagenet2012_should_be(tmp_path):
    message = rf"^{tmp_path / 'imagenet2012'}: no imagenet2012 here; data_dir must be .* 'ilsvrc2012' prepares"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset("imagenet2012", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("test", {}, r"split: got 'test', want one of train, validation"),
        ("train[:0]", {}, r"split: got 'train\[:0\]', which holds no examples \(train has 15, validation has 6\)"),
        ("train", {"classes": "n01"}, r"options: got 'classes', want none"),
    ],
)
def test_load_dataset_refuses_unknown_values_of_imagenet2012(prepared, split, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("imagenet2012", split, data_dir=prepared, **options)
