"""Tests of what every data set shares: opening, splits, preparation and its interruptions."""

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from distcam_jax.datasets import DATASETS, digits, load_dataset

SIZES = {"train_size": 20, "validation_size": 10, "test_size": 10}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder in which the small digits are prepared."""
    folder = tmp_path_factory.mktemp("data")
    load_dataset("digits", "train", data_dir=folder, **SIZES)
    return folder


def run_python(code, **environment):
    """Runs code in a fresh interpreter, where every warning is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def names(dataset):
    return [example["file_name"] for example in dataset.source]


def test_load_dataset_gives_encoded_images_with_plain_values(data_dir):
    dataset = load_dataset("digits", "validation", data_dir=data_dir, **SIZES)
    assert (dataset.name, dataset.split, dataset.num_classes) == ("digits", "validation", 10)
    assert dataset.class_names == dataset.class_ids == tuple("0123456789")
    assert len(dataset.source) == 10
    example = dataset.source[np.int64(3)]
    assert type(example["image"]) is bytes
    assert example["image"].startswith(b"\x89PNG")
    assert type(example["label"]) is int
    assert type(example["file_name"]) is str
    assert (example["boxes"].dtype, example["boxes"].shape) == (np.float32, (1, 4))


def test_load_dataset_source_is_a_sequence(data_dir):
    source = load_dataset("digits", "train", data_dir=data_dir, **SIZES).source
    everything = [example["file_name"] for example in source]
    assert len(set(everything)) == 20
    assert source[-1]["file_name"] == everything[19]
    assert [example["file_name"] for example in source[2:5]] == everything[2:5]
    for index in (20, -21):
        with pytest.raises(IndexError, match=str(index)):
            source[index]


def test_load_dataset_source_can_be_pickled_after_use(data_dir):
    source = load_dataset("digits", "train[50%:]", data_dir=data_dir, **SIZES).source
    before = source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 10
    assert copy[0]["image"] == before["image"]
    assert repr(copy) == repr(source)
    assert "0x" not in repr(source)


def test_load_dataset_source_of_the_default_options_can_be_pickled(prepared_data):
    source = load_dataset("digits", "test").source
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3]["image"] == source[3]["image"]


def test_load_dataset_slices_are_complementary(data_dir):
    parts = [load_dataset("digits", split, data_dir=data_dir, **SIZES) for split in ("train[:70%]", "train[70%:]")]
    both = load_dataset("digits", "train[70%:]+validation", data_dir=data_dir, **SIZES)
    everything = load_dataset("digits", "train", data_dir=data_dir, **SIZES)
    assert [len(part.source) for part in parts] == [14, 6]
    assert names(parts[0]) + names(parts[1]) == names(everything)
    assert len(both.source) == 16


def test_load_dataset_stores_the_classes_mixed(data_dir):
    labels = [example["label"] for example in load_dataset("digits", "train", data_dir=data_dir, **SIZES).source]
    assert sorted(labels) == sorted([*range(10)] * 2)
    assert len(set(labels[:10])) < 10  # in the order in which they were drawn, each would be there once


@pytest.mark.parametrize(
    ("name", "split", "options", "message"),
    [
        ("mnist", "train", {}, r"name: got 'mnist', want one of digits, tiny_imagenet"),
        ("digits", "dev", {}, r"split: got 'dev', want one of train, validation, test"),
        ("digits", "train+dev", {}, r"split: got 'train\+dev'"),
        ("digits", "", {}, r"split: got ''"),
        ("digits", "train[:x]", {}, r"split: got 'train\[:x\]'"),
        ("digits", "train[:0%]", SIZES, r"split: got 'train\[:0%\]', which holds no examples \(train has 20,"),
        ("tiny_imagenet", "test", {}, r"split: got 'test', want one of train, validation, or"),
        (
            "digits",
            "train",
            {"size": 3},
            r"options: got 'size', want some of seed, train_size, validation_size, test_size",
        ),
    ],
)
def test_load_dataset_refuses_unknown_values(data_dir, name, split, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, split, data_dir=data_dir, **options)


