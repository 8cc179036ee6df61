"""Convolution, pooling and batch normalisation, forwards and backwards, against NumPy loops."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from distcam_jax import compiler
from distcam_jax.models.convolution import compiler_options, convolve
from distcam_jax.models.layers import BatchNorm, fan_in_normal, fan_out_normal, moments
from distcam_jax.models.pooling import average_pool, max_pool
from distcam_jax.training import create_mesh
from tests.network_oracles import convolve_by_loop, images_of, max_pool_by_loop


def convolution_gradients_by_loop(x, kernel, stride, padding, gradient):
    """Every product of the forward sum, once for each of its factors."""
    size = kernel.shape[0]
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    by_padded, by_kernel = np.zeros_like(padded), np.zeros(kernel.shape)
    for row in range(gradient.shape[1]):
        for column in range(gradient.shape[2]):
            rows = slice(row * stride, row * stride + size)
            columns = slice(column * stride, column * stride + size)
            here = gradient[:, row, column]
            by_kernel += np.einsum("bijk,bo->ijko", padded[:, rows, columns], here)
            by_padded[:, rows, columns] += np.einsum("bo,ijko->bijk", here, kernel)
    return by_padded[:, padding : padding + x.shape[1], padding : padding + x.shape[2]], by_kernel


@pytest.mark.parametrize(("draw", "fan"), [(fan_out_normal, "fan_out"), (fan_in_normal, "fan_in")])
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (1, 1, 6, 4)])
def test_normal_of_a_fan_is_bit_by_bit_that_of_flax(shape, draw, fan):
    key = jax.random.key(3)
    want = nnx.initializers.variance_scaling(2.0, fan, "normal")(key, shape, jnp.float32)
    np.testing.assert_array_equal(draw(key, shape), want)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("shape", [(8, 10), (9, 7), (7, 8)])
def test_convolve_and_its_gradients_match_loop(shape, size, stride):
    x, kernel = jnp.asarray(images_of(2, *shape, 3)), jnp.asarray(images_of(size, size, 3, 4, seed=1))
    want = convolve_by_loop(np.asarray(x), np.asarray(kernel), stride, size // 2)
    gradient = images_of(*want.shape, seed=2)
    got, back = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    by_x, by_kernel = convolution_gradients_by_loop(np.asarray(x), np.asarray(kernel), stride, size // 2, gradient)
    got_x, got_kernel = back(jnp.asarray(gradient))
    np.testing.assert_allclose(got_x, by_x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got_kernel, by_kernel, rtol=1e-4, atol=1e-3)


def test_convolve_gives_other_devices_nothing_but_the_convolution(monkeypatch):
    def lowered():
        x, kernel = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32"), jax.ShapeDtypeStruct((3, 3, 4, 4), "float32")
        gradients = jax.grad(lambda x, kernel: convolve(x, kernel, 2).sum(), (0, 1))
        return jax.jit(gradients).trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()

    assert "optimization_barrier" in lowered()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    text = lowered()
    assert text.count("stablehlo.convolution") == 2  # by the input and by the kernel
    assert "optimization_barrier" not in text


def max_pool_gradient_by_loop(x, gradient):
    """Each window's gradient goes to its first largest element, row by row."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    result = np.zeros(padded.shape)
    for b, row, column, k in np.ndindex(gradient.shape):
        window = padded[b, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3, k]
        i, j = np.unravel_index(window.argmax(), window.shape)
        result[b, 2 * row + i, 2 * column + j, k] += gradient[b, row, column, k]
    return result[:, 1:-1, 1:-1]


@pytest.mark.parametrize("shape", [(8, 8), (7, 10), (5, 5), (1, 1), (1, 4)])
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool_and_its_gradient_match_loop(shape, ties):
    x = images_of(2, *shape, 3)
    if ties:
        x = np.round(x)  # most windows then hold their maximum several times
    want = max_pool_by_loop(x)
    gradient = images_of(*want.shape, seed=1)
    got, back = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(got, want)
    (by_x,) = back(jnp.asarray(gradient))
    np.testing.assert_allclose(by_x, max_pool_gradient_by_loop(x, gradient), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (2, 3)])
