"""Tests of tools/convert_tiny_imagenet.py with a miniature of Tiny-ImageNet."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from distcam_jax.datasets import load_dataset
from tools.convert_tiny_imagenet import convert

WNIDS = ("n02", "n01", "n03")
COUNT = 12  # images a class, so that _10 is not after _9 by name


def jpeg(seed):
    image = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("".join(f"{wnid}\tname of {wnid}, other\n" for wnid in WNIDS))
    for c, wnid in enumerate(WNIDS):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for i in range(2):
            (root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(jpeg(10 * c + i))
        lines = "".join(f"{wnid}_{i}.JPEG\t{c}\t{i}\t{20 + c}\t63\n" for i in range(2))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(lines)
    for i in range(COUNT):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpeg(100 + i))
    lines = "".join(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t{i}\t0\t{i}\t9\n" for i in range(COUNT))
    (root / "val" / "val_annotations.txt").write_text(lines)
    return root


def examples(tmp_path, split):
    dataset = load_dataset("ilsvrc2012", split, data_dir=tmp_path / "data", manual_dir=tmp_path / "official")
    return {e["file_name"]: (e["image"], dataset.class_ids[e["label"]], e["boxes"].tolist()) for e in dataset.source}


def test_convert_keeps_images_classes_and_boxes(source, tmp_path):
    assert convert(source, tmp_path / "official") == (6, 12)
    assert examples(tmp_path, "validation") == {
        f"ILSVRC2012_val_{i + 1:08d}.JPEG": (jpeg(100 + i), WNIDS[i % 3], [[i, 0, i + 1, 10]]) for i in range(COUNT)
    }
    assert examples(tmp_path, "train") == {
        f"{wnid}_{i}.JPEG": (jpeg(10 * c + i), wnid, [[c, i, 21 + c, 64]])
        for c, wnid in enumerate(WNIDS)
        for i in range(2)
    }


def test_convert_takes_chosen_classes(source, tmp_path):
    assert convert(source, tmp_path / "official", classes="n03,n01") == (4, 8)
    assert {wnid for _, wnid, _ in examples(tmp_path, "train").values()} == {"n01", "n03"}


def test_convert_tiny_imagenet_says_what_is_wrong_in_one_line(tmp_path):
    script = Path(__file__).parents[1] / "tools" / "convert_tiny_imagenet.py"
    result = subprocess.run(
        [sys.executable, script, tmp_path / "nowhere", tmp_path / "official"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "no Tiny-ImageNet here" in result.stderr
    assert result.stderr.count("\n") == 1