def test_load_dataset_reads_prepared_data_without_drawing(data_dir, monkeypatch):
    monkeypatch.setattr(digits, "draw_canvas", None)
    assert len(load_dataset("digits", "test", data_dir=data_dir, **SIZES).source) == 10


def test_load_dataset_takes_the_folder_from_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("DISTCAM_DATA_DIR", str(data_dir))
    monkeypatch.setattr(digits, "draw_canvas", None)
    assert len(load_dataset("digits", "test", **SIZES).source) == 10


def test_datasets_need_no_tensorflow_network_or_home(tmp_path):
    code = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from distcam_jax.datasets import load_dataset
source = load_dataset("digits", "train", data_dir=sys.argv[-1], train_size=3, validation_size=2, test_size=2).source
assert len([source[i] for i in range(3)]) == 3
assert "tensorflow" not in sys.modules
"""
    home = tmp_path / "home"
    home.mkdir()
    code = f"import sys; sys.argv.append({str(tmp_path / 'data')!r})\n{code}"
    result = run_python(code, HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(home.iterdir()) == []


def test_load_dataset_starts_clean_after_an_error(tmp_path, monkeypatch):
    draw, calls = digits.draw_canvas, []

    def fail_midway(generator, digit):
        calls.append(1)
        if len(calls) == 25:
            raise RuntimeError("disk on fire")
        return draw(generator, digit)

    with monkeypatch.context() as patch:
        patch.setattr(digits, "draw_canvas", fail_midway)
        with pytest.raises(RuntimeError, match="disk on fire"):
            load_dataset("digits", "train", data_dir=tmp_path, **SIZES)
    assert len(names(load_dataset("digits", "train", data_dir=tmp_path, **SIZES))) == 20
    assert list(tmp_path.rglob("incomplete*")) == []


def test_load_dataset_starts_clean_after_a_killed_process(tmp_path):
    code = f"""
import os, signal
from distcam_jax.datasets import digits, load_dataset
draw, calls = digits.draw_canvas, []
def die(generator, digit):
    calls.append(1)
    if len(calls) == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(generator, digit)
digits.draw_canvas = die
load_dataset("digits", "train", data_dir={str(tmp_path)!r}, **{SIZES!r})
"""
    assert run_python(code).returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("incomplete*"))) >= 1
    assert len(names(load_dataset("digits", "train", data_dir=tmp_path, **SIZES))) == 20
    assert list(tmp_path.rglob("incomplete*")) == []


def test_load_dataset_waits_for_another_process_that_prepares(tmp_path):
    folder = tmp_path / "digits" / digits.DigitsConfig(**SIZES).name
    folder.mkdir(parents=True)
    loaded = []
    thread = threading.Thread(target=lambda: loaded.append(load_dataset("digits", "train", data_dir=tmp_path, **SIZES)))
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert list(folder.glob("*1.0.0")) == []
    thread.join(60)
    assert len(loaded[0].source) == 20


def test_load_dataset_prepares_again_where_the_description_is_missing(tmp_path):
    before = names(load_dataset("digits", "train", data_dir=tmp_path, **SIZES))
    for path in tmp_path.rglob("dataset_info.json"):
        path.unlink()
    assert names(load_dataset("digits", "train", data_dir=tmp_path, **SIZES)) == before


def test_load_dataset_names_a_missing_file_of_prepared_data(tmp_path):
    load_dataset("digits", "train", data_dir=tmp_path, **SIZES)
    (path,) = tmp_path.rglob("digits-test.array_record*")
    path.unlink()
    with pytest.raises(ValueError, match=f"{path}: missing; delete the folder {path.parent} and load"):
        load_dataset("digits", "train", data_dir=tmp_path, **SIZES)


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_have_one_default_config_with_named_options(name):
    (config,) = DATASETS[name].BUILDER_CONFIGS
    assert config == type(config)()