def test_average_pool_leaves_an_odd_border_out(shape):
    x = images_of(2, *shape, 3)
    want = np.zeros((2, shape[0] // 2, shape[1] // 2, 3))
    for row, column in np.ndindex(want.shape[1:3]):
        want[:, row, column] = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
    np.testing.assert_allclose(average_pool(jnp.asarray(x)), want, rtol=1e-5, atol=1e-6)


def test_moments_keep_their_digits_beside_a_large_mean():
    x = images_of(4, 8, 8, 3) * 0.1 + 1000
    mean, variance = moments(jnp.asarray(x))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, x.astype(np.float64).var((0, 1, 2)), rtol=1e-2)  # a difference of means: 100 %


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_gradient_matches_finite_differences(dtype):
    x = jnp.asarray(images_of(5, 3), dtype)
    weights = np.array([[0.3, -1.0, 2.0], [1.5, 0.4, -0.7]])

    def weighted(x):
        return (weights[0] * x.mean(0) + weights[1] * x.var(0)).sum()

    got = jax.grad(lambda x: sum(jnp.vdot(w, m) for w, m in zip(weights.astype("float32"), moments(x), strict=True)))(x)
    assert got.dtype == x.dtype
    exact = np.asarray(x, np.float64)
    want = np.zeros(exact.shape)
    for place in np.ndindex(exact.shape):
        step = np.zeros(exact.shape)
        step[place] = 1e-5
        want[place] = (weighted(exact + step) - weighted(exact - step)) / 2e-5
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=1e-4 if dtype == "float32" else 1e-2, atol=1e-4)


@nnx.jit
def normalized(layer, x):
    return layer(x)


def test_batch_norm_in_training_normalises_and_keeps_torchs_statistics():
    layer = BatchNorm(2, dtype=jnp.float32)
    layer.scale.set_value(jnp.array([2.0, -0.5]))
    layer.bias.set_value(jnp.array([1.0, 3.0]))
    x = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 8.0]], np.float32)  # means 2 and 6, biased variances 8/3 and 2
    y = normalized(layer, x)
    deviations = np.sqrt(np.array([8 / 3, 2]) + 1e-5)
    np.testing.assert_allclose(y, (x - [2, 6]) / deviations * [2, -0.5] + [1, 3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.mean.get_value(), [0.2, 0.6], rtol=1e-6)
    np.testing.assert_allclose(layer.var.get_value(), [0.9 + 0.1 * 4, 0.9 + 0.1 * 3], rtol=1e-6)  # unbiased: 4 and 3
    layer.eval()
    z = normalized(layer, x)
    np.testing.assert_allclose(
        z, (x - [0.2, 0.6]) / np.sqrt(np.array([1.3, 1.2]) + 1e-5) * [2, -0.5] + [1, 3], rtol=1e-5, atol=1e-6
    )


def test_batch_norm_of_one_value_a_channel_is_finite():
    graph, state = nnx.split(BatchNorm(3, dtype=jnp.float32))

    def run(x):
        layer = nnx.merge(graph, state, copy=True)
        return layer(x), layer.var.get_value()

    y, back, variance = jax.vjp(run, jnp.array([[1.0, -2.0, 0.0]]), has_aux=True)
    np.testing.assert_array_equal(y, np.zeros((1, 3)))
    np.testing.assert_allclose(variance, [0.9, 0.9, 0.9], rtol=1e-6)
    assert np.isfinite(back(jnp.ones((1, 3)))[0]).all()


def test_batch_norm_statistics_are_those_of_the_whole_batch_over_eight_devices():
    x = images_of(16, 3, 5, 4) * np.arange(1, 17, dtype=np.float32)[:, None, None, None]  # shards differ widely
    layer = BatchNorm(4, dtype=jnp.float32)
    sharding = NamedSharding(create_mesh(), PartitionSpec("data"))
    y = normalized(layer, jax.device_put(x, sharding))
    assert len(y.sharding.device_set) == 8
    exact = x.astype(np.float64)
    np.testing.assert_allclose(layer.mean.get_value(), 0.1 * exact.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.var.get_value(), 0.9 + 0.1 * exact.var((0, 1, 2), ddof=1), rtol=1e-5)
    want = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_compiler_options_are_left_out_where_the_compiler_does_not_know_them(monkeypatch):
    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    compiler._are_known.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", refuse)
        assert compiler_options() == {}
    compiler._are_known.cache_clear()
    assert compiler_options()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == {}
