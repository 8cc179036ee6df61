"""Eq. 2 to 7 against loops in float64 NumPy, written from the equations alone."""

import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import numpy as jnp

import distcam_jax
from tests.cam_oracles import (
    FEATURES,
    NORMS,
    PROTOTYPES,
    assert_close,
    loop_contrastive,
    loop_dist_cam,
    loop_map,
    loop_weights,
    random_features,
    random_vectors,
)


def test_global_average_pool_averages_over_both_image_axes():
    features = random_features(0, (2, 3, 5, 4))
    assert_close(distcam_jax.global_average_pool(features), features.astype(np.float64).sum((1, 2)) / 15)


def test_channel_distances_broadcast_and_do_not_depend_on_order():
    query, reference = random_vectors(0, (4, 1, 6)), random_vectors(1, (3, 6))
    desired = [
        [[abs(float(q) - float(r)) for q, r in zip(row[0], ref, strict=True)] for ref in reference] for row in query
    ]
    assert_close(distcam_jax.channel_distances(query, reference), desired)
    np.testing.assert_array_equal(
        distcam_jax.channel_distances(reference, query), distcam_jax.channel_distances(query, reference)
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [1e-6, 0.1, 3.0])
def test_reciprocal_weights_match_loop(norm, eps):
    distances = random_vectors(2, (4, 9)) + np.float32(0.01)
    desired = [loop_weights([float(d) for d in row], norm, eps) for row in distances]
    assert_close(distcam_jax.reciprocal_weights(distances, norm=norm, eps=eps), desired)


@pytest.mark.parametrize(("norm", "value"), [("sum", 1 / 9), ("l2", 1 / 3), ("max", 1.0), ("minmax", 1.0)])
@pytest.mark.parametrize("distance", [0.0, 1e-30, 0.3, 1e30])
def test_reciprocal_weights_of_equal_distances_are_uniform(norm, value, distance):
    np.testing.assert_allclose(
        distcam_jax.reciprocal_weights(np.full(9, distance), norm=norm), np.full(9, value), rtol=1e-6
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e19, 1e30])
def test_reciprocal_weights_and_gradient_hold_at_any_scale(norm, scale):
    distances, direction = random_vectors(3, 7), random_vectors(4, 7)

    def projected(x):
        return jnp.sum(direction * distcam_jax.reciprocal_weights(x, norm=norm))

    weights = distcam_jax.reciprocal_weights(distances * np.float32(scale), norm=norm)
    assert_close(weights, distcam_jax.reciprocal_weights(distances, norm=norm))
    gradient = jax.grad(projected)(distances * np.float32(scale))
    assert_close(np.asarray(gradient, np.float64) * scale, jax.grad(projected)(distances))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [5e-324, 1e-30, 1e-6, 1, np.float32(0.1), 1e30, 1e308])
def test_reciprocal_weights_are_finite_for_every_valid_eps(norm, eps, without_type_checks):
    distances = jnp.array([0.0, 1.0, 0.0, 2.0])
    weights, pull_back = jax.vjp(functools.partial(distcam_jax.reciprocal_weights, norm=norm, eps=eps), distances)
    assert np.isfinite(weights).all()
    assert np.isfinite(pull_back(jnp.array([1.0, 2.0, 3.0, 4.0]))[0]).all()


def test_contrastive_weights_sum_over_channels_to_the_margin():
    distances = random_vectors(5, (2, 4, 6))
    per_class = distances.astype(np.float64).sum(-1)
    margin = np.array([[sum(image) / 4 - own for own in image] for image in per_class])
    weights = distcam_jax.contrastive_weights(distances)
    assert weights.shape == (2, 4, 6)
    np.testing.assert_allclose(weights.sum(-1), margin, atol=2e-6)
    assert (np.abs(margin) > 0.01).all()  # so that the line above says something
    np.testing.assert_allclose(weights.sum(-2), np.zeros((2, 6)), atol=1e-6)


def test_contrastive_weights_are_high_where_the_class_is_nearer_than_others():
    weights = distcam_jax.contrastive_weights(np.array([[0.0, 3.0], [1.0, 0.0], [5.0, 3.0]]))
    np.testing.assert_allclose(weights, [[2, -1], [1, 2], [-3, -1]])


def test_weighted_channel_sum_matches_loop_and_broadcasts():
    weights = random_vectors(6, (4, 1, 6)) - np.float32(0.7)
    desired = [[loop_map(image.astype(np.float64), row[0]) for image in FEATURES] for row in weights]
    assert_close(distcam_jax.weighted_channel_sum(FEATURES, weights), desired)


def test_cam_matches_loop():
    weights = random_vectors(7, (5, 6)) - np.float32(0.7)
    assert_close(
        distcam_jax.cam(FEATURES, weights), [[loop_map(q.astype(np.float64), row) for row in weights] for q in FEATURES]
    )


