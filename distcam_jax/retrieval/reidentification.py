"""CMC and mAP of person re-identification, with the camera rule of Market-1501.

Source: Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015. Its rule leaves out, for each query,
the images of the same person by the same camera: they are too easy. Person −1 of the file names (junk) is to be dropped
before; person 0 (distractors) stays in the gallery, where it is never right, as no query is one.
"""

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Integer

from distcam_jax.checks import check_positive_integers

AnyArray = Array | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ReidScores:
    """What a search among the images of other cameras found.

    Attributes:
        cmc: share of the valid queries whose first right image is among the first 1, 2, … ranks `[max_rank]`.
        mean_average_precision: mean of average_precision over the valid queries.
        average_precision: of each query `[q]`, NaN where it is not valid.
        valid: whether a query has a right image to find `[q]`; the others are left out.
        first_match: rank of each query's first right image `[q]`, from 1; 0 where the query is not valid.
    """

    cmc: np.ndarray
    mean_average_precision: float
    average_precision: np.ndarray
    valid: np.ndarray
    first_match: np.ndarray


def market1501_metrics(
    distances: Float[AnyArray, "q g"],
    query_ids: Integer[AnyArray, " q"],
    gallery_ids: Integer[AnyArray, " g"],
    query_cameras: Integer[AnyArray, " q"],
    gallery_cameras: Integer[AnyArray, " g"],
    *,
    max_rank: int = 50,
) -> ReidScores:
    """CMC and mAP, as the "bag of tricks" baseline computes them.

    For each query, gallery images of the same person and camera are removed. CMC counts a hit at the first right rank;
    the average precision is the mean, over the right images, of the precision at their ranks.

    Args:
        distances: of queries to gallery images `[q, g]`; no NaN.
        query_ids: persons `[q]`.
        gallery_ids: persons `[g]`.
        query_cameras: cameras `[q]`.
        gallery_cameras: cameras `[g]`.
        max_rank: ranks of the CMC; beyond the gallery's size it stays at its last value.

    Returns:
        The scores. Of equal distances the lower position in the gallery comes first.

    Raises:
        ValueError: no query is valid, distances that are NaN, max_rank below 1, or a shape or type that does not fit.

    Examples:
        >>> distances = np.array([[0.1, 0.2, 0.3]])  # the nearest is by the same camera; the next is somebody else
        >>> persons, cameras = np.array([1, 2, 1]), np.array([6, 6, 5])
        >>> scores = market1501_metrics(distances, np.array([1]), persons, np.array([6]), cameras, max_rank=2)
        >>> scores.cmc.tolist(), scores.mean_average_precision
        ([0.0, 1.0], 0.5)

    References:
        Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", CVPRW 2019.
    """
    check_positive_integers(max_rank=max_rank)
    distances = np.asarray(distances)
    if distances.ndim != 2 or not np.issubdtype(distances.dtype, np.floating) or not distances.shape[1]:
        raise ValueError(f"distances: want floats [q, g], got {distances.dtype} of shape {distances.shape}")
    if np.isnan(distances).any():
        raise ValueError("distances: want numbers, got some NaN")
    named = {"query_ids": query_ids, "gallery_ids": gallery_ids}
    named |= {"query_cameras": query_cameras, "gallery_cameras": gallery_cameras}
    given = {
        name: _integers(name, values, distances.shape[name.startswith("gallery")]) for name, values in named.items()
    }
    first, precision = np.zeros(len(distances), np.int64), np.full(len(distances), np.nan)
    for row, order in enumerate(np.argsort(distances, axis=1, kind="stable")):
        same = given["gallery_ids"][order] == given["query_ids"][row]
        right = same[~(same & (given["gallery_cameras"][order] == given["query_cameras"][row]))]
        ranks = np.flatnonzero(right)
        if len(ranks):
            first[row] = ranks[0] + 1
            precision[row] = np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1))
    valid = ~np.isnan(precision)
    if not valid.any():
        raise ValueError("query_ids: want a query whose person another camera has seen, got none")
    cmc = (first[valid, None] <= np.arange(1, max_rank + 1)).mean(axis=0)
    return ReidScores(cmc, float(precision[valid].mean()), precision, valid, first)


def _integers(name: str, values, size: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (size,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name}: want {size} integers, got {values.dtype} of shape {values.shape}")
    return values
