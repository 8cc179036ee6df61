"""Tests of the digits: their splits, their boxes and their clutter."""

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from distcam_jax.datasets import digits, load_dataset

SIZES = {"train_size": 60, "validation_size": 20, "test_size": 20}


def load(split, folder, **options):
    return load_dataset("digits", split, data_dir=folder, **{**SIZES, **options})


def by_name(dataset):
    return {example["file_name"]: example for example in dataset.source}


def as_pixels(example):
    return cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def draw(seed):
    """One canvas of some source digit."""
    return digits.draw_canvas(np.random.default_rng(seed), load_digits().images[seed])


@pytest.fixture
def black_ground(monkeypatch):
    monkeypatch.setattr(digits, "_ground", lambda generator: np.zeros((64, 64, 3), np.float32))


@pytest.fixture
def without_strokes(monkeypatch):
    monkeypatch.setattr(digits, "_add_strokes", lambda *arguments: None)


def test_split_sources_deals_every_digit_once_and_every_class_alike():
    labels = load_digits().target
    sources = digits.split_sources(labels, seed=3)
    assert sorted(np.concatenate(list(sources.values())).tolist()) == list(range(1797))
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        found = np.bincount(labels[sources[split]], minlength=10)
        assert np.abs(found - share * np.bincount(labels)).max() <= 1


def test_split_sources_lets_the_classes_take_turns():
    labels = load_digits().target
    for indices in digits.split_sources(labels, seed=0).values():
        for start in range(0, 150, 10):
            assert sorted(labels[indices[start : start + 10]]) == list(range(10))


def test_split_sources_depends_on_the_seed_alone():
    labels = load_digits().target
    first, again, other = (digits.split_sources(labels, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[split], again[split]) for split in first)
    assert set(first["test"].tolist()) != set(other["test"].tolist())


def test_digits_splits_share_no_source_digit(tmp_path):
    used = [
        {example["source_index"] for example in load(split, tmp_path).source}
        for split in ("train", "validation", "test")
    ]
    assert [len(indices) for indices in used] == [60, 20, 20]
    assert len(set.union(*used)) == 100


def test_digits_labels_are_those_of_the_source(tmp_path):
    target = load_digits().target
    for example in load("test", tmp_path).source:
        assert example["label"] == target[example["source_index"]]


def test_digits_are_the_same_for_the_same_seed(tmp_path):
    first, again, other = (
        by_name(load("train", tmp_path / name, seed=seed)) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert {name: example["image"] for name, example in first.items()} == {
        name: example["image"] for name, example in again.items()
    }
    assert all(first[name]["image"] != other[name]["image"] for name in first)


def test_digits_longer_split_starts_with_the_shorter_one(tmp_path):
    short, long = (by_name(load("train", tmp_path, train_size=size)) for size in (5, 9))
    assert len(long) == 9
    assert all(long[name]["image"] == example["image"] for name, example in short.items())


def test_digits_draws_a_source_again_elsewhere(tmp_path):
    sources = len(digits.split_sources(load_digits().target, seed=0)["validation"])
    found = by_name(load("validation", tmp_path, validation_size=sources + 1))
    first, again = found["validation_00000.png"], found[f"validation_{sources:05d}.png"]
    assert first["source_index"] == again["source_index"]
    assert first["boxes"].tolist() != again["boxes"].tolist()


def test_digits_images_are_rgb_with_many_colours(tmp_path):
    image = as_pixels(load("train", tmp_path).source[0])
    assert image.shape == (64, 64, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 500
    assert np.abs(image[..., 0].astype(int) - image[..., 2]).max() > 50


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_draw_canvas_box_is_tight_around_the_ink(black_ground, without_strokes, seed):
    image, boxes = draw(seed)
    light = image.max(axis=-1) / image.max()
    ys, xs = np.nonzero(light > 0.245)  # a quarter of full ink, less the rounding to whole levels
    assert boxes.tolist() == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_draw_canvas_strokes_keep_off_the_box(black_ground, monkeypatch, seed):
    glyph = digits._glyph
    monkeypatch.setattr(digits, "_glyph", lambda *arguments: 0 * glyph(*arguments))
    image, boxes = draw(seed)
    x0, y0, x1, y1 = boxes[0].astype(int)
    near = image[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2]
    assert near.max() == 0
    assert np.count_nonzero(image.max(axis=-1) > 100) > 20


def test_draw_canvas_boxes_vary_so_that_fixed_boxes_fail():
    boxes = np.concatenate([draw(seed)[1] for seed in range(200)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    longer = np.maximum(width, height)
    assert boxes.min() >= 1
    assert boxes.max() <= 63
    assert 23 <= longer.min() < 28
    assert 38 < longer.max() <= 43
    assert np.ptp((boxes[:, 0] + boxes[:, 2]) / 2) > 35
    assert np.mean(width * height / (51.2 * 51.2) >= 0.5) < 0.05  # the best that the 80 % centre box could do


def test_draw_canvas_depends_on_the_generator_alone():
    assert np.array_equal(draw(7)[0], draw(7)[0])


@pytest.mark.parametrize(
    ("digit", "message"),
    [
        (np.zeros((8, 8)), r"digit: got shape \(8, 8\), most ink 0.0; want"),
        (np.ones((16, 16)), r"digit: got shape \(16, 16\)"),
    ],
)
def test_draw_canvas_refuses_what_cannot_be_seen(without_type_checks, digit, message):
    with pytest.raises(ValueError, match=message):
        digits.draw_canvas(np.random.default_rng(0), digit)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed: got -1, want a whole number, at least 0"),
        ({"train_size": 0}, "train_size: got 0, want a whole number, at least 1"),
        ({"test_size": 1.5}, "test_size: got 1.5, want"),
        ({"validation_size": True}, "validation_size: got True, want"),
    ],
)
def test_digits_config_refuses_wrong_options(without_type_checks, options, message):
    with pytest.raises(ValueError, match=message):
        digits.DigitsConfig(**options)
