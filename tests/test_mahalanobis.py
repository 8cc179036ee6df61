"""The map of the Mahalanobis margin against loops in float64, and against the distance that it divides."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.mahalanobis import mahalanobis_cam, mahalanobis_weights, within_class_precision
from distcam_jax.methods import Context, margin_maps


def scene(seed=0, images=3, classes=5, channels=6):
    generator = np.random.default_rng(seed)
    features = np.maximum(generator.normal(0.2, 1, size=(images, 4, 3, channels)), 0).astype(np.float32)
    prototypes = generator.uniform(0, 1.2, size=(classes, channels)).astype(np.float32)
    root = generator.normal(size=(channels, channels))
    return features, prototypes, (root @ root.T / channels).astype(np.float32)


def rivals_of(pooled, prototypes, temperature):
    distances = np.array([sum(abs(a - b) for a, b in zip(pooled, p, strict=True)) for p in prototypes])
    near = np.array([math.exp((distances.min() - d) / (temperature * distances.std())) for d in distances])
    return near / near.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, math.inf])
def test_mahalanobis_cam_equals_loops(temperature):
    features, prototypes, precision = scene()
    maps = mahalanobis_cam(features, prototypes, precision, temperature=temperature)
    assert maps.shape == (3, 5, 4, 3)
    for b, c in np.ndindex(3, 5):
        image, p = features[b].astype(np.float64), prototypes.astype(np.float64)
        rivals = rivals_of(image.mean(axis=(0, 1)), p, temperature)
        away = p[c] - sum(rivals[other] * p[other] for other in range(5))
        weights = [sum(precision[k, j] * away[j] for j in range(6)) for k in range(6)]
        expected = [[sum(w * q for w, q in zip(weights, place, strict=True)) for place in row] for row in image]
        np.testing.assert_allclose(maps[b, c], expected, rtol=1e-4, atol=1e-4)


def test_mahalanobis_cam_means_are_the_margins_up_to_a_constant_of_the_class():
    features, prototypes, precision = scene(images=2)
    means = np.asarray(mahalanobis_cam(features, prototypes, precision, temperature=math.inf)).mean(axis=(2, 3))
    margins = np.zeros_like(means)
    for b, c in np.ndindex(2, 5):
        halves = [(features[b].mean((0, 1)) - p) @ precision @ (features[b].mean((0, 1)) - p) / 2 for p in prototypes]
        margins[b, c] = np.mean(halves) - halves[c]
    constants = margins - means
    np.testing.assert_allclose(constants[0], constants[1], atol=1e-4)  # the image has no part in them
    assert np.ptp(margins - margins[:1]) > 0.1


def test_mahalanobis_cam_is_the_catalogues():
    features, prototypes, precision = scene()
    classes = np.tile(np.arange(5), (3, 1))
    context = Context(classes, prototypes, whitening=precision)
    expected = margin_maps(features, context, evidence="whitened", temperature=2.0)
    maps = mahalanobis_cam(features, prototypes, precision, temperature=2.0)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-4)


def test_mahalanobis_cam_does_not_change_with_the_basis_of_the_channels():
    features, prototypes, _ = scene()
    samples, labels = np.random.default_rng(1).normal(size=(50, 6)), np.arange(50) % 5
    mixing = np.random.default_rng(2).normal(size=(6, 6)) + 3 * np.eye(6)
    maps = []
    for basis in (np.eye(6), mixing):
        p = prototypes @ basis
        precision = within_class_precision(samples @ basis, labels, p, ridge=1e-7)
        mixed = (features @ basis).astype(np.float32)
        maps.append(mahalanobis_cam(mixed, p.astype(np.float32), precision, temperature=math.inf))
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-2, atol=1e-3)


def test_mahalanobis_cam_works_under_transformations():
    features, prototypes, precision = scene()
    expected = mahalanobis_cam(features, prototypes, precision)
    one = jax.vmap(mahalanobis_cam, in_axes=(0, None, None))(features, prototypes, precision)
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda q: mahalanobis_cam(q, prototypes, precision).sum())(features)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [2.0, math.inf])
def test_mahalanobis_cam_of_a_nan_image_spoils_its_own_map_alone(temperature):
    features, prototypes, precision = scene()
    expected = np.asarray(mahalanobis_cam(features, prototypes, precision, temperature=temperature))
    features[1, 2, 0, 3] = np.nan
    maps = np.asarray(mahalanobis_cam(features, prototypes, precision, temperature=temperature))
    assert np.isnan(maps[1]).any()
    np.testing.assert_array_equal(maps[[0, 2]], expected[[0, 2]])


def test_mahalanobis_cam_is_zero_where_there_is_nothing_to_tell():
    features, prototypes, precision = scene()
    alike = np.repeat(prototypes[:1], 3, axis=0)
    for given in ((0 * features, prototypes), (features, prototypes[:1]), (features, alike)):
        np.testing.assert_allclose(mahalanobis_cam(*given, precision), 0, atol=1e-5)


def test_mahalanobis_cam_computes_bfloat16_in_float32():
    features, prototypes, precision = scene()
    features = jnp.asarray(features, jnp.bfloat16)
    maps = mahalanobis_cam(features, prototypes, precision)
    assert maps.dtype == jnp.float32
    np.testing.assert_array_equal(maps, mahalanobis_cam(np.asarray(features, np.float32), prototypes, precision))


def test_mahalanobis_weights_refuse_what_does_not_fit(without_type_checks):
    features, prototypes, precision = scene()
    pooled = features.mean(axis=(1, 2))
    with pytest.raises(ValueError, match="precision_matrix"):
        mahalanobis_weights(pooled, prototypes, precision[:3])
    with pytest.raises(ValueError, match=r"temperature: want a positive number, got 0\.0"):
        mahalanobis_weights(pooled, prototypes, precision, temperature=0.0)
    with pytest.raises(ValueError, match="prototypes"):
        mahalanobis_weights(pooled, prototypes[:, :4], precision)


def test_within_class_precision_inverts_the_loop_over_samples():
    generator = np.random.default_rng(0)
    samples, labels = generator.normal(size=(40, 3)) * [1, 2, 5], generator.integers(0, 4, size=40)
    prototypes = generator.normal(size=(4, 3))  # the covariance is around these, not around the samples' own means
    covariance = np.zeros((3, 3))
    for sample, label in zip(samples, labels, strict=True):
        covariance += np.outer(sample - prototypes[label], sample - prototypes[label]) / 40
    ridged = covariance + 0.5 * np.trace(covariance) / 3 * np.eye(3)
    found = within_class_precision(samples, labels, prototypes, ridge=0.5)
    np.testing.assert_allclose(found @ ridged, np.eye(3), atol=1e-5)
    assert (found == found.T).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": np.zeros((0, 2)), "labels": np.zeros(0, int)}, r"samples, prototypes: want axes .* got \(0, 2\)"),
        ({"prototypes": np.zeros((2, 3))}, r"samples, prototypes: want axes .* and \(2, 3\)"),
        ({"labels": np.array([0, 2])}, "labels: want 0 to 1, got 0 to 2"),
        ({"ridge": 0.0}, "ridge: want a positive number, got 0.0"),
        ({"ridge": math.nan}, "ridge: want a positive number, got nan"),
        ({"ridge": "1"}, "ridge: want a positive number, got '1'"),
        ({"samples": np.array([[math.nan, 1.0], [1.0, 1.0]])}, "samples: want finite values .* variance is nan"),
        ({"samples": np.ones((2, 2))}, "samples: want finite values .* variance is 0.0"),
        ({"samples": 1e-25 * np.eye(2), "prototypes": np.zeros((2, 2))}, "float32 cannot hold the inverse of mean"),
        ({"samples": 1e25 * np.eye(2)}, "float32 cannot hold the inverse of mean variance 5e[+]49 with ridge 1.0"),
    ],
    ids=str,
)
def test_within_class_precision_refuses_bad_input(without_type_checks, changes, message):
    given = {"samples": np.eye(2), "labels": np.array([0, 1]), "prototypes": np.ones((2, 2)), "ridge": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        within_class_precision(**given)
