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


def test_batches_of_a_round_have_every_class_and_the_last_is_filled_up():
    filled = []
    for turn in range(200):
        labels = [LABELS[sampler().batch(3 * turn + place)][:, 0].tolist() for place in range(3)]  # 2 + 2 + 2 of 5
        assert {label for batch in labels for label in batch} == {3, 5, 6, 9, 11}
        (twice,) = [label for label in (3, 5, 6, 9, 11) if sum(batch.count(label) for batch in labels) == 2]
        assert twice in labels[2]
        filled.append(twice)
    assert min(filled.count(label) for label in (3, 5, 6, 9, 11)) > 20


def test_batches_take_every_image_of_a_class_equally_often():
    drawn = np.bincount(np.ravel([sampler().batch(number) for number in range(1500)]), minlength=len(LABELS))
    for label in (3, 5, 6, 9, 11):
        own = drawn[label == LABELS]
        np.testing.assert_allclose(own / own.mean(), 1.0, atol=0.15)


def test_every_image_comes_before_the_rounds_are_over_that_its_class_fills():
    labels = np.repeat(np.arange(5), 6)
    some = ClassBatchSampler(labels, classes=3, images=2, seed=1)
    seen = {int(row) for number in range(2 * 3) for row in some.batch(number).ravel()}  # three rounds of two batches
    assert seen == set(range(30))


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
