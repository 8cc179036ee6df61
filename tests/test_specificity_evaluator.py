"""Pairs of photographs whose classes are colours, so that what is right is known."""

import cv2
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from distcam_jax import training
from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.specificity import MEASURES, choose_pairs, specificity
from distcam_jax.prototypes import Prototypes
from distcam_jax.statistics import paired_bootstrap_interval

SIZE = 16
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)


class PatchNetwork(Network):
    """Features are the mean colours of patches of 4 x 4 pixels and a constant."""

    def __init__(self):
        config = ml_collections.ConfigDict({"input": {"image_size": SIZE}})
        self.__dict__.update(config=config, mesh=training.create_mesh(), shapes=[])

    def __call__(self, images):
        self.shapes.append(images.shape)
        b, h, w, _ = images.shape
        colours = jnp.asarray(images).reshape(b, h // 4, 4, w // 4, 4, 3).mean((2, 4))
        maps = jnp.concatenate([colours, jnp.ones((b, h // 4, w // 4, 1), jnp.float32)], axis=-1)
        return None, {"pre_pool": maps, "embedding": maps.mean((1, 2))}


def picture(label, place):
    """Grey, with a square of the class's colour."""
    image = np.full((20, 24, 3), 128, np.uint8)
    image[4 + place % 8 : 10 + place % 8, 6:16] = COLOURS[label]
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


LABELS = np.random.default_rng(0).integers(0, 4, size=60)
SOURCE = [{"image": picture(label, i), "label": int(label), "file_name": f"{i}.png"} for i, label in enumerate(LABELS)]
PROTOTYPES = Prototypes(np.eye(4, dtype=np.float32), np.array([5, 5, 5, 0]), ("r", "g", "b", "y"), {}, "")


def colour_maps(features, classes):
    """Hot where the colour is that of the class."""
    colours = jnp.asarray(COLOURS[np.asarray(classes)] / 255, jnp.float32)  # [b, m, 3]
    return -jnp.abs(features[:, None, :, :, :3] - colours[:, :, None, None]).sum(-1)


def maps_of(features, classes):
    shape = (*classes.shape, *features.shape[1:3])
    return {
        "colour": 3 + colour_maps(features, classes),
        "opposite": -colour_maps(features, classes),
        "left": jnp.broadcast_to(jnp.arange(features.shape[2], 0.0, -1), shape),
        "flat": jnp.full(shape, 0.3, jnp.float32),
    }


# ---- choose_pairs


def test_choose_pairs_pairs_photographs_of_different_classes_once():
    index, labels, a_first = choose_pairs(SOURCE, {0, 1, 2}, pairs=15, seed=4)
    np.testing.assert_array_equal(labels, LABELS[index])
    assert np.all(labels[:, 0] != labels[:, 1])
    assert set(labels.ravel().tolist()) == {0, 1, 2}
    assert len(np.unique(index)) == index.size
    assert 0 < a_first.sum() < 15


def test_choose_pairs_depends_on_the_seed_alone_and_starts_alike():
    few, many = choose_pairs(SOURCE, range(4), pairs=5, seed=1), choose_pairs(SOURCE, range(4), pairs=20, seed=1)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:5])
    assert not np.array_equal(choose_pairs(SOURCE, range(4), pairs=5, seed=2)[0], few[0])


def test_choose_pairs_goes_on_when_the_source_is_used_up():
    source = [{"label": label} for label in (0, 0, 0, 0, 1)]
    index, labels, _ = choose_pairs(source, {0, 1}, pairs=6)
    assert index.shape == (6, 2)
    assert (labels.sum(axis=1) == 1).all()


@pytest.mark.parametrize("classes", [{0}, {7, 8}, set()])
def test_choose_pairs_wants_two_classes(classes):
    with pytest.raises(ValueError, match=f"photographs of two of the {len(classes)} classes"):
        choose_pairs(SOURCE, classes, pairs=1)


# ---- specificity


@pytest.fixture(scope="module")
def measured():
    return specificity(PatchNetwork(), PROTOTYPES, maps_of, SOURCE, pairs=21, seed=1, batch=8)


def test_specificity_keeps_what_each_pair_is(measured):
    index, labels, a_first = choose_pairs(SOURCE, {0, 1, 2}, pairs=21, seed=1)  # class 3 has no training samples
    np.testing.assert_array_equal(np.stack([measured.index_a, measured.index_b], 1), index)
    np.testing.assert_array_equal(np.stack([measured.class_a, measured.class_b], 1), labels)
    np.testing.assert_array_equal(measured.a_first, a_first)
    assert measured.asked.shape == (21, 3)
    assert all(set(row) == {0, 1, 2} for row in measured.asked.tolist())


def test_specificity_of_a_map_that_knows_the_class_is_perfect(measured):
    assert measured.pointing["colour"].tolist() == [[1.0, 1.0]] * 21
    assert measured.swap["colour"].tolist() == [1.0] * 21
    assert measured.swap["opposite"].tolist() == [0.0] * 21
    assert np.all(measured.energy["colour"] > 0.5)
    assert np.all(measured.difference["colour"] > 0)
    assert np.all(measured.difference["opposite"] < 0)


def test_specificity_of_a_map_without_the_class_is_chance_in_every_pair(measured):
    # A map that always prefers the left is right for one of the two classes and wrong for the other.
    assert measured.pointing["left"].sum(axis=1).tolist() == [1.0] * 21
    np.testing.assert_array_equal(measured.pointing["left"][:, 0], measured.a_first)
    for name in ("left", "flat", "uniform"):
        assert measured.swap[name].tolist() == [0.5] * 21
        np.testing.assert_allclose(measured.energy[name].sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(measured.difference[name].sum(axis=1), 0, atol=1e-5)
    assert measured.pointing["flat"].tolist() == [[0.5, 0.5]] * 21
    assert 0.3 < measured.means["pointing"]["random"] < 0.7
    assert 0.2 < measured.means["swap"]["random"] < 0.8


def test_specificity_correlates_maps_of_different_classes(measured):
    np.testing.assert_allclose(measured.correlation["left"], 1, atol=1e-5)
    np.testing.assert_allclose(measured.correlation["uniform"], 1, atol=1e-5)
    assert measured.correlated["uniform"].tolist() == [3] * 21
    assert measured.correlated["flat"].tolist() == [0] * 21
    assert np.isnan(measured.correlation["flat"]).all()
    assert np.isnan(measured.means["correlation"]["flat"])
    assert measured.means["correlation"]["colour"] < 0.9
    assert abs(measured.means["correlation"]["random"]) < 0.2


def test_specificity_does_not_depend_on_the_batch(measured):
    network = PatchNetwork()
    again = specificity(network, PROTOTYPES, maps_of, SOURCE, pairs=9, seed=1, batch=16)
    for measure in MEASURES:
        for name, values in getattr(again, measure).items():
            np.testing.assert_allclose(values, getattr(measured, measure)[name][:9], atol=1e-6, err_msg=name)
    assert network.shapes == [(16, SIZE, 2 * SIZE, 3), (16, SIZE, SIZE, 3)]


@pytest.mark.parametrize(
    ("axis", "layout", "shape"),
    [
        ("vertical", "wide", (2 * SIZE, SIZE)),
        ("horizontal", "squeeze", (SIZE, SIZE)),
        ("vertical", "squeeze", (SIZE, SIZE)),
    ],
)
def test_specificity_in_other_layouts_finds_the_halves(axis, layout, shape):
    network = PatchNetwork()
    found = specificity(
        network,
        PROTOTYPES,
        maps_of,
        SOURCE,
        pairs=8,
        classes=[0, 2],
        axis=axis,
        layout=layout,
        batch=8,
    )
    assert network.shapes[0] == (8, *shape, 3)
    assert {0, 2} == {*found.class_a.tolist(), *found.class_b.tolist()}
    assert found.swap["colour"].tolist() == [1.0] * 8


def test_specificity_rows_serve_a_paired_bootstrap(measured):
    low, high = paired_bootstrap_interval(measured.swap["colour"], measured.swap["uniform"])
    assert (low, high) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": 0}, "pairs: want at least 1, got 0"),
        ({"classes_per_image": 1}, "classes_per_image, batch: want at least 2 and at least 1, got 1 and 16"),
        ({"classes": [3]}, "photographs of two of the 0 classes"),
    ],
)
def test_specificity_names_the_bad_argument(changes, message):
    with pytest.raises(ValueError, match=message):
        specificity(PatchNetwork(), PROTOTYPES, maps_of, SOURCE, **({"pairs": 2} | changes))
