"""Batches of P classes with K images each, and the order in which training reads them."""

import json
import pickle

import cv2
import numpy as np
import pytest

from distcam_jax.class_batches import ClassBatchSampler
from distcam_jax.input_pipeline import make_train_iterator

LABELS = np.random.default_rng(0).permutation(np.repeat([3, 5, 6, 9, 11], [7, 5, 6, 8, 2]))


def sampler(**changes):
    return ClassBatchSampler(LABELS, **{"classes": 2, "images": 3, "seed": 4, **changes})


def test_batch_has_different_classes_and_images_of_each():
    for number in range(60):
        rows = sampler().batch(number)
        assert rows.shape == (2, 3)
        labels = LABELS[rows]
        assert (labels == labels[:, :1]).all()
        assert labels[0, 0] != labels[1, 0]
        for of_class, label in zip(rows, labels[:, 0], strict=True):
            assert len(set(of_class.tolist())) == min(3, np.sum(label == LABELS))  # a class of two repeats one


def test_batches_of_a_round_share_no_class():
    for turn in range(20):
        first, second = (LABELS[sampler().batch(2 * turn + place)] for place in range(2))
        assert not set(first.ravel().tolist()) & set(second.ravel().tolist())


def test_batches_take_every_class_equally_often_and_every_image_of_it():
    rows = np.stack([sampler().batch(number) for number in range(4000)])
    labels = LABELS[rows[:, :, 0]]
    # A round of two batches leaves one of five classes out: deviation 0.009 over 2,000 rounds.
    shares = [np.mean((labels.reshape(-1, 4) == label).any(axis=1)) for label in (3, 5, 6, 9, 11)]
    np.testing.assert_allclose(shares, 0.8, atol=0.04)
    drawn = np.bincount(rows.ravel(), minlength=len(LABELS))
    for label in (3, 5, 6, 9, 11):
        own = drawn[label == LABELS]
        np.testing.assert_allclose(own / own.mean(), 1.0, atol=0.12)


def test_a_class_gives_all_its_images_before_it_repeats_one():
    only = ClassBatchSampler(np.zeros(6, np.int64), classes=1, images=3, seed=0)
    for turn in range(0, 10, 2):
        assert sorted([*only.batch(turn)[0], *only.batch(turn + 1)[0]]) == list(range(6))


def test_batch_follows_from_seed_and_number_alone():
    later = sampler().batch(7)
    one = sampler()
    one.batch(3)
    np.testing.assert_array_equal(one.batch(7), later)
    assert not np.array_equal(sampler().batch(8), later)
    assert not np.array_equal(sampler(seed=5).batch(7), later)


def test_sampler_reads_the_images_of_one_batch_after_the_other():
    copy = pickle.loads(pickle.dumps(sampler()))
    places = [*range(20), 6 * 2**33 + 1]
    assert [copy[place] for place in places] == [sampler().batch(place // 6).ravel()[place % 6] for place in places]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 6}, "classes: want at most the 5 that there are, got 6"),
        ({"images": 0}, "images"),
        ({"seed": -1}, "seed: want 0 or more, got -1"),
    ],
)
def test_sampler_refuses_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        sampler(**changes)


def test_train_iterator_reads_whole_batches_whatever_the_processes():
    encoded = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    source = [{"image": encoded, "label": int(label), "file_name": "x.png"} for label in LABELS]
    options = {"image_size": 4, "seed": 0, "augmentation": None, "num_threads": 0}
    one = make_train_iterator(source, batch_size=6, order=sampler(), **options)
    two = [
        make_train_iterator(source, batch_size=3, order=sampler(), process_index=p, process_count=2, **options)
        for p in range(2)
    ]
    for number in range(4):
        whole = next(one)
        np.testing.assert_array_equal(whole["index"], sampler().batch(number).ravel())
        np.testing.assert_array_equal(whole["label"], LABELS[whole["index"]])
        np.testing.assert_array_equal(np.concatenate([next(part)["index"] for part in two]), whole["index"])
    state = json.loads(json.dumps(one.get_state()))
    assert state["classes"] == 2
    with pytest.raises(ValueError, match="another images 3 "):
        make_train_iterator(source, batch_size=6, order=sampler(classes=3, images=2), **options).set_state(
            state | {"classes": 3}
        )
    for iterator in (one, *two):
        iterator.close()
