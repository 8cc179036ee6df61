"""Eq. 2 to 7 against loops in float64 NumPy, written from the equations alone."""

import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import numpy as jnp
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

import distcam_jax

NORMS = ["sum", "l2", "max", "minmax"]
MIB = 2**20


def random_features(seed, shape):
    """Non-negative, half of them zero, of a different mean in each channel, as after a ReLU."""
    generator = np.random.default_rng(seed)
    return np.maximum(generator.normal(size=shape) + generator.normal(size=shape[-1]), 0).astype(np.float32)


def random_vectors(seed, shape):
    return np.random.default_rng(seed).uniform(0, 1.5, size=shape).astype(np.float32)


def loop_weights(distances, norm, eps):
    """Eq. 5 for one class: a list of distances to a list of weights."""
    mean = sum(distances) / len(distances)
    weights = [1 / (d / mean + eps) if mean else 1.0 for d in distances]
    if norm == "minmax":
        low, high = min(weights), max(weights)
        return [(w - low) / (high - low) if high > low else 1.0 for w in weights]
    total = {"sum": sum(weights), "l2": math.sqrt(sum(w * w for w in weights)), "max": max(weights)}[norm]
    return [w / total for w in weights]


def loop_distances(image, prototypes):
    """Eq. 4 for one image [h, w, k]: distances [c][k]."""
    height, width, channels = image.shape
    pooled = [
        sum(image[y, x, k] for y in range(height) for x in range(width)) / (height * width) for k in range(channels)
    ]
    return [[abs(prototype[k] - pooled[k]) for k in range(channels)] for prototype in prototypes]


def loop_map(image, weights):
    """Eq. 6 for one image and class."""
    height, width, channels = image.shape
    return [[sum(weights[k] * image[y, x, k] for k in range(channels)) for x in range(width)] for y in range(height)]


def loop_dist_cam(features, prototypes, norm="sum", eps=0.1):
    """Dist-CAM of images [n, h, w, k] for prototypes [c, k]: [n, c, h, w]."""
    features, prototypes = np.asarray(features, np.float64), np.asarray(prototypes, np.float64)
    maps = [[loop_map(q, loop_weights(d, norm, eps)) for d in loop_distances(q, prototypes)] for q in features]
    return np.array(maps)


def loop_contrastive(features, prototypes):
    features, prototypes = np.asarray(features, np.float64), np.asarray(prototypes, np.float64)
    maps = []
    for image in features:
        distances = loop_distances(image, prototypes)
        mean = [sum(d[k] for d in distances) / len(distances) for k in range(image.shape[-1])]
        maps.append([loop_map(image, [m - d for m, d in zip(mean, row, strict=True)]) for row in distances])
    return np.array(maps)


def assert_close(actual, desired, tolerance=1e-5):
    """Equal to within `tolerance` of the largest value, without NaN."""
    desired = np.asarray(desired, np.float64)
    assert np.isfinite(desired).all()
    np.testing.assert_allclose(
        actual, desired, rtol=tolerance, atol=tolerance * (np.abs(desired).max() if desired.size else 0)
    )


# Every function with arguments it takes, for the checks that concern all of them.
FEATURES, PROTOTYPES = random_features(0, (3, 2, 4, 6)), random_vectors(1, (5, 6))
CALLS = {
    "global_average_pool": (distcam_jax.global_average_pool, (FEATURES,)),
    "channel_distances": (distcam_jax.channel_distances, (PROTOTYPES[0], PROTOTYPES[1:])),
    "reciprocal_weights": (distcam_jax.reciprocal_weights, (PROTOTYPES,)),
    "contrastive_weights": (distcam_jax.contrastive_weights, (PROTOTYPES,)),
    "weighted_channel_sum": (distcam_jax.weighted_channel_sum, (FEATURES, PROTOTYPES[:3])),
    "cam": (distcam_jax.cam, (FEATURES, PROTOTYPES)),
    "dist_cam": (distcam_jax.dist_cam, (FEATURES, PROTOTYPES)),
    "dist_cam_pairs": (distcam_jax.dist_cam_pairs, (FEATURES, PROTOTYPES[:3])),
    "contrastive_dist_cam": (distcam_jax.contrastive_dist_cam, (FEATURES, PROTOTYPES)),
    "class_prototypes": (lambda x: distcam_jax.class_prototypes(x, np.array([0, 2, 2, 0, 3]), 4)[0], (PROTOTYPES,)),
    "nearest_prototype": (lambda x, p: distcam_jax.nearest_prototype(x, p)[1], (PROTOTYPES[:2] + 1, PROTOTYPES)),
}
every_function = pytest.mark.parametrize(("function", "arguments"), CALLS.values(), ids=CALLS)


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


