"""Pooling inside a network, channels last, with torch's borders and, where elements tie, torch's choice of the first.

XLA's own maximum over windows is differentiated by a scatter, a third of a ResNet-18's training step on a CPU
(benchmarks/RESULTS.md); here each direction is pooled by comparing strided slices.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def max_pool(x: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 k"]:
    """The largest of every 3 x 3 window at stride 2, with a border of minus infinity one pixel wide.

    It can be differentiated in reverse mode only.

    Args:
        x: feature maps `[b, h, w, k]`.

    Returns:
        `[b, ceil(h / 2), ceil(w / 2), k]`.

    Examples:
        >>> max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, ..., 0].tolist()
        [[4.0, 5.0], [7.0, 8.0]]
    """
    return _max_pool_axis(_max_pool_axis(x, 2), 1)


def average_pool(x: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 k"]:
    """The mean of every 2 x 2 window at stride 2; an odd last row or column is left out.

    Args:
        x: feature maps `[b, h, w, k]`, h and w at least 2.

    Returns:
        `[b, h // 2, w // 2, k]`.

    Examples:
        >>> average_pool(jnp.arange(6.0).reshape(1, 2, 3, 1))[0, ..., 0].tolist()
        [[2.0]]
    """
    b, h, w, k = x.shape
    return jnp.mean(x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, k), (2, 4))


def _windows(x, axis):
    """The elements before, at and after every even place along an axis: the windows of three at stride 2."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (1, x.shape[axis] % 2, 0)
    padded = jax.lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), padding)
    last = x.shape[axis] - 1 + x.shape[axis] % 2
    return [jax.lax.slice_in_dim(padded, tap, tap + last, 2, axis) for tap in range(3)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_axis(x, axis):
    before, at, after = _windows(x, axis)
    return jnp.maximum(jnp.maximum(before, at), after)


def _max_pool_forward(x, axis):
    return _max_pool_axis(x, axis), x


def _max_pool_backward(axis, x, gradient):
    # Elements are compared with each other, not with the maximum: the compiler may compute x again and round it
    # otherwise, and each window's gradient still goes to just one element.
    before, at, after = _windows(x, axis)
    first = (before >= at) & (before >= after)
    second = ~first & (at >= after)
    zero = jnp.zeros((), gradient.dtype)
    even = jnp.where(second, gradient, zero)
    # An odd place is the third of one window and the first of the next.
    following = [(0, 0, 0)] * x.ndim
    following[axis] = (-1, 1, 0)
    odd = jnp.where(first | second, zero, gradient) + jax.lax.pad(jnp.where(first, gradient, zero), zero, following)
    merged = jnp.stack([even, odd], axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return (jax.lax.slice_in_dim(merged, 0, x.shape[axis], axis=axis),)


_max_pool_axis.defvjp(_max_pool_forward, _max_pool_backward)
