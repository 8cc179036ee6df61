"""Re-ranking by k-reciprocal encoding: two images are alike when they have the same neighbours, and are theirs.

Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. Its steps, for the
images of queries and gallery together:

1. Squared Euclidean distances, each image's divided by its largest.
2. R(i), the k1-reciprocal neighbours: the k1 + 1 nearest, i itself counted, that have i among theirs. A member's own
   reciprocal neighbours, among its round(k1 / 2) + 1 nearest, join where more than 2/3 of them are in R(i).
3. V(i): weights exp(-d) over that set, which sum to 1; then the mean of V over the k2 nearest (local query expansion).
4. The Jaccard distance of V(query) and V(gallery image), blended with the distance of step 1.

Each image has some tens of neighbours, so V is sparse, and only queries' rows of the distances are ever whole.
"""

import numpy as np
import scipy.sparse
from jaxtyping import Array, Float

from distcam_jax.checks import check_positive_integers

AnyArray = Array | np.ndarray
_BLOCK_ELEMENTS = 2**25  # of a block of distances, 128 MB


def k_reciprocal_rerank(
    query: Float[AnyArray, "q k"],
    gallery: Float[AnyArray, "g k"],
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float | int = 0.3,
) -> Float[np.ndarray, "q g"]:
    """Distances of queries to gallery images by k-reciprocal encoding. Host.

    Args:
        query: pooled features `[q, k]`, finite; normalise them first where the search does.
        gallery: features `[g, k]`, finite.
        k1: neighbours whose reciprocity is looked at, less than q + g.
        k2: neighbours whose encodings are averaged, less than q + g; 1 averages none.
        lambda_value: share of the original distance, in [0, 1].

    Returns:
        `[q, g]` in float32: small for images that have the same neighbours.

    Raises:
        ValueError: k1 or k2 too large for the images there are, lambda_value outside [0, 1], values that are not
            finite, or a shape or type that does not fit.

    Examples:
        >>> query, gallery = np.array([[0.0]]), np.array([[0.1], [0.2], [5.0], [5.1]])
        >>> k_reciprocal_rerank(query, gallery, k1=2, k2=1).argsort().tolist()
        [[0, 1, 2, 3]]
    """
    features = _checked(query, gallery)
    size, queries = len(features), len(np.asarray(query))
    check_positive_integers(k1=k1, k2=k2)
    for name, value in (("k1", k1), ("k2", k2)):
        if value >= size:
            raise ValueError(f"{name}: want less than the {size} images of query and gallery, got {value}")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value: want a number in [0, 1], got {lambda_value}")
    nearest, largest, original = _neighbors(features, queries, max(k1 + 1, k2))
    encoding = _encoding(features, nearest[:, : k1 + 1], largest, int(np.around(k1 / 2)) + 1)
    if k2 > 1:
        encoding = _averaging(nearest[:, :k2]) @ encoding
    jaccard = _jaccard_distances(encoding[:queries], encoding[queries:])
    share = np.float32(lambda_value)
    return (1 - share) * jaccard + share * original


def _checked(query, gallery) -> np.ndarray:
    """All features in float32, queries first."""
    query, gallery = np.asarray(query), np.asarray(gallery)
    for name, array in (("query", query), ("gallery", gallery)):
        if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name}: want floats [n, k], none of them 0, got {array.dtype} of shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: want finite values, got some that are NaN or infinite")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"gallery: want {query.shape[1]} channels as in query, got shape {gallery.shape}")
    return np.concatenate([query, gallery]).astype(np.float32)