def degenerate_inputs():
    dead = FEATURES.copy()
    dead[..., 1:4] = 0
    pooled = FEATURES.astype(np.float64).mean((1, 2)).astype(np.float32)
    flat = np.broadcast_to(PROTOTYPES[:3, None, None], FEATURES.shape).astype(np.float32)
    half = np.array([[[[0.0], [0.5]]]], np.float32)
    return {
        "query equals prototype": (flat, PROTOTYPES[:3]),
        "pooled equals prototype": (half, np.full((2, 1), 0.25, np.float32)),
        "nearly equal": (FEATURES, pooled),
        "dead channels": (dead, PROTOTYPES * (np.arange(6) < 1)),
        "all-zero image": (FEATURES * np.array([0, 1, 1])[:, None, None, None], PROTOTYPES),
        "all zero": (FEATURES * 0, PROTOTYPES * 0),
        "one class": (FEATURES, PROTOTYPES[:1]),
        "1 x 1 maps": (FEATURES[:, :1, :1], PROTOTYPES),
        "1e-30": (FEATURES * 1e-30, PROTOTYPES * 1e-30),
        "1e30": (FEATURES * 1e30, PROTOTYPES * 1e30),
        "1e-38": (FEATURES * 1e-38, PROTOTYPES * 1e-38),
        "one tiny distance": (flat[:1], PROTOTYPES[:1] + np.eye(6)[:1] * 1e-38),
    }


@pytest.mark.parametrize("case", degenerate_inputs())
@pytest.mark.parametrize("norm", NORMS)
def test_dist_cam_has_finite_maps_and_gradients(case, norm):
    features, prototypes = (jnp.asarray(x, jnp.float32) for x in degenerate_inputs()[case])
    for eps in (0.1, 1e-6):
        maps, pull_back = jax.vjp(functools.partial(distcam_jax.dist_cam, norm=norm, eps=eps), features, prototypes)
        assert np.isfinite(maps).all()
        # As a loss that divides by the maps' size would have it: a pull of one per unit.
        gradients = pull_back(jnp.ones_like(maps) / jnp.maximum(maps.max(), 1e-30))
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(("norm", "weight"), [("sum", 1 / 6), ("l2", 6**-0.5), ("max", 1.0), ("minmax", 1.0)])
def test_dist_cam_of_a_query_equal_to_its_prototype_weighs_channels_equally(norm, weight):
    query = PROTOTYPES[2]
    maps = distcam_jax.dist_cam(query[None, None], query[None], norm=norm)
    np.testing.assert_allclose(maps, np.full((1, 1, 1), weight * query.sum()), rtol=1e-5)


@pytest.mark.parametrize("function", [distcam_jax.dist_cam, distcam_jax.contrastive_dist_cam])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_dist_cam_keeps_a_bad_image_to_itself(function, batch_size, bad):
    spoiled = FEATURES.copy()
    spoiled[1, 0, 2, 3] = bad
    maps = function(spoiled, PROTOTYPES, batch_size=batch_size)
    assert np.isnan(maps[1]).any()
    np.testing.assert_allclose(maps[::2], function(FEATURES, PROTOTYPES, batch_size=batch_size)[::2], rtol=1e-6)


@every_function
def test_every_function_works_under_jit(function, arguments):
    np.testing.assert_allclose(jax.jit(function)(*arguments), function(*arguments), rtol=1e-5, atol=1e-6)


@every_function
def test_every_function_works_under_vmap(function, arguments):
    stacked = [jnp.stack([x, x[::-1] * 2]) for x in arguments]
    desired = [function(*(x[i] for x in stacked)) for i in range(2)]
    np.testing.assert_allclose(jax.vmap(function)(*stacked), desired, rtol=1e-5, atol=1e-6)


@every_function
def test_every_gradient_matches_differences(function, arguments):
    with jax.enable_x64(True):
        check_grads(function, [np.asarray(x, np.float64) for x in arguments], order=1, modes=["fwd", "rev"], eps=1e-6)


