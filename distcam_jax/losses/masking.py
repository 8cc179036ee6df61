"""Which pairs of a batch are positive or negative, and reductions over some of them.

A reduction over nothing is a finite number with gradients of zero, never NaN: batches without any positive pair happen.
"""

import jax
import jax.numpy as jnp

_NOTHING = -1e30  # the logarithm of an empty sum; finite, so that no gradient is NaN


def pair_masks(labels) -> tuple[jax.Array, jax.Array]:
    """Masks `[b, b]` of the positive pairs (two samples of one class) and of the negative pairs (two classes)."""
    same = labels[:, None] == labels[None, :]
    return same & ~jnp.eye(len(labels), dtype=bool), ~same


def masked_mean(values, mask) -> jax.Array:
    """Mean of the values where the mask holds; 0 where it nowhere does."""
    count = jnp.maximum(jnp.sum(mask), 1).astype(values.dtype)
    return jnp.sum(jnp.where(mask, values, 0)) / count


def masked_min(values, mask) -> jax.Array:
    """Row minima `[b]` of values `[b, n]` where the mask holds; 0 in a row where it nowhere does."""
    smallest = jnp.min(jnp.where(mask, values, jnp.inf), axis=-1)
    return jnp.where(jnp.any(mask, axis=-1), smallest, 0)


def masked_max(values, mask) -> jax.Array:
    """Row maxima `[b]` of values `[b, n]` where the mask holds; 0 in a row where it nowhere does."""
    return -masked_min(-values, mask)


def masked_logsumexp(values, mask) -> jax.Array:
    """Row-wise `log sum exp` `[b]` of values `[b, n]` where the mask holds; -1e30 in a row where it nowhere does."""
    return jax.nn.logsumexp(jnp.where(mask, values, _NOTHING), axis=-1)
