"""Distances between many vectors, as a search needs them: fast ones to choose by, exact ones to put in order.

All are increasing functions of the distances that the search returns: squares for L2 and cosine (of unit vectors), as
`finished_distances` tells.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

METRICS = ("l1", "l2", "cosine")
_SHORTEST = 1e-12  # a vector whose norm is no larger counts as zero
_CHANNELS = 32  # added up in one go

AnyArray = Array | np.ndarray


def unit_vectors(vectors: Float[AnyArray, "*n k"]) -> Float[Array, "*n k"]:
    """Vectors divided by their lengths; one of zeros stays zero.

    Examples:
        >>> unit_vectors(jnp.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    vectors = jnp.asarray(vectors)
    return vectors * vector_scales(vectors, "cosine")[..., None]


def vector_scales(vectors: Float[AnyArray, "*n k"], metric: str) -> Float[Array, "*n"]:
    """What `product_distances` wants to know of each vector: for cosine one over its length, else the length's square.

    Examples:
        >>> vector_scales(jnp.array([[0.0, 2.0], [0.0, 0.0]]), "cosine").tolist()
        [0.5, 0.0]
    """
    squared = jnp.sum(jnp.square(vectors), axis=-1)
    if metric != "cosine":
        return squared
    valid = squared > _SHORTEST**2
    # No rsqrt: the CPU rounds it otherwise in a vector of them than alone, and equal rows must have equal distances.
    return jnp.where(valid, 1 / jnp.sqrt(jnp.where(valid, squared, 1)), 0)


def product_distances(
    query: Float[Array, "q k"], others: Float[Array, "m k"], scales: Float[Array, " m"], metric: str
) -> Float[Array, "m q"]:
    """What orders others as their L2 or cosine distances to a query do, up to the rounding of a matrix product.

    Examples:
        >>> query, others = jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 1.0]])
        >>> product_distances(query, others, vector_scales(others, "l2"), "l2").tolist()
        [[3.0], [1.0]]
    """
    factor = -1 if metric == "cosine" else -2
    products = jnp.matmul(others, (factor * query).T, precision=lax.Precision.HIGHEST)
    return products * scales[:, None] if metric == "cosine" else products + scales[:, None]


def difference_distances(query: Float[Array, "q k"], others: Float[Array, "m k"], metric: str) -> Float[Array, "m q"]:
    """Distances of all pairs, channel by channel; `query` and `others` of unit length for cosine.

    Examples:
        >>> difference_distances(jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 1.0]]), "l1").tolist()
        [[2.0], [2.0]]
    """
    measure = jnp.abs if metric == "l1" else jnp.square
    columns = query.T  # with the queries side by side, the CPU adds up a channel of many of them at once

    def add(total, ours, theirs):
        return functools.reduce(lambda total, c: total + measure(theirs[:, c, None] - ours[c]), range(len(ours)), total)

    def add_slice(total, start):
        ours = lax.dynamic_slice_in_dim(columns, start, _CHANNELS)
        return add(total, ours, lax.dynamic_slice_in_dim(others, start, _CHANNELS, axis=1)), None

    whole = len(columns) // _CHANNELS * _CHANNELS
    total = jnp.zeros((len(others), len(query)), query.dtype)
    if whole:
        total, _ = lax.scan(add_slice, total, jnp.arange(0, whole, _CHANNELS, dtype=jnp.int32))
    total = add(total, columns[whole:], others[:, whole:])
    if metric != "cosine":
        return total
    return jnp.where(_is_zero(others)[:, None] | _is_zero(query), 2, total)


def pair_distances(one: Float[Array, " k"], others: Float[Array, "m k"], metric: str) -> Float[Array, " m"]:
    """Distances of one vector to a few, difference by difference; of unit length for cosine.

    Examples:
        >>> pair_distances(jnp.array([1.0, 0.0]), jnp.array([[3.0, 0.0], [0.0, 1.0]]), "l2").tolist()
        [4.0, 2.0]
    """
    differences = one - others
    total = jnp.sum(jnp.abs(differences) if metric == "l1" else jnp.square(differences), axis=-1)
    return jnp.where(_is_zero(one) | _is_zero(others), 2, total) if metric == "cosine" else total


def finished_distances(distances: Float[AnyArray, "*n"], metric: str) -> Float[Array, "*n"]:
    """The distances themselves: of unit vectors, half the square is one minus the cosine.

    Examples:
        >>> finished_distances(jnp.array([4.0]), "l2").tolist(), finished_distances(jnp.array([4.0]), "cosine").tolist()
        ([2.0], [2.0])
    """
    distances = jnp.asarray(distances)
    if metric == "l2":
        return jnp.sqrt(distances)
    return distances / 2 if metric == "cosine" else distances


def _is_zero(vectors):
    return ~jnp.any(vectors, axis=-1)
