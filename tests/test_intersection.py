"""The decision's own map against loops in float64, the identity that it rests on, and a numerical integral."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import distcam_jax
from distcam_jax.intersection import (
    intersection_cam,
    intersection_weights,
    rival_probabilities,
    shared_activation,
)


def random_features(seed, shape):
    """Non-negative, half of them zero, as after a ReLU."""
    return np.maximum(np.random.default_rng(seed).normal(size=shape), 0).astype(np.float32)


def random_prototypes(seed, shape):
    return np.random.default_rng(seed).uniform(0, 0.8, size=shape).astype(np.float32)


def loop_weights(pooled, prototypes, temperature, base):
    """The weights of one image by plain loops; prototypes [c][k]."""
    classes, channels = len(prototypes), len(pooled)
    shares = [[min(p[k], pooled[k]) / pooled[k] if pooled[k] > 0 else 0.0 for k in range(channels)] for p in prototypes]
    distances = [sum(abs(p[k] - pooled[k]) for k in range(channels)) for p in prototypes]
    mean = sum(distances) / classes
    deviation = math.sqrt(sum((d - mean) ** 2 for d in distances) / classes)
    scores = [1.0 if math.isinf(temperature) else math.exp((mean - d) / (temperature * deviation)) for d in distances]
    rivals = [score / sum(scores) for score in scores]
    common = [sum(rivals[c] * shares[c][k] for c in range(classes)) for k in range(channels)]
    return np.array([[shares[c][k] - (1 - base) * common[k] for k in range(channels)] for c in range(classes)])


@pytest.mark.parametrize("temperature", [math.inf, 2.0, 0.3])
@pytest.mark.parametrize("base", [0.0, 0.1, 1.0])
def test_intersection_cam_equals_loops(temperature, base):
    features, prototypes = random_features(0, (3, 4, 5, 6)), random_prototypes(1, (7, 6))
    maps = intersection_cam(features, prototypes, temperature=temperature, base=base)
    for image, one in zip(features.astype(np.float64), maps, strict=True):
        weights = loop_weights(image.mean(axis=(0, 1)), prototypes.astype(np.float64), temperature, base)
        expected = [[[sum(w * q) for q in row] for row in image] for w in weights]
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("signs", [False, True])
def test_intersection_cam_mean_gives_the_distance(signs):
    features, prototypes = random_features(2, (4, 3, 3, 8)), random_prototypes(3, (5, 8))
    if signs:
        features, prototypes = features - np.float32(0.3), prototypes - np.float32(0.3)
    pooled = features.mean(axis=(1, 2))
    means = np.asarray(intersection_cam(features, prototypes, base=1.0)).mean(axis=(2, 3))
    distances = np.abs(pooled[:, None] - prototypes).sum(axis=2)
    constants = np.abs(prototypes).sum(axis=1) + np.abs(pooled).sum(axis=1)[:, None]
    np.testing.assert_allclose(means, (constants - distances) / 2, rtol=1e-5, atol=1e-6)


def test_intersection_cam_mean_gives_the_margin():
    features, prototypes = random_features(4, (4, 3, 3, 8)), random_prototypes(5, (5, 8))
    pooled = features.mean(axis=(1, 2))
    means = np.asarray(intersection_cam(features, prototypes)).mean(axis=(2, 3))
    distances = np.abs(pooled[:, None] - prototypes).sum(axis=2)
    margin = distances.mean(axis=1, keepdims=True) - distances
    constant = prototypes.sum(axis=1).mean() - prototypes.sum(axis=1)
    np.testing.assert_allclose(2 * means + constant, margin, rtol=1e-4, atol=1e-5)


def test_shared_activation_is_an_integrated_gradient():
    generator = np.random.default_rng(6)
    query, reference = generator.uniform(0.1, 1, 12), generator.uniform(0, 1.5, 12)
    steps = (np.arange(20000) + 0.5) / 20000
    gradient = np.sign(reference - steps[:, None] * query).mean(axis=0)  # of −|P − t q| by t q
    np.testing.assert_allclose(2 * np.asarray(shared_activation(query, reference)) - 1, gradient, atol=2e-4)


def test_shared_activation_of_other_signs_is_zero():
    query, reference = np.array([-1.0, -2.0, -2.0, 1.0]), np.array([1.0, -1.0, -4.0, -1.0])
    np.testing.assert_array_equal(shared_activation(query, reference), [0.0, 0.5, 1.0, 0.0])


def test_intersection_weights_are_those_of_no_other_unit():
    query, prototypes = random_features(7, (6,)) + np.float32(0.1), random_prototypes(8, (4, 6))
    weights = intersection_weights(query, prototypes, temperature=0.5)
    for unit in (1e-12, 1e12):
        scaled = intersection_weights(query * np.float32(unit), prototypes * np.float32(unit), temperature=0.5)
        np.testing.assert_allclose(scaled, weights, rtol=1e-4, atol=1e-6)


def test_intersection_weights_of_equal_prototypes_are_zero():
    prototypes = np.tile(random_prototypes(9, (1, 6)), (3, 1))
    np.testing.assert_allclose(intersection_weights(random_features(10, (6,)), prototypes), 0, atol=1e-6)


def test_rival_probabilities_without_differences_are_uniform():
    np.testing.assert_allclose(rival_probabilities(np.full(4, 3.0, np.float32), temperature=0.5), 0.25)


def test_rival_probabilities_sharpen_towards_the_nearest():
    probabilities = rival_probabilities(np.array([3.0, 1.0, 2.0]), temperature=0.01)
    np.testing.assert_allclose(probabilities, [0, 1, 0], atol=1e-6)


def test_intersection_cam_keeps_nan_to_its_image():
    features, prototypes = random_features(11, (3, 2, 2, 4)), random_prototypes(12, (3, 4))
    clean = intersection_cam(features, prototypes, temperature=1.0)
    features[1, 0, 0, 2] = np.nan
    maps = np.asarray(intersection_cam(features, prototypes, temperature=1.0))
    assert np.isnan(maps[1]).any()
    np.testing.assert_array_equal(maps[[0, 2]], np.asarray(clean)[[0, 2]])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e15])
def test_intersection_cam_gradients_are_finite(scale):
    features, prototypes = random_features(13, (2, 2, 2, 4)) * np.float32(scale), random_prototypes(14, (3, 4))
    prototypes = jnp.asarray(prototypes * np.float32(scale))

    def total(features, prototypes):
        return intersection_cam(features, prototypes, temperature=0.5, base=0.1).sum()

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(jnp.asarray(features), prototypes)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_intersection_cam_computes_bfloat16_in_float32():
    features = jnp.asarray(random_features(15, (2, 3, 3, 5)), jnp.bfloat16)
    prototypes = random_prototypes(16, (4, 5))
    maps = intersection_cam(features, prototypes)
    assert maps.dtype == jnp.float32
    np.testing.assert_array_equal(maps, intersection_cam(np.asarray(features, np.float32), prototypes))


def test_intersection_cam_does_not_depend_on_the_block():
    features, prototypes = random_features(17, (2, 3, 4, 4, 6)), random_prototypes(18, (5, 6))
    whole = intersection_cam(features, prototypes, temperature=1.0, batch_size=6)
    assert whole.shape == (2, 3, 5, 4, 4)
    for batch_size in (1, 4):
        blocks = intersection_cam(features, prototypes, temperature=1.0, batch_size=batch_size)
        np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": 0.0}, "temperature: want a positive number, got 0.0"),
        ({"temperature": "hot"}, "temperature: want a positive number, got 'hot'"),
        ({"base": 1.5}, r"base: want a number in \[0, 1\], got 1.5"),
        ({"base": math.nan}, r"base: want a number in \[0, 1\], got nan"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_intersection_weights_refuses_options(options, text):
    with pytest.raises(ValueError, match=text):
        intersection_weights(np.ones(2, np.float32), np.ones((3, 2), np.float32), **options)


@pytest.mark.usefixtures("without_type_checks")
def test_intersection_cam_refuses_other_channels():
    with pytest.raises(ValueError, match="k = 2 as in features"):
        intersection_cam(np.ones((1, 2, 2, 2), np.float32), np.ones((3, 5), np.float32))


def test_intersection_cam_of_one_class_is_zero_and_differs_from_dist_cam():
    features, prototypes = random_features(19, (1, 3, 3, 4)), random_prototypes(20, (1, 4))
    np.testing.assert_allclose(intersection_cam(features, prototypes), 0, atol=1e-6)
    assert np.abs(distcam_jax.dist_cam(features, prototypes)).max() > 0.1