def test_cam_averages_to_the_class_score():
    score = distcam_jax.global_average_pool(FEATURES) @ PROTOTYPES.T
    np.testing.assert_allclose(distcam_jax.cam(FEATURES, PROTOTYPES).mean((-2, -1)), score, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_dist_cam_matches_loop(norm, eps):
    desired = loop_dist_cam(FEATURES, PROTOTYPES, norm, eps)
    assert_close(distcam_jax.dist_cam(FEATURES, PROTOTYPES, norm=norm, eps=eps), desired)


@pytest.mark.parametrize("function", [distcam_jax.dist_cam, distcam_jax.contrastive_dist_cam])
@pytest.mark.parametrize("batch_size", [None, 1, 2, 6, 9])
def test_dist_cam_gives_the_same_for_any_block_and_batch_axes(function, batch_size):
    features = random_features(8, (2, 3, 2, 4, 6))
    loop = loop_dist_cam if function is distcam_jax.dist_cam else loop_contrastive
    desired = loop(features.reshape(6, 2, 4, 6), PROTOTYPES)
    assert_close(function(features, PROTOTYPES, batch_size=batch_size), desired.reshape(2, 3, 5, 2, 4))
    assert_close(function(features[1, 2], PROTOTYPES, batch_size=batch_size), desired[5])


def test_contrastive_dist_cam_sums_to_zero_over_classes():
    maps = distcam_jax.contrastive_dist_cam(FEATURES, PROTOTYPES)
    assert np.abs(maps).max() > 1
    np.testing.assert_allclose(maps.sum(1), np.zeros((3, 2, 4)), atol=1e-5)


def test_dist_cam_pairs_take_one_reference_each():
    every = loop_dist_cam(FEATURES, PROTOTYPES, "l2", 0.5)
    own = [every[i, c] for i, c in enumerate([4, 0, 2])]
    assert_close(distcam_jax.dist_cam_pairs(FEATURES, PROTOTYPES[[4, 0, 2]], norm="l2", eps=0.5), own)
    assert_close(distcam_jax.dist_cam_pairs(FEATURES, PROTOTYPES[1], norm="l2", eps=0.5), every[:, 1])
    assert_close(distcam_jax.dist_cam_pairs(FEATURES[:, None], PROTOTYPES, norm="l2", eps=0.5), every)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e2, 1e4, 1e30])
@pytest.mark.parametrize("norm", NORMS)
def test_dist_cam_scales_with_the_features(norm, scale):
    maps = distcam_jax.dist_cam(FEATURES * np.float32(scale), PROTOTYPES * np.float32(scale), norm=norm)
    assert_close(np.asarray(maps, np.float64) / scale, distcam_jax.dist_cam(FEATURES, PROTOTYPES, norm=norm))


@pytest.mark.parametrize("scale", [1e-4, 1e2, 1e4])
def test_contrastive_dist_cam_scales_with_the_square_of_the_features(scale):
    maps = distcam_jax.contrastive_dist_cam(FEATURES * np.float32(scale), PROTOTYPES * np.float32(scale))
    assert_close(maps / np.float32(scale**2), distcam_jax.contrastive_dist_cam(FEATURES, PROTOTYPES))


@settings(deadline=None, max_examples=20)
@given(
    shape=st.sampled_from([(1, 1, 1, 1, 1), (2, 1, 1, 3, 5), (1, 3, 2, 2, 4)]),
    norm=st.sampled_from(NORMS),
    eps=st.sampled_from([1e-3, 0.1]),
    data=st.data(),
)
def test_dist_cam_matches_loop_on_any_values(shape, norm, eps, data):
    *image, classes = shape
    # Quarters are exact in float32, so distances that cancel do so in the loop as well.
    quarters = st.integers(0, 12).map(lambda value: value / 4)
    features = np.array(data.draw(st.lists(quarters, min_size=math.prod(image), max_size=math.prod(image))))
    vectors = np.array(data.draw(st.lists(quarters, min_size=classes * image[-1], max_size=classes * image[-1])))
    features, prototypes = features.reshape(image), vectors.reshape(classes, image[-1])
    if image[1] * image[2] == 6:
        features *= 6  # so that means are exact too
    maps = distcam_jax.dist_cam(features, prototypes, norm=norm, eps=eps)
    assert_close(maps, loop_dist_cam(features, prototypes, norm, eps), 1e-4 if norm == "minmax" else 1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), eps=st.sampled_from([1e-6, 0.1]))
def test_dist_cam_is_a_mean_over_channels(seed, eps):
    features, prototypes = random_features(seed, (3, 2, 4, 6)), random_vectors(seed + 1, (5, 6))
    maps = distcam_jax.dist_cam(features, prototypes, eps=eps)
    assert (maps <= features.max(-1)[:, None] * (1 + 1e-5)).all()
    assert (maps >= features.min(-1)[:, None] * (1 - 1e-5)).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), channels=st.permutations(range(6)), classes=st.permutations(range(5)))
def test_dist_cam_does_not_depend_on_the_order_of_channels_and_classes(seed, channels, classes):
    features, prototypes = random_features(seed, (3, 2, 4, 6)), random_vectors(seed + 1, (5, 6))
    for function in (distcam_jax.dist_cam, distcam_jax.contrastive_dist_cam):
        shuffled = function(features[..., channels], prototypes[classes][:, channels])
        assert_close(shuffled, function(features, prototypes)[:, np.array(classes)])