@every_function
def test_every_function_keeps_float64(function, arguments):
    exact = [np.asarray(x, np.float64) + 1e-9 for x in arguments]
    single = function(*exact)
    assert single.dtype == jnp.float32  # 64-bit mode is off
    with jax.enable_x64(True):
        double = function(*exact)
        assert double.dtype == jnp.float64
        mixed = function(exact[0], *(x.astype(np.float32) for x in exact[1:]))
        assert mixed.dtype == jnp.float64
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-5)


@every_function
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_every_function_computes_half_precision_in_float32(function, arguments, dtype):
    half = [jnp.asarray(x, dtype) for x in arguments]
    desired = function(*(np.asarray(x, np.float32) for x in half))
    for mixed in (half, [half[0], *(x.astype(jnp.float32) for x in half[1:])]):
        result = function(*mixed)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, desired, rtol=1e-5, atol=1e-6)


@every_function
@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_every_function_rejects_types_that_are_not_floating(function, arguments, dtype, without_type_checks):
    for position in range(len(arguments)):
        changed = [x.astype(dtype) if i == position else x for i, x in enumerate(arguments)]
        with pytest.raises(ValueError, match=rf"want a floating type, got {np.dtype(dtype)}"):
            function(*changed)


BAD_SHAPES = {
    "global_average_pool": [((4, 6),), ((0, 4, 6),), ((4, 0, 6),), ((4, 4, 0),)],
    "channel_distances": [((5, 6), (7,)), ((5, 6), (1,)), ((), (6,)), ((0,), (0,)), ((5, 6), (4, 6))],
    "reciprocal_weights": [((),), ((3, 0),)],
    "contrastive_weights": [((6,),), ((0, 6),), ((3, 0),)],
    "weighted_channel_sum": [((2, 4, 6), (5,)), ((4, 6), (6,)), ((3, 2, 4, 6), (2, 6)), ((2, 4, 6), (1,))],
    "cam": [((2, 4, 6), (5, 7)), ((2, 4, 6), (6,)), ((4, 6), (5, 6)), ((2, 4, 6), (0, 6)), ((2, 4, 6), (1, 5, 6))],
    "dist_cam": [((2, 4, 6), (5, 7)), ((2, 4, 6), (6,)), ((4, 6), (5, 6)), ((2, 4, 6), (0, 6)), ((2, 0, 6), (5, 6))],
    "dist_cam_pairs": [((3, 2, 4, 6), (3, 7)), ((3, 2, 4, 6), (2, 6)), ((4, 6), (6,)), ((2, 4, 0), (0,))],
    "contrastive_dist_cam": [((2, 4, 6), (5, 7)), ((2, 4, 6), (1, 5, 6)), ((4, 6), (5, 6)), ((2, 4, 6), (0, 6))],
    "nearest_prototype": [((3, 6), (5, 7)), ((), (5, 6)), ((3, 6), (6,)), ((3, 6), (0, 6)), ((3, 0), (5, 0))],
}


@pytest.mark.parametrize(("name", "shapes"), [(name, shapes) for name, cases in BAD_SHAPES.items() for shapes in cases])
def test_every_function_rejects_shapes_that_do_not_fit(name, shapes, without_type_checks):
    with pytest.raises(ValueError, match=r"want .*, got "):
        getattr(distcam_jax, name)(*(np.ones(shape, np.float32) for shape in shapes))


def test_shape_error_names_the_argument_and_both_sizes(without_type_checks):
    with pytest.raises(
        ValueError, match=r"prototypes: want axes \[c k\] with k = 6 as in features, got shape \(5, 7\)"
    ):
        distcam_jax.dist_cam(FEATURES, np.ones((5, 7), np.float32))


@pytest.mark.parametrize("function", [distcam_jax.dist_cam, distcam_jax.dist_cam_pairs])
@pytest.mark.parametrize("eps", [0.0, -0.1, math.nan, math.inf, -math.inf, "0.1", None])
def test_eps_must_be_positive_and_finite(function, eps, without_type_checks):
    with pytest.raises(ValueError, match="eps: want a positive finite number"):
        function(FEATURES, PROTOTYPES[:3], eps=eps)
    with pytest.raises(ValueError, match="eps: want a positive finite number"):
        distcam_jax.reciprocal_weights(PROTOTYPES, eps=eps)


