import dataclasses

import numpy as np
import pytest

from distcam_jax.evaluators import Explained, Localization, bind_methods, choose_methods
from distcam_jax.evaluators.explore import asked_classes, make_explorer, unique_names
from tests.patch_network import (
    CLASSES,
    SIZE,
    PatchNetwork,
    make_data,
    make_prototypes,
    patch_features,
    picture,
    pooled_features,
)

LABELS = np.array([2, 0, 4, 1, 3, 3, 0, 2, 1, 4, 2, 0, 1])
UNIQUE = ["crane (n0)", "owl", "crane (n2)", "tern", "kite"]


def explained(*, linear, tuned, name="patches"):
    network, prototypes = PatchNetwork(linear=linear, name=name), make_prototypes()
    methods = choose_methods(("uniform", "contrastive", "cam", "dist_cam"), network)
    return Explained(network, prototypes, methods, bind_methods(methods, network, prototypes), tuned)


METRIC = {"uniform": 0.15, "contrastive": 0.3, "dist_cam": 0.45}
SOFTMAX = {"uniform": 0.1, "contrastive": 0.25, "dist_cam": 0.5, "cam": 0.6}


def measured_pass(data):
    """A pass that has left out one image, in an order of its own."""
    index = np.array([i for i in np.random.default_rng(6).permutation(len(data.source)) if i != 5])
    labels = LABELS[index]
    nothing = np.zeros(len(index))
    return Localization(labels, index, (labels + 1 + index % 3) % CLASSES, {}, nothing, {}, {}, {})


def distances_to_prototypes(index):
    return np.abs(make_prototypes().prototypes - pooled_features(index)).sum(axis=1)


@pytest.fixture(scope="module")
def explorer():
    """Eleven of twelve images, eight a step: the second step is padded."""
    data = make_data(LABELS)
    networks = [explained(linear=False, tuned=METRIC), explained(linear=True, tuned=SOFTMAX, name="softmax")]
    return make_explorer(data, networks, measured_pass(data), count=11, seed=2, batch=8)


def places(explorer):
    return [int(image.file_name.removesuffix(".png")) for image in explorer.images]


def wanted_classes(place):
    """True, nearest, second nearest and the pass's wrong class, each at its first mention."""
    order = sorted(range(CLASSES), key=lambda c: distances_to_prototypes(place)[c])
    wrong = (LABELS[place] + 1 + place % 3) % CLASSES
    return list(dict.fromkeys([int(LABELS[place]), order[0], order[1], int(wrong)]))


# ---- which images, of which classes


def test_make_explorer_of_no_image_is_none():
    data = make_data(LABELS)
    networks = [explained(linear=False, tuned=METRIC)]
    assert make_explorer(data, networks, measured_pass(data), count=0, seed=2, batch=8) is None


def test_make_explorer_draws_measured_images_once_in_the_order_of_the_pass(explorer):
    found, order = places(explorer), measured_pass(make_data(LABELS)).index.tolist()
    assert len(found) == len(set(found)) == 11
    assert [order.index(place) for place in found] == sorted(order.index(place) for place in found)


def test_make_explorer_draws_by_the_seed_and_takes_all_where_there_are_fewer():
    data, networks = make_data(LABELS), [explained(linear=False, tuned=METRIC)]
    drawn = {
        seed: places(make_explorer(data, networks, measured_pass(data), count=3, seed=seed, batch=8))
        for seed in (2, 3, 4)
    }
    assert len({tuple(rows) for rows in drawn.values()}) > 1
    again = make_explorer(data, networks, measured_pass(data), count=3, seed=3, batch=8)
    assert places(again) == drawn[3]
    whole = make_explorer(data, networks, measured_pass(data), count=99, seed=2, batch=16)
    assert places(whole) == measured_pass(data).index.tolist()


