"""Eq. 2 to 7 at their edges: degenerate values, types, transformations, wrong arguments, memory."""

import functools
import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

import distcam_jax
from tests.cam_oracles import FEATURES, NORMS, PROTOTYPES, assert_close, random_features

MIB = 2**20

# Every function with arguments it takes, for the checks that concern all of them.
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
        "one tiny distance": (flat[:1].repeat(3, axis=0), PROTOTYPES[:1] + np.eye(6)[:1] * 1e-38),
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