def _neighbors(features: np.ndarray, queries: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each image's nearest `[n, count]` and largest squared distance `[n]`; queries' rows of step 1 `[q, g]`."""
    size = len(features)
    lengths = np.sum(np.square(features), axis=1)
    nearest, largest = np.empty((size, count), np.int64), np.empty(size, np.float32)
    original = np.empty((queries, size - queries), np.float32)
    block = max(1, _BLOCK_ELEMENTS // size)
    for start in range(0, size, block):
        rows = slice(start, min(start + block, size))
        squared = lengths[rows, None] + lengths - 2 * (features[rows] @ features.T)
        np.maximum(squared, 0, out=squared)
        squared[np.arange(rows.stop - start), np.arange(start, rows.stop)] = -1  # comes first, before its doubles
        largest[rows] = np.maximum(squared.max(axis=1), 0)
        chosen = np.argpartition(squared, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(squared, chosen, axis=1)
        nearest[rows] = np.take_along_axis(chosen, np.lexsort((chosen, values)), axis=1)
        if start < queries:
            own = squared[: queries - start, queries:]
            original[rows.start : rows.start + len(own)] = own / _not_zero(largest[rows][: len(own), None])
    return nearest, largest, original


def _not_zero(values: np.ndarray) -> np.ndarray:
    """Zeros become ones: where all images are equal, every distance is 0 whatever it is divided by."""
    return np.where(values > 0, values, 1)


def _reciprocal(nearest: np.ndarray) -> np.ndarray:
    """Which of each image's neighbours `[n, m]` have it among their own `[n, m]`."""
    rows = np.arange(len(nearest))[:, None, None]
    block = max(1, _BLOCK_ELEMENTS // nearest.shape[1] ** 2)
    parts = [
        (nearest[nearest[start : start + block]] == rows[start : start + block]).any(axis=2)
        for start in range(0, len(nearest), block)
    ]
    return np.concatenate(parts)


def _encoding(features: np.ndarray, nearest: np.ndarray, largest: np.ndarray, half: int) -> scipy.sparse.csr_matrix:
    """V `[n, n]` before the local query expansion."""
    size, width = nearest.shape
    mutual, close = _reciprocal(nearest), nearest[:, :half]
    close_mutual = _reciprocal(close)
    rows, columns = [], []
    block = max(1, _BLOCK_ELEMENTS // (width * width * half))
    for start in range(0, size, block):
        own, real = nearest[start : start + block], mutual[start : start + block]
        theirs, counted = close[own], close_mutual[own] & real[:, :, None]  # [b, width, half]
        inside = ((theirs[..., None] == own[:, None, None, :]) & real[:, None, None, :]).any(axis=3)
        joins = np.sum(inside & counted, axis=2) > 2 / 3 * np.sum(counted, axis=2)
        added = counted & joins[:, :, None]
        numbers = np.arange(start, start + len(own))
        for member, mask in ((own, real), (theirs.reshape(len(own), -1), added.reshape(len(own), -1))):
            rows.append(np.broadcast_to(numbers[:, None], mask.shape)[mask])
            columns.append(member[mask])
    members = np.unique(np.concatenate(rows) * size + np.concatenate(columns))  # each once, row by row
    row, column = members // size, members % size
    weights = np.exp(-_pair_distances(features, row, column) / _not_zero(largest)[row])
    encoding = scipy.sparse.csr_matrix((weights, (row, column)), shape=(size, size))
    totals = np.asarray(encoding.sum(axis=1)).ravel()  # an image is its own neighbour: none is 0
    return scipy.sparse.diags(1 / totals).astype(np.float32) @ encoding


def _pair_distances(features: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Squared distances of pairs `[p]`."""
    block = max(1, _BLOCK_ELEMENTS // features.shape[1])
    parts = [
        np.sum(np.square(features[row[start : start + block]] - features[column[start : start + block]]), axis=1)
        for start in range(0, len(row), block)
    ]
    return np.concatenate(parts)


def _averaging(nearest: np.ndarray) -> scipy.sparse.csr_matrix:
    """The matrix `[n, n]` that takes the mean over each image's neighbours `[n, m]`."""
    size, count = nearest.shape
    values = np.full(nearest.size, 1 / count, np.float32)
    return scipy.sparse.csr_matrix((values, nearest.ravel(), np.arange(0, nearest.size + 1, count)), shape=(size, size))


def _jaccard_distances(query, gallery) -> np.ndarray:
    """`1 - Σ min / Σ max` of encodings in CSR, whose sums are 1, `[q, g]`."""
    by_column = gallery.tocsc()
    starts, images, values = by_column.indptr, by_column.indices, by_column.data
    shared = np.zeros((query.shape[0], gallery.shape[0]), np.float32)
    for row in range(query.shape[0]):
        columns = query.indices[query.indptr[row] : query.indptr[row + 1]]
        weights = query.data[query.indptr[row] : query.indptr[row + 1]]
        counts = starts[columns + 1] - starts[columns]
        # Positions of all entries of these columns, one run after the other.
        runs = np.repeat(starts[columns] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        places = runs + np.arange(len(runs))
        least = np.minimum(values[places], np.repeat(weights, counts))
        shared[row] = np.bincount(images[places], weights=least, minlength=gallery.shape[0])
    return 1 - shared / (2 - shared)
