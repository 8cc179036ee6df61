"""Distances of every embedding to every other: blockwise, in memory that holds no `[b, c, k]` array."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distcam_jax.checks import working_arrays

_MAX_BLOCK_ELEMENTS = 2**22  # of the [classes, b, k] differences held at once
_SHORTEST = 1e-12  # a vector whose norm is no larger counts as zero; its square still is a normal float32


def l1_distances(
    embeddings: Float[Array | np.ndarray, "b k"], prototypes: Float[Array | np.ndarray, "c k"]
) -> Float[Array, "b c"]:
    """L1 distances `sum_k |embeddings_k - prototypes_k|`, with gradients that need no `[b, c, k]` array.

    Args:
        embeddings: pooled features `[b, k]`.
        prototypes: class prototypes `[c, k]`.

    Returns:
        Distances `[b, c]`, in the embeddings' unit.

    Raises:
        ValueError: when the channel counts differ, or a rank or type does not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> l1_distances(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0], [1.0, 4.0]])).tolist()
        [[3.0, 2.0]]
    """
    embeddings, prototypes = working_arrays(embeddings=(embeddings, "b k"), prototypes=(prototypes, "c k"))
    return _summed_differences(embeddings, prototypes, absolute)


def pairwise_distances(
    embeddings: Float[Array | np.ndarray, "b k"],
    others: Float[Array | np.ndarray, "c k"] | None = None,
    *,
    metric: str,
) -> Float[Array, "b c"]:
    """Distances of every embedding to every other vector.

    Differences are taken one by one, a block of `others` at a time, instead of through `|x|² + |y|² - 2 x·y`, whose
    rounding hides the distance of near neighbours: equal vectors have the distance 0, exactly.

    Args:
        embeddings: pooled features `[b, k]`.
        others: what they are compared with `[c, k]`; None: the embeddings themselves.
        metric: `"l1"`, `sum_k |x_k - y_k|`, Dist-CAM's own; `"l2"`, `sqrt(sum_k (x_k - y_k)²)`; `"squared_l2"`, its
            square.

    Returns:
        Distances `[b, c]`, in the embeddings' unit, or its square. Where a distance is zero, so is its gradient.

    Raises:
        ValueError: on an unknown metric, when the channel counts differ, or a rank or type does not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> pairwise_distances(jnp.array([[0.0, 0.0], [3.0, 4.0]]), metric="l2").tolist()
        [[0.0, 5.0], [5.0, 0.0]]
    """
    if metric not in METRICS:
        raise ValueError(f"metric: want one of {', '.join(map(repr, METRICS))}, got {metric!r}")
    others = embeddings if others is None else others
    embeddings, others = working_arrays(embeddings=(embeddings, "b k"), others=(others, "c k"))
    if metric == "l1":
        return l1_distances(embeddings, others)
    squared = _summed_differences(embeddings, others, jnp.square)
    return squared if metric == "squared_l2" else _square_root(squared)


METRICS = ("l1", "l2", "squared_l2")


def unit_vectors(vectors: Float[Array | np.ndarray, "b k"]) -> Float[Array, "b k"]:
    """Vectors `[b, k]` divided by their lengths; one of zeros stays zero, without a gradient.

    Examples:
        >>> import jax.numpy as jnp
        >>> unit_vectors(jnp.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    (vectors,) = working_arrays(vectors=(vectors, "b k"))
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    valid = squared > _SHORTEST**2
    return jnp.where(valid, vectors * jax.lax.rsqrt(jnp.where(valid, squared, 1)), 0)


def cosine_similarities(
    embeddings: Float[Array | np.ndarray, "b k"], directions: Float[Array | np.ndarray, "c k"]
) -> Float[Array, "b c"]:
    """Cosines of the angles between embeddings and one direction a class, as the angular margins take them.

    Args:
        embeddings: pooled features `[b, k]`.
        directions: vectors of any length `[c, k]`.

    Returns:
        Cosines `[b, c]` in [-1, 1]; 0, with gradients of 0, for a vector of zeros.

    Raises:
        ValueError: when the channel counts differ, or a rank or type does not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> cosine_similarities(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0], [-6.0, -8.0]])).round(3).tolist()
        [[0.800000011920929, -1.0]]
    """
    embeddings, directions = working_arrays(embeddings=(embeddings, "b k"), directions=(directions, "c k"))
    cosines = jnp.matmul(unit_vectors(embeddings), unit_vectors(directions).T, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(cosines, -1.0, 1.0)  # rounding may pass 1, where the arc cosine is NaN


def absolute(x: jax.Array) -> jax.Array:
    """The absolute value; its derivative at zero is zero, where that of `jnp.abs` may be one."""
    return x * jnp.sign(x)


def map_blocks(function: Callable, items, size: int):
    """Applies a function to every item along the first axis, in blocks that hold about as much as may be held at once.

    Args:
        function: of one item.
        items: array or tuple of arrays with a common first axis.
        size: elements which the function holds for one item.

    Returns:
        The results along a first axis. The backward pass computes a block again instead of keeping it.
    """
    count = len(jax.tree.leaves(items)[0])
    block = max(1, min(count, _MAX_BLOCK_ELEMENTS // max(1, size)))
    return jax.lax.map(jax.checkpoint(function), items, batch_size=block)


def _summed_differences(embeddings, others, measure) -> jax.Array:
    def to_one(other):
        return jnp.sum(measure(embeddings - other), axis=-1)

    return map_blocks(to_one, others, embeddings.size).T


def _square_root(x) -> jax.Array:
    positive = x > 0  # the derivative is infinite at zero
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)
