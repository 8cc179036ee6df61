"""How alike two pooled features are: as one number, and channel by channel."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float

from distcam_jax.cam import channel_distances
from distcam_jax.checks import working_arrays
from distcam_jax.losses.distances import absolute

AnyArray = Array | np.ndarray

# Vectors whose largest magnitude lies below float32's smallest normal number count as zero: a division by it overflows.
ZERO_MAGNITUDE = float(np.finfo(np.float32).tiny)


def similarity(
    query: Float[AnyArray, "... k"], reference: Float[AnyArray, "... k"], *, metric: str
) -> Float[Array, "..."]:
    """How alike two pooled features are; the greater, the nearer.

    Args:
        query: pooled features `[..., k]`.
        reference: pooled features or prototypes `[..., k]`; leading axes broadcast against the query's.
        metric: `"l1"`, `−Σ_k |x_k − y_k|`; `"l2"`, `−Σ_k (x_k − y_k)²`, the negative *squared* L2 distance;
            `"cosine"`, `x · y / (|x| |y|)`.

    Returns:
        Similarities `[...]`, at most 0 for the first two and in [−1, 1] for the cosine. The cosine of a vector of zeros
        is 0, with gradients of 0; where a channel's difference is 0, so is its gradient.

    Raises:
        ValueError: shapes or types do not fit, an unknown metric.

    Examples:
        >>> similarity(np.array([3.0, 4.0]), np.array([[0.0, 2.0], [3.0, 4.0]]), metric="l1").tolist()
        [-5.0, -0.0]
    """
    query, reference = working_arrays(query=(query, "... k"), reference=(reference, "... k"))
    return chosen(SIMILARITIES, metric=metric)(query, reference)


def unit_vectors(vectors: Float[AnyArray, "... k"]) -> Float[Array, "... k"]:
    """Vectors `[..., k]` divided by their lengths, whatever their scale; zeros stay zeros, with gradients of 0.

    Examples:
        >>> unit_vectors(np.array([[0.0, 2e-30], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    (vectors,) = working_arrays(vectors=(vectors, "... k"))
    scaled = vectors / magnitude(vectors)
    return scaled * inverse_length(scaled)


def magnitude(vectors: Float[Array, "... k"]) -> Float[Array, "... 1"]:
    """The largest absolute value of each vector, or 1 for zeros; a constant to differentiation.

    What does not depend on the scale of a vector, as its direction does not, may be computed of `v / magnitude(v)`
    instead: squares neither vanish nor overflow there, and the derivative is the same.

    Examples:
        >>> magnitude(jnp.array([[-4.0, 2.0], [0.0, 0.0]])).tolist()
        [[4.0], [1.0]]
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=-1, keepdims=True))
    return jnp.where(largest < ZERO_MAGNITUDE, 1, largest)


def inverse_length(vectors: Float[Array, "... k"]) -> Float[Array, "... 1"]:
    """One over the length of each vector, as `magnitude` scales them; 0, with gradients of 0, for zeros.

    Examples:
        >>> inverse_length(jnp.array([[0.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.25], [0.0]]
    """
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    positive = squared > ZERO_MAGNITUDE
    return jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def chosen(options: dict[str, Any], **argument) -> Any:
    """What an argument `name=value` chooses, or a ValueError with the list of those there are.

    Examples:
        >>> chosen({"l1": abs}, metric="l1")(-2)
        2
    """
    ((name, value),) = argument.items()
    if value not in options:
        raise ValueError(f"{name}: want one of {', '.join(map(repr, options))}, got {value!r}")
    return options[value]


def _l1(query, reference):
    return -jnp.sum(absolute(query - reference), axis=-1)


def _l2(query, reference):
    return -jnp.sum(jnp.square(query - reference), axis=-1)


def _cosine(query, reference):
    return jnp.sum(unit_vectors(query) * unit_vectors(reference), axis=-1)


def _squared_differences(query, reference):
    return jnp.square(query - reference)


def _cosine_distances(query, reference):
    return jnp.square(unit_vectors(query) - unit_vectors(reference)) / 2


SIMILARITIES: dict[str, Callable] = {"l1": _l1, "l2": _l2, "cosine": _cosine}

# Distances [..., k] of every channel. Over k they sum to what the model searches with: the L1 distance, the squared L2
# distance, and 1 − cosine.
CHANNEL_DISTANCES: dict[str, Callable] = {
    "l1": channel_distances,
    "l2": _squared_differences,
    "cosine": _cosine_distances,
}
