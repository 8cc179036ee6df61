"""Layers as plain NumPy loops, and networks filled with numbers that hide no mistake."""

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp


def convolve_by_loop(x, kernel, stride, padding):
    """Cross-correlation of `[b, h, w, i]` with `[s, s, i, o]`, a border of zeros of the same width on every side."""
    size = kernel.shape[0]
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = (padded.shape[1] - size) // stride + 1
    columns = (padded.shape[2] - size) // stride + 1
    result = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            window = padded[:, row * stride : row * stride + size, column * stride : column * stride + size]
            result[:, row, column] = np.einsum("bijk,ijko->bo", window, kernel.astype(np.float64))
    return result


def max_pool_by_loop(x):
    """3 x 3 at stride 2, a border of one that never wins."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = (padded.shape[1] - 3) // 2 + 1, (padded.shape[2] - 3) // 2 + 1
    result = np.zeros((len(x), rows, columns, x.shape[3]))
    for row in range(rows):
        for column in range(columns):
            result[:, row, column] = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].max((1, 2))
    return result


def normalize_by_hand(layer, x):
    """Batch normalisation in evaluation mode."""
    mean, var, scale, bias = (
        np.asarray(v.get_value(), np.float64) for v in (layer.mean, layer.var, layer.scale, layer.bias)
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def _numbers(path, leaf, random):
    """Starting values that hide no mistake: no scale is zero, no mean is zero."""
    name = jax.tree_util.keystr(path)
    if "kernel" in name:
        value = random.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
    elif "scale" in name or "var" in name:
        value = random.uniform(0.5, 1.5, leaf.shape)
    else:
        value = random.normal(0, 0.1, leaf.shape)
    return jnp.asarray(value, leaf.dtype)


def filled(make):
    """What `make` makes, filled from NumPy: to compile the first values would take many times as long."""
    graph, state = nnx.split(nnx.eval_shape(make))
    random = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map_with_path(lambda path, leaf: _numbers(path, leaf, random), state))


@nnx.jit
def run(model, images, key=None):
    return model(images, key=key)


def images_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def size_of(model, kind):
    """Numbers in all variables of a kind."""
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, kind)))


def assert_keeps_float32_where_it_counts(model, images, key=None):
    """Maps of a bfloat16 model in bfloat16, but embedding, output and every variable in float32; gives the features."""
    output, features = run(model, images, key)
    assert features["pre_pool"].dtype == jnp.bfloat16
    assert features["embedding"].dtype == output.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    return features
