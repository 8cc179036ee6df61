"""Exact nearest neighbours of pooled features; no `[q, g]` array is ever held.

Distances in L2 and cosine come from matrix products, whose rounding hides how near neighbours differ. So a few more
than asked for are kept, and these are measured once more, difference by difference, before they are put in order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from distcam_jax.checks import check_positive_integers, working_arrays

METRICS = ("l1", "l2", "cosine")
_SHORTEST = 1e-12  # a vector whose norm is no larger counts as zero
_QUERIES = 256  # in a block
_GALLERY = 4096  # in a block
_SPARE = 16  # neighbours beyond those asked for, among which the exact distances decide

AnyArray = Array | np.ndarray


def nearest_neighbors(
    query: Float[AnyArray, "q k"],
    gallery: Float[AnyArray, "g k"] | None = None,
    *,
    count: int,
    metric: str = "l2",
) -> tuple[Int[np.ndarray, "q n"], Float[np.ndarray, "q n"]]:
    """The nearest vectors of a gallery to each query. Host; the work is jitted, in blocks of both.

    Args:
        query: pooled features `[q, k]`, finite.
        gallery: vectors that are searched `[g, k]`, finite; None searches the queries themselves, of which none is its
            own neighbour, whatever stands at other positions.
        count: neighbours n of each query, at most as many as there are.
        metric: `"l1"`, `sum_k |x_k - y_k|`; `"l2"`, `sqrt(sum_k (x_k - y_k)²)`; `"cosine"`, one minus the cosine of the
            angle, which is 1 for a vector of zeros.

    Returns:
        Positions in the gallery `[q, n]`, nearest first and the lower one of equally near ones, and their distances.

    Raises:
        ValueError: an unknown metric, more neighbours than there are, values that are not finite, or a shape or type
            that does not fit.

    Examples:
        >>> positions, distances = nearest_neighbors(np.array([[0.0], [1.0], [5.0]]), count=1, metric="l1")
        >>> positions.tolist(), distances.tolist()
        ([[1], [0], [1]], [[1.0], [1.0], [4.0]])
    """
    if metric not in METRICS:
        raise ValueError(f"metric: want one of {', '.join(map(repr, METRICS))}, got {metric!r}")
    check_positive_integers(count=count)
    itself = gallery is None
    query, gallery = working_arrays(query=(query, "n k")) * 2 if itself else _both(query, gallery)
    available = len(gallery) - itself
    if count > available:
        raise ValueError(f"count: want at most the {available} neighbours that there are, got {count}")
    for name, array in (("query", query), ("gallery", gallery)):
        if not bool(jnp.isfinite(array).all()):
            raise ValueError(f"{name}: want finite values, got some that are NaN or infinite")
    if metric == "cosine":
        query, gallery = unit_vectors(query), unit_vectors(gallery)
    kept = min(available, count + (0 if metric == "l1" else _SPARE))
    block = min(_GALLERY, len(gallery))
    padded = jnp.pad(gallery, ((0, -len(gallery) % block), (0, 0)))
    search = functools.partial(_search, blocks=padded.reshape(-1, block, padded.shape[1]), size=len(gallery))
    rows = min(_QUERIES, len(query))
    found = []
    for start in range(0, len(query), rows):
        own = np.arange(start, start + rows, dtype=np.int32) if itself else np.full(rows, -1, np.int32)
        part = jnp.pad(query[start : start + rows], ((0, max(0, start + rows - len(query))), (0, 0)))
        values = search(part, own, kept=kept, metric=metric)
        found.append([np.asarray(value)[: len(query) - start, :count] for value in values])
    positions, distances = (np.concatenate(column) for column in zip(*found, strict=True))
    return positions, distances


def _both(query, gallery) -> list[jax.Array]:
    """Both sets in one type; an empty gallery is left to the caller's own words."""
    query, gallery = jnp.asarray(query), jnp.asarray(gallery)
    if query.ndim == gallery.ndim == 2 and query.shape[1] != gallery.shape[1]:
        raise ValueError(f"gallery: want {query.shape[1]} channels as in query, got shape {gallery.shape}")
    (query,), (gallery,) = working_arrays(query=(query, "n k")), working_arrays(gallery=(gallery, "n k"))
    wide = jnp.float64 if jnp.float64 in (query.dtype, gallery.dtype) else jnp.float32
    return [query.astype(wide), gallery.astype(wide)]


def unit_vectors(vectors: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Vectors divided by their lengths; one of zeros stays zero.

    Examples:
        >>> unit_vectors(jnp.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    valid = squared > _SHORTEST**2
    return jnp.where(valid, vectors * lax.rsqrt(jnp.where(valid, squared, 1)), 0)


@functools.partial(jax.jit, static_argnames=("kept", "metric", "size"))
def _search(query, own, *, blocks, size, kept, metric):
    """Positions and distances of the `kept` nearest of one block of queries, in order."""
    block = blocks.shape[1]

    def merge(best, numbered):
        number, others = numbered
        positions = number * block + jnp.arange(block, dtype=jnp.int32)
        distances = _rough_distances(query, others, metric)
        hidden = (positions >= size) | (positions == own[:, None])
        distances = jnp.where(hidden, jnp.inf, distances)
        both = jnp.concatenate([best[0], distances], axis=1)
        positions = jnp.broadcast_to(positions, distances.shape)
        _, chosen = lax.top_k(-both, kept)  # of equal ones the first, which is the lower position
        taken = jnp.take_along_axis(jnp.concatenate([best[1], positions], axis=1), chosen, axis=1)
        return (jnp.take_along_axis(both, chosen, axis=1), taken), None

    none = jnp.full((len(query), kept), jnp.inf, query.dtype), jnp.full((len(query), kept), size, jnp.int32)
    numbers = jnp.arange(len(blocks), dtype=jnp.int32)
    (rough, positions), _ = lax.scan(merge, none, (numbers, blocks))
    if metric == "l1":
        return positions, rough
    flat = blocks.reshape(-1, blocks.shape[-1])
    exact = lax.map(lambda one: jnp.sum(jnp.square(one[0] - flat[one[1]]), axis=-1), (query, positions))
    if metric == "cosine":  # of unit vectors: 2 - 2 cos; a vector of zeros has the cosine 0
        exact = jnp.where(_is_zero(query)[:, None] | _is_zero(flat)[positions], 2, exact)
    order = jnp.lexsort((positions, exact), axis=1)
    exact, positions = (jnp.take_along_axis(values, order, axis=1) for values in (exact, positions))
    return positions, jnp.sqrt(exact) if metric == "l2" else exact / 2


def _rough_distances(query, others, metric):
    if metric == "l1":
        return lax.map(lambda one: jnp.sum(jnp.abs(one - others), axis=-1), query)
    products = jnp.matmul(query, others.T, precision=lax.Precision.HIGHEST)
    lengths = 2 if metric == "cosine" else _squares(query)[:, None] + _squares(others)
    return lengths - 2 * products


def _squares(vectors):
    return jnp.sum(jnp.square(vectors), axis=-1)


def _is_zero(vectors):
    return ~jnp.any(vectors, axis=-1)