@pytest.mark.parametrize("function", [distcam_jax.dist_cam, distcam_jax.dist_cam_pairs])
def test_unknown_norm_lists_the_known_ones(function):
    with pytest.raises(ValueError, match="norm: want one of 'sum', 'l2', 'max', 'minmax', got 'softmax'"):
        function(FEATURES, PROTOTYPES[:3], norm="softmax")


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_batch_size_must_be_positive(batch_size, without_type_checks):
    for function in (distcam_jax.dist_cam, distcam_jax.contrastive_dist_cam):
        with pytest.raises(ValueError, match="batch_size: want a positive integer"):
            function(FEATURES, PROTOTYPES, batch_size=batch_size)


@pytest.mark.parametrize("function", [distcam_jax.cam, distcam_jax.dist_cam, distcam_jax.contrastive_dist_cam])
def test_empty_batch_gives_empty_maps(function):
    assert function(FEATURES[:0], PROTOTYPES).shape == (0, 5, 2, 4)
    assert function(np.zeros((3, 0, 2, 4, 6), np.float32), PROTOTYPES).shape == (3, 0, 5, 2, 4)


def test_empty_batch_gives_empty_pairs_and_labels():
    assert distcam_jax.dist_cam_pairs(FEATURES[:0], PROTOTYPES[:0]).shape == (0, 2, 4)
    labels, distances = distcam_jax.nearest_prototype(PROTOTYPES[:0], PROTOTYPES)
    assert (labels.shape, distances.shape) == ((0,), (0, 5))


def temporary_bytes(function, *shapes, **options):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return (
        jax.jit(function, static_argnames=tuple(options))
        .lower(*arguments, **options)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


@pytest.mark.parametrize("function", [distcam_jax.dist_cam, distcam_jax.contrastive_dist_cam])
def test_dist_cam_needs_no_more_memory_for_more_images(function):
    sizes = [temporary_bytes(function, (n, 7, 7, 2048), (1000, 2048)) for n in (8, 64)]
    maps = 64 * 1000 * 49 * 4
    assert sizes[1] <= 64 * MIB  # all weights at once would fill 500 MiB
    assert sizes[1] - sizes[0] <= maps


def test_dist_cam_gradient_does_not_keep_the_weights():
    def total(features, prototypes):
        return jnp.sum(jnp.square(distcam_jax.dist_cam(features, prototypes)))

    assert temporary_bytes(jax.grad(total), (64, 7, 7, 2048), (1000, 2048)) <= 160 * MIB


def test_nearest_prototype_needs_no_more_memory_for_more_embeddings():
    assert temporary_bytes(distcam_jax.nearest_prototype, (4096, 512), (100, 512)) <= 64 * MIB  # at once 800 MiB


@pytest.mark.parametrize("function", [distcam_jax.dist_cam, distcam_jax.contrastive_dist_cam])
def test_dist_cam_runs_on_a_batch_sharded_over_devices(function):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (PartitionSpec("data"), PartitionSpec()), "out_specs": PartitionSpec("data")}
    features = random_features(11, (8, 2, 4, 6))
    sharded = jax.jit(jax.shard_map(functools.partial(function, batch_size=1), mesh=mesh, **specs))
    assert_close(sharded(features, PROTOTYPES), function(features, PROTOTYPES))


def test_class_prototypes_match_loop():
    embeddings, labels = random_vectors(9, (40, 6)), np.random.default_rng(9).integers(0, 4, 40)
    prototypes, counts = distcam_jax.class_prototypes(embeddings, labels, 4)
    assert_close(prototypes, [embeddings[labels == c].astype(np.float64).mean(0) for c in range(4)])
    np.testing.assert_array_equal(counts, [(labels == c).sum() for c in range(4)])


def test_class_prototypes_leave_classes_without_samples_at_zero():
    prototypes, counts = distcam_jax.class_prototypes(PROTOTYPES, np.array([4, 4, 0, 0, 4]), 6)
    np.testing.assert_array_equal(counts, [2, 0, 0, 0, 3, 0])
    np.testing.assert_array_equal(prototypes[np.array([1, 2, 3, 5])], np.zeros((4, 6)))


