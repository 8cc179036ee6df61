"""The search by faiss, Johnson et al., "Billion-scale similarity search with GPUs", 2017: an optional dependency."""

import functools

import jax
import numpy as np
from jaxtyping import Float, Int

from distcam_jax.retrieval.distances import finished_distances, pair_distances, unit_vectors
from distcam_jax.retrieval.search import SPARE

_QUERIES = 256  # whose candidates are measured in one go


def search(
    query: Float[np.ndarray, "q k"], gallery: Float[np.ndarray, "g k"], count: int, metric: str, *, itself: bool
) -> tuple[Int[np.ndarray, "q n"], Float[np.ndarray, "q n"]]:
    """Positions and distances of the nearest, as `nearest_neighbors` gives them; its arguments have been checked.

    Faiss finds more than are asked for, which are then measured exactly: it has no rule for equal distances, and its
    own are of a matrix product.
    """
    try:
        import faiss
    except ImportError:
        raise ImportError("backend: 'faiss' needs the package faiss-cpu: pip install 'distcam_jax[faiss]'") from None
    metrics = {"l1": faiss.METRIC_L1, "l2": faiss.METRIC_L2, "cosine": faiss.METRIC_INNER_PRODUCT}
    if metric == "cosine":
        query, gallery = (np.asarray(unit_vectors(side)) for side in (query, gallery))
    kept = min(len(gallery), count + itself + SPARE)
    _, candidates = faiss.knn(query, gallery, kept, metric=metrics[metric])  # by brute force, without a copy
    candidates.sort(axis=1)
    found = []
    for start in range(0, len(query), _QUERIES):
        positions = candidates[start : start + _QUERIES]
        own = np.arange(start, start + len(positions)) if itself else np.full(len(positions), -1)
        distances = np.array(_measured(query[start : start + _QUERIES], gallery[positions], metric))
        distances[positions == own[:, None]] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        found.append([np.take_along_axis(values, order, axis=1) for values in (positions, distances)])
    positions, distances = (np.concatenate(column) for column in zip(*found, strict=True))
    return positions.astype(np.int32), np.asarray(finished_distances(distances, metric))


@functools.partial(jax.jit, static_argnames="metric")
def _measured(query, others, metric):
    """Distances `[q, n]` of queries to vectors of their own `[q, n, k]`."""
    return jax.lax.map(lambda pair: pair_distances(pair[0], pair[1], metric), (query, others))
