"""Episodes drawn from labels, and the order in which training reads their images."""

import json
import pickle

import cv2
import numpy as np
import pytest

from distcam_jax.episodes import EpisodeSampler
from distcam_jax.input_pipeline import make_train_iterator

LABELS = np.random.default_rng(0).permutation(np.repeat([3, 5, 6, 9], [7, 5, 6, 8]))
OPTIONS = {"ways": 3, "shots": 2, "queries": 3, "seed": 4}


def test_episode_draws_different_classes_and_images_of_each():
    sampler = EpisodeSampler(LABELS, **OPTIONS)
    for number in range(50):
        classes, rows = sampler.episode(number)
        assert len(set(classes.tolist())) == 3
        assert len(set(rows.ravel().tolist())) == rows.size == 15
        np.testing.assert_array_equal(LABELS[rows], np.repeat(classes[:, None], 5, axis=1))


def test_episode_follows_from_seed_and_number_alone():
    first, second = EpisodeSampler(LABELS, **OPTIONS), EpisodeSampler(LABELS, **OPTIONS)
    later = second.episode(7)[1]
    np.testing.assert_array_equal(first.episode(7)[1], later)
    assert not np.array_equal(first.episode(7)[1], first.episode(8)[1])
    other = EpisodeSampler(LABELS, **{**OPTIONS, "seed": 5})
    assert not np.array_equal(first.episode(7)[1], other.episode(7)[1])


def test_episodes_draw_every_class_and_every_image_about_equally_often():
    classes, supports, queries = EpisodeSampler(LABELS, **OPTIONS).episodes(2000)
    # A class is in 3 of 4 episodes: deviation 0.0097 over 2,000. An image of 8 in 5 of 8 of these.
    shares = [np.mean(np.any(classes == label, axis=1)) for label in (3, 5, 6, 9)]
    np.testing.assert_allclose(shares, 0.75, atol=0.04)
    drawn = np.bincount(np.concatenate([supports.ravel(), queries.ravel()]), minlength=len(LABELS)) / 2000
    counts = np.array([np.sum(label == LABELS) for label in LABELS])
    np.testing.assert_allclose(drawn, 0.75 * 5 / counts, atol=0.05)


def test_episodes_are_the_episodes_one_by_one():
    sampler = EpisodeSampler(LABELS, **OPTIONS)
    classes, supports, queries = sampler.episodes(4, start=2)
    for place, number in enumerate(range(2, 6)):
        wanted_classes, rows = sampler.episode(number)
        np.testing.assert_array_equal(classes[place], wanted_classes)
        np.testing.assert_array_equal(np.concatenate([supports[place], queries[place]], axis=1), rows)


def test_sampler_reads_the_images_of_one_episode_after_the_other():
    sampler = pickle.loads(pickle.dumps(EpisodeSampler(LABELS, **OPTIONS)))
    assert sampler.size == 15
    places = [*range(35), 15 * 2**33]
    wanted = [sampler.episode(place // 15)[1].ravel()[place % 15] for place in places]
    assert [sampler[place] for place in places] == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 3}, r"class 5 has 5 images, and an episode takes 6 of each class \(3 shots, 3 queries\): ask for"),
        ({"ways": 5}, "ways: want at most the 4 classes that there are, got 5"),
        ({"ways": 0}, "ways: want a positive integer, got 0"),
        ({"queries": 1.5}, "queries: want a positive integer, got 1.5"),
        ({"seed": -1}, "seed: want 0 or more, got -1"),
    ],
)
def test_sampler_refuses_bad_options(changes, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(LABELS, **{**OPTIONS, **changes})


@pytest.mark.parametrize("labels", [LABELS.astype(np.float32), LABELS[None], np.zeros(0)])
def test_sampler_refuses_labels_that_are_none(labels, without_type_checks):
    with pytest.raises(ValueError, match="labels: want integers"):
        EpisodeSampler(labels, **OPTIONS)


# ---- in the input pipeline


def pictures(labels):
    encoded = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    return [{"image": encoded, "label": int(label)} for label in labels]


def iterate(**changes):
    order = EpisodeSampler(LABELS, **OPTIONS)
    options = {"batch_size": 30, "image_size": 4, "seed": 4, "augmentation": None, "order": order, **changes}
    return make_train_iterator(pictures(LABELS), **options)


def rows_of(batches, count):
    rows = [next(batches)["index"] for _ in range(count)]
    batches.close()
    return np.stack(rows)


def test_train_iterator_with_an_order_reads_whole_episodes():
    rows = rows_of(iterate(), 3)
    sampler = EpisodeSampler(LABELS, **OPTIONS)
    wanted = np.concatenate([sampler.episode(number)[1].ravel() for number in range(6)])
    np.testing.assert_array_equal(rows.ravel(), wanted)


def test_train_iterator_with_an_order_is_the_same_for_any_processes_and_workers():
    whole = rows_of(iterate(), 2)
    parts = [rows_of(iterate(batch_size=15, process_index=p, process_count=2), 2) for p in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(rows_of(iterate(num_workers=1), 2), whole)


def test_train_iterator_with_an_order_goes_on_and_refuses_another_order():
    batches = iterate()
    next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    wanted = next(batches)["index"]
    batches.close()
    again = iterate()
    again.set_state(state)
    np.testing.assert_array_equal(rows_of(again, 1)[0], wanted)
    other = iterate(order=EpisodeSampler(LABELS, **{**OPTIONS, "shots": 1}))
    with pytest.raises(ValueError, match=r"the saved state was taken with another shots 2 \(here 1\)"):
        other.set_state(state)