@pytest.mark.parametrize("dropped", [-1, -2, 3, 100, -(2**31)])
def test_class_prototypes_drop_labels_out_of_range(dropped):
    prototypes, counts = distcam_jax.class_prototypes(PROTOTYPES, np.array([0, dropped, 2, dropped, 2], np.int32), 3)
    np.testing.assert_array_equal(counts, [1, 0, 2])
    assert_close(prototypes, [PROTOTYPES[0], np.zeros(6), (PROTOTYPES[2] + PROTOTYPES[4]) / 2])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_class_prototypes_take_narrow_labels(dtype):
    labels = np.array([0, 100, 1, 100, 1], dtype)
    counts = distcam_jax.class_prototypes(PROTOTYPES, labels, 300)[1]
    np.testing.assert_array_equal(counts, np.bincount(labels, minlength=300))


def test_class_prototypes_of_bfloat16_count_past_256():
    # In bfloat16 a sum of ones stops at 256.
    prototypes, counts = distcam_jax.class_prototypes(jnp.ones((1000, 2), jnp.bfloat16), np.zeros(1000, np.int32), 1)
    assert (prototypes.tolist(), counts.tolist()) == ([[1.0, 1.0]], [1000])


def test_class_prototypes_take_no_samples():
    prototypes, counts = distcam_jax.class_prototypes(PROTOTYPES[:0], np.zeros(0, np.int32), 3)
    assert (prototypes.tolist(), counts.tolist()) == ([[0.0] * 6] * 3, [0] * 3)


@pytest.mark.parametrize(
    ("embeddings", "labels", "num_classes", "message"),
    [
        (PROTOTYPES, np.zeros(4, np.int32), 3, "labels: want 5 integers, one a sample"),
        (PROTOTYPES, np.zeros((5, 1), np.int32), 3, "labels: want 5 integers, one a sample"),
        (PROTOTYPES, np.zeros(5, np.float32), 3, "labels: want 5 integers.*, got float32"),
        (PROTOTYPES, np.zeros(5, np.bool_), 3, "labels: want 5 integers.*, got bool"),
        (PROTOTYPES, np.zeros(5, np.int32), 0, "num_classes: want a positive integer, got 0"),
        (PROTOTYPES, np.zeros(5, np.int32), 3.0, "num_classes: want a positive integer, got 3.0"),
        (PROTOTYPES[0], np.zeros(6, np.int32), 3, "embeddings: want axes \\[n k\\]"),
        (PROTOTYPES[None], np.zeros(1, np.int32), 3, "embeddings: want axes \\[n k\\]"),
        (PROTOTYPES[:, :0], np.zeros(5, np.int32), 3, "embeddings: want axes \\[n k\\] with k not empty"),
    ],
)
def test_class_prototypes_reject_bad_input(embeddings, labels, num_classes, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        distcam_jax.class_prototypes(embeddings, labels, num_classes)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 8])
def test_nearest_prototype_matches_loop(batch_size):
    embeddings = random_vectors(10, (4, 2, 6))
    labels, distances = distcam_jax.nearest_prototype(embeddings, PROTOTYPES, batch_size=batch_size)
    desired = [[[sum(abs(np.float64(e) - p)) for p in PROTOTYPES] for e in row] for row in embeddings]
    assert_close(distances, desired)
    np.testing.assert_array_equal(labels, np.argmin(desired, axis=-1))
    squared = ((embeddings[..., None, :] - PROTOTYPES) ** 2).sum(-1)
    assert (np.argmin(desired, axis=-1) != squared.argmin(-1)).any()  # L1 and L2 differ on these


def test_nearest_prototype_takes_the_lowest_of_equal_classes():
    labels, _ = distcam_jax.nearest_prototype(
        np.array([1.0, 1.0]), np.array([[5.0, 5.0], [2.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    )
    assert labels == 1


def test_nearest_prototype_leaves_out_classes_without_samples():
    embeddings, prototypes = np.array([[0.1, 0.1]]), np.array([[0.0, 0.0], [3.0, 3.0]])
    assert distcam_jax.nearest_prototype(embeddings, prototypes)[0].tolist() == [0]
    labels, distances = distcam_jax.nearest_prototype(embeddings, prototypes, counts=np.array([0, 7]))
    assert labels.tolist() == [1]
    assert distances[0, 0] == np.inf


def test_nearest_prototype_rejects_counts_of_another_length(without_type_checks):
    with pytest.raises(ValueError, match=r"counts: want shape \(5,\), one a prototype, got \(4,\)"):
        distcam_jax.nearest_prototype(PROTOTYPES, PROTOTYPES, counts=np.ones(4, np.int32))
