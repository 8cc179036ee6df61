"""Tests of preparing data that is too large to be sorted in memory."""

import resource
import subprocess
import sys

from tensorflow_datasets.core import shuffle

from distcam_jax.datasets import _shuffle, load_dataset

SIZES = {"train_size": 60, "validation_size": 10, "test_size": 10}


def names(folder):
    return [e["file_name"] for e in load_dataset("digits", "train", data_dir=folder, **SIZES).source]


def test_load_dataset_keeps_the_order_of_data_beyond_memory(tmp_path, monkeypatch):
    small = names(tmp_path / "small")
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 10_000)
    assert names(tmp_path / "large") == small
    assert len(set(small)) == 60
    assert list((tmp_path / "large").rglob("*.tmp")) == []


def test_load_dataset_needs_no_thousand_open_files(tmp_path):
    code = f"""
import resource, sys
from tensorflow_datasets.core import shuffle
from distcam_jax.datasets import load_dataset
shuffle.MAX_MEM_BUFFER_SIZE = 1000
resource.setrlimit(resource.RLIMIT_NOFILE, (100, {resource.getrlimit(resource.RLIMIT_NOFILE)[1]}))
sizes = dict(train_size=300, validation_size=10, test_size=10)
print(len(load_dataset("digits", "train", data_dir={str(tmp_path)!r}, **sizes).source))
assert "tensorflow" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "300\n"), result.stderr


def test_plain_files_gives_the_library_back():
    library_class = shuffle._Bucket
    with _shuffle.plain_files():
        assert shuffle._Bucket is not library_class
    assert shuffle._Bucket is library_class