def test_make_explorer_tells_of_each_image_what_it_is(explorer):
    lengths = set()
    for image, place in zip(explorer.images, places(explorer), strict=True):
        classes, distances = wanted_classes(place), distances_to_prototypes(place)
        lengths.add(len(classes))
        assert list(image.classes) == [UNIQUE[c] for c in classes]
        assert image.true_class == UNIQUE[LABELS[place]]
        assert image.predicted_class == UNIQUE[int(distances.argmin())]
        assert image.distance == pytest.approx(distances.min(), rel=1e-5)
        np.testing.assert_allclose(image.distances, distances[classes], rtol=1e-5)
        np.testing.assert_array_equal(image.picture, picture(place))
        assert np.asarray(image.true_boxes).tolist() == [[place % 5, 1, place % 5 + 8, 11]]
        assert tuple(image.image_size) == (SIZE, SIZE)
    assert len(lengths) > 1  # some ask for a class twice, some do not


# ---- maps


def test_make_explorer_offers_cam_of_the_network_that_has_it(explorer):
    assert {method.title: method.threshold for method in explorer.methods} == {
        "CAM, softmax network": 0.6,
        "Dist-CAM": 0.45,
        "contrastive Dist-CAM": 0.3,
    }
    assert explorer.input_size == SIZE


@pytest.mark.parametrize("title", ["CAM, softmax network", "Dist-CAM", "contrastive Dist-CAM"])
def test_make_explorer_maps_are_those_of_a_loop(explorer, title):
    prototypes, linear = make_prototypes().prototypes, np.asarray(PatchNetwork().class_weights)
    (method,) = (one for one in explorer.methods if one.title == title)
    for maps, place in zip(method.maps, places(explorer), strict=True):
        features = patch_features(picture(place)[None] / np.float32(255))[0]
        distances = np.abs(prototypes - pooled_features(place))
        classes = wanted_classes(place)
        assert maps.shape == (len(classes), SIZE // 4, SIZE // 4)
        for values, c in zip(maps, classes, strict=True):
            reciprocal = 1 / (distances[c] / distances[c].mean() + 0.1)
            weights = {
                "CAM, softmax network": linear[c],
                "Dist-CAM": reciprocal / reciprocal.sum(),
                "contrastive Dist-CAM": distances.mean(axis=0) - distances[c],
            }[title]
            wanted = sum(weights[k] * features[..., k] for k in range(len(weights)))
            np.testing.assert_allclose(values, wanted, atol=1e-5)


def test_make_explorer_keeps_the_size_of_a_picture_that_it_reduces():
    labels = LABELS[:3]
    data = make_data(labels, side=896)
    wide = [{**example, "boxes": example["boxes"] * 50} for example in data.source]
    data = dataclasses.replace(data, source=wide)
    one = dataclasses.replace(measured_pass(make_data(LABELS)), labels=labels, index=np.arange(3), wrong=labels * 0 + 1)
    found = make_explorer(data, [explained(linear=False, tuned=METRIC)], one, count=3, seed=0, batch=4)
    for place, image in enumerate(found.images):
        assert image.picture.shape == (224, 224, 3)
        assert tuple(image.image_size) == (896, 896)
        assert np.asarray(image.true_boxes).tolist() == [[place * 50, 50, place * 50 + 400, 550]]
        # A cell of 4 by 4 pixels of one colour becomes one pixel.
        np.testing.assert_array_equal(image.picture, picture(place, 896)[::4, ::4])


# ---- names


def test_asked_classes_are_the_true_one_the_two_nearest_and_a_wrong_one():
    nearest = np.array([[4, 2, 0], [1, 3, 2]])
    found = asked_classes(np.array([2, 1]), nearest, np.array([0, 4]))
    assert found.tolist() == [[2, 4, 2, 0], [1, 1, 3, 4]]
    assert found.dtype == np.int32
    assert asked_classes(np.array([2]), np.array([[4]]), np.array([0])).tolist() == [[2, 4, 4, 0]]


def test_unique_names_tell_classes_of_one_name_apart():
    assert unique_names(make_data([0])) == UNIQUE
