"""Recall@K, R-precision and MAP@R.

A query set is searched in a gallery; without a gallery, each image of a set is searched among the others, left out by
its position: an equal vector elsewhere is a neighbour like any other. A query whose class has no other image has
nothing to find: it is left out of every mean, and `searchable_queries` tells which remain.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from distcam_jax.retrieval.neighbors import nearest_neighbors
from distcam_jax.retrieval.per_query import average_precision_at_r, check_ks, hits_at_k, precision_at_r

AnyArray = Array | np.ndarray
Labels = Integer[AnyArray, " _"]


def relevant_counts(query_labels: Labels, gallery_labels: Labels | None = None) -> Int[np.ndarray, " q"]:
    """How many images of its class each query can find, R.

    Args:
        query_labels: classes of the queries `[q]`.
        gallery_labels: classes of the gallery `[g]`; None: the queries themselves, each without itself.

    Returns:
        `[q]`.

    Examples:
        >>> relevant_counts(np.array([5, 5, 7])).tolist(), relevant_counts(np.array([5, 8]), np.array([5, 5])).tolist()
        ([1, 1, 0], [2, 0])
    """
    own = np.asarray(query_labels)
    others = own if gallery_labels is None else np.asarray(gallery_labels)
    classes, counts = np.unique(others, return_counts=True)
    if not len(classes):
        return np.zeros(len(own), np.int64)
    places = np.minimum(np.searchsorted(classes, own), len(classes) - 1)
    return np.where(classes[places] == own, counts[places], 0) - (gallery_labels is None)


def searchable_queries(query_labels: Labels, gallery_labels: Labels | None = None) -> Bool[np.ndarray, " q"]:
    """Which queries have an image of their class to find; the others are left out of the means.

    Args:
        query_labels: classes of the queries `[q]`.
        gallery_labels: classes of the gallery `[g]`, or None.

    Returns:
        `[q]`.

    Examples:
        >>> searchable_queries(np.array([5, 5, 7])).tolist()
        [True, True, False]
    """
    return relevant_counts(query_labels, gallery_labels) > 0


def recall_at_k(
    query: Float[AnyArray, "q k"],
    query_labels: Labels,
    gallery: Float[AnyArray, "g k"] | None = None,
    gallery_labels: Labels | None = None,
    *,
    ks: Sequence[int],
    metric: str = "l2",
) -> dict[int, float]:
    """Recall@K: the share of queries that have an image of their class among the K nearest.

    Args:
        query: pooled features `[q, k]`.
        query_labels: their classes `[q]`.
        gallery: what is searched `[g, k]`; None: the queries themselves, each without itself.
        gallery_labels: their classes `[g]`; None where gallery is.
        ks: numbers of neighbours; more than there are count as all.
        metric: `"l1"`, `"l2"` or `"cosine"`, see `nearest_neighbors`.

    Returns:
        K to recall, in [0, 1].

    Raises:
        ValueError: no query has anything to find, or an argument does not fit.

    Examples:
        >>> features, labels = np.array([[0.0], [1.0], [1.1], [9.0]]), np.array([0, 0, 1, 1])
        >>> recall_at_k(features, labels, ks=(1, 2))
        {1: 0.5, 2: 0.75}

    References:
        Jégou et al., "Product Quantization for Nearest Neighbor Search", PAMI 2011; Oh Song et al., "Deep Metric
        Learning via Lifted Structured Feature Embedding", CVPR 2016.
    """
    check_ks(ks)  # before the search
    hits, _ = _ranked_hits(query, query_labels, gallery, gallery_labels, metric, most=max(ks))
    return {k: float(found.mean()) for k, found in hits_at_k(hits, ks).items()}


def r_precision(
    query: Float[AnyArray, "q k"],
    query_labels: Labels,
    gallery: Float[AnyArray, "g k"] | None = None,
    gallery_labels: Labels | None = None,
    *,
    metric: str = "l2",
) -> float:
    """R-precision: the share of a query's R nearest that are of its class, R being how many there are to find.

    Args:
        query: pooled features `[q, k]`.
        query_labels: their classes `[q]`.
        gallery: what is searched `[g, k]`; None: the queries themselves, each without itself.
        gallery_labels: their classes `[g]`; None where gallery is.
        metric: `"l1"`, `"l2"` or `"cosine"`.

    Returns:
        The mean over the queries, in [0, 1].

    Raises:
        ValueError: no query has anything to find, or an argument does not fit.

    Examples:
        >>> features, labels = np.array([[0.0], [1.0], [1.1], [9.0]]), np.array([0, 0, 1, 1])
        >>> r_precision(features, labels)
        0.5
    """
    hits, relevant = _ranked_hits(query, query_labels, gallery, gallery_labels, metric)
    return float(precision_at_r(hits, relevant).mean())


def map_at_r(
    query: Float[AnyArray, "q k"],
    query_labels: Labels,
    gallery: Float[AnyArray, "g k"] | None = None,
    gallery_labels: Labels | None = None,
    *,
    metric: str = "l2",
) -> float:
    """MAP@R: the mean over the queries of `(1/R) Σ_{i ≤ R} P(i) · rel(i)`, with P(i) the precision among the i nearest.

    Unlike Recall@K it rewards every image of the class that is found, and found early.

    Args:
        query: pooled features `[q, k]`.
        query_labels: their classes `[q]`.
        gallery: what is searched `[g, k]`; None: the queries themselves, each without itself.
        gallery_labels: their classes `[g]`; None where gallery is.
        metric: `"l1"`, `"l2"` or `"cosine"`.

    Returns:
        The mean, in [0, 1].

    Raises:
        ValueError: no query has anything to find, or an argument does not fit.

    Examples:
        >>> query, gallery = np.array([[0.0]]), np.array([[1.0], [2.0], [3.0], [4.0]])
        >>> map_at_r(query, np.array([7]), gallery, np.array([7, 1, 7, 7]))  # (1/1 + 0 + 2/3) / 3
        0.5555555555555555

    References:
        Musgrave et al., "A Metric Learning Reality Check", ECCV 2020.
    """
    hits, relevant = _ranked_hits(query, query_labels, gallery, gallery_labels, metric)
    return float(average_precision_at_r(hits, relevant).mean())


def _ranked_hits(query, query_labels, gallery, gallery_labels, metric, most: int | None = None):
    """Whether each neighbour is of the query's class `[n, m]`, for queries that can find some, and their R `[n]`."""
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery, gallery_labels: want both or none")
    labels = _labels("query_labels", query_labels, len(query))
    others = labels if gallery is None else _labels("gallery_labels", gallery_labels, len(gallery))
    relevant = relevant_counts(labels, None if gallery is None else others)
    kept = np.flatnonzero(relevant)
    if not len(kept):
        raise ValueError("query_labels: want a query whose class has another image to find, got none")
    available = len(others) - (gallery is None)
    count = min(available, int(relevant.max()) if most is None else most)
    positions, _ = nearest_neighbors(query, gallery, count=count, metric=metric)
    return (others[positions] == labels[:, None])[kept], relevant[kept]


def _labels(name: str, labels, size: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (size,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name}: want {size} integers, one a feature, got {labels.dtype} of shape {labels.shape}")
    return labels
