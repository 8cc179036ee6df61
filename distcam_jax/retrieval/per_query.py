"""The figures of retrieval for each query: what the metrics average, and what a random order would get. Host functions.

Where intervals or differences over queries are wanted, as from `distcam_jax.statistics`, a mean is not enough.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from distcam_jax.checks import check_positive_integers

Hits = Bool[np.ndarray, "q m"]
Counts = Integer[np.ndarray, " q"]


def check_ks(ks: Sequence[int]) -> None:
    """Refuses no numbers of neighbours, or one below 1, with a ValueError."""
    if not len(ks):
        raise ValueError("ks: want at least one number of neighbours, got none")
    for k in ks:
        check_positive_integers(ks=k)


def hits_at_k(hits: Hits, ks: Sequence[int]) -> dict[int, Any]:
    """Whether one of the K nearest is right, which Recall@K averages.

    Args:
        hits: whether each neighbour is right `[q, m]`, nearest first.
        ks: numbers of neighbours; more than m count as m.

    Returns:
        K to `[q]`.

    Raises:
        ValueError: no K, or one below 1.

    Examples:
        >>> {k: found.tolist() for k, found in hits_at_k(np.array([[False, True], [False, False]]), (1, 2)).items()}
        {1: [False, False], 2: [True, False]}
    """
    check_ks(ks)
    return {int(k): hits[:, :k].any(axis=1) for k in ks}


def precision_at_r(hits: Hits, relevant: Counts) -> Float[np.ndarray, " q"]:
    """The share of a query's R nearest that are right, which R-precision averages.

    Args:
        hits: whether each neighbour is right `[q, m]`, nearest first; m is no less than the largest R.
        relevant: how many images each query can find, R `[q]`, at least 1.

    Returns:
        `[q]`, in [0, 1].

    Raises:
        ValueError: R is below 1 or above m.

    Examples:
        >>> precision_at_r(np.array([[True, False, True]]), np.array([2])).tolist()
        [0.5]
    """
    _check(hits, relevant)
    within = np.arange(hits.shape[1]) < relevant[:, None]
    return (hits & within).sum(axis=1) / relevant


def average_precision_at_r(hits: Hits, relevant: Counts) -> Float[np.ndarray, " q"]:
    """`(1/R) Σ_{i ≤ R} P(i) · rel(i)` of each query, which MAP@R averages; see `map_at_r`.

    Args:
        hits: whether each neighbour is right `[q, m]`, nearest first; m is no less than the largest R.
        relevant: how many images each query can find, R `[q]`, at least 1.

    Returns:
        `[q]`, in [0, 1].

    Raises:
        ValueError: R is below 1 or above m.

    Examples:
        >>> average_precision_at_r(np.array([[True, False, True, True]]), np.array([3])).tolist()  # (1/1 + 0 + 2/3) / 3
        [0.5555555555555555]
    """
    _check(hits, relevant)
    ranks = np.arange(1, hits.shape[1] + 1)
    counted = hits & (ranks <= relevant[:, None])
    return (np.cumsum(counted, axis=1) / ranks * counted).sum(axis=1) / relevant


def _check(hits: np.ndarray, relevant: np.ndarray) -> None:
    if len(relevant) and not 1 <= relevant.min() <= relevant.max() <= hits.shape[1]:
        raise ValueError(f"relevant: want 1 to the {hits.shape[1]} neighbours of hits, got {relevant.tolist()}")


def chance_at_k(relevant: Counts, candidates: Counts, ks: Sequence[int]) -> dict[int, Float[np.ndarray, " q"]]:
    """What `hits_at_k`, and CMC at rank K, expect of a random order: `1 − Π_{i<K} (n − R − i) / (n − i)`.

    Args:
        relevant: how many images each query can find, R `[q]`.
        candidates: how many images each query is searched among, n `[q]`.
        ks: numbers of neighbours.

    Returns:
        K to `[q]`.

    Examples:
        >>> {k: value.tolist() for k, value in chance_at_k(np.array([1]), np.array([4]), (1, 2, 9)).items()}
        {1: [0.25], 2: [0.5], 9: [1.0]}
    """
    places = np.arange(max(ks))
    left = np.maximum(candidates[:, None] - places, 1)  # beyond the last image, where the product is 0 already
    missed = np.cumprod(np.maximum(candidates[:, None] - relevant[:, None] - places, 0) / left, axis=1)
    return {int(k): 1 - missed[:, k - 1] for k in ks}


def chance_average_precision(relevant: Counts, candidates: Counts, *, at_r: bool = False) -> Float[np.ndarray, " q"]:
    """What the average precision expects of a random order, `1/n Σ_i (1 + (i − 1) (R − 1) / (n − 1)) / i`.

    The i-th image is right with the probability R/n, and then each of those before it with (R − 1) / (n − 1).

    Args:
        relevant: how many images each query can find, R `[q]`.
        candidates: how many images each query is searched among, n `[q]`.
        at_r: whether the sum ends at R, as that of `average_precision_at_r` does, and not at n.

    Returns:
        `[q]`.

    Examples:
        >>> chance_average_precision(np.array([1]), np.array([2])).tolist()  # first or second
        [0.75]
        >>> chance_average_precision(np.array([1]), np.array([2]), at_r=True).tolist()
        [0.5]
    """
    last = relevant if at_r else candidates
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, max(1, np.max(last)) + 1))])[last]
    others = (relevant - 1) / np.maximum(candidates - 1, 1)
    return (harmonic + others * (last - harmonic)) / candidates
