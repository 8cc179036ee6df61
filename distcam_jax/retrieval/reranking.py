"""Re-ranking by k-reciprocal encoding: two images are alike when they have the same neighbours, and are theirs.

Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. Its steps, for the
images of queries and gallery together:

1. Squared Euclidean distances, each image's divided by its largest.
2. R(i), the k1-reciprocal neighbours: the k1 + 1 nearest, i itself counted, that have i among theirs. A member's own
   reciprocal neighbours, among its round(k1 / 2) + 1 nearest, join where more than 2/3 of them are in R(i).
3. V(i): weights exp(-d) over that set, which sum to 1; then the mean of V over the k2 nearest (local query expansion).
4. The Jaccard distance of V(query) and V(gallery image), blended with the distance of step 1.

Each image has some tens of neighbours, so V and the sets are sparse matrices, and only queries' rows of the distances
are ever whole. The work on rows of distances is divided over threads: NumPy lets them run side by side.
"""

import concurrent.futures
import os

import numpy as np
import scipy.sparse
from jaxtyping import Array, Float

from distcam_jax.checks import check_positive_integers

AnyArray = Array | np.ndarray
_BLOCK_ELEMENTS = 2**24  # of a block of distances, 64 MB
_PART_ELEMENTS = 2**18  # of the part of a block that a thread works on: 1 MB stays in its cache


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
    members = _expanded_neighbors(nearest[:, : k1 + 1], int(np.around(k1 / 2)) + 1)
    encoding = _encoding(features, members, largest)
    if k2 > 1:
        encoding = _neighbor_matrix(nearest[:, :k2], 1 / k2) @ encoding
    distances = _jaccard_distances(encoding[:queries], encoding[queries:])
    distances *= np.float32(1 - lambda_value)
    original *= np.float32(lambda_value)
    distances += original
    return distances


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
    lengths = np.einsum("nk,nk->n", features, features)
    nearest, largest = np.empty((size, count), np.int32), np.empty(size, np.float32)
    original = np.empty((queries, size - queries), np.float32)
    block = min(size, max(1, _BLOCK_ELEMENTS // size))
    products = np.empty((block, size), np.float32)

    def rank(start, first):
        """Ranks the images from `start` on, whose products begin at row `first`."""
        squared = products[first : min(first + part, first + size - start, block)]
        rows = slice(start, start + len(squared))
        squared *= -2
        squared += lengths
        squared += lengths[rows, None]
        np.maximum(squared, 0, out=squared)
        squared[np.arange(len(squared)), np.arange(size)[rows]] = -1  # comes first, before its doubles
        largest[rows] = np.maximum(squared.max(axis=1), 0)
        chosen = np.argpartition(squared, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(squared, chosen, axis=1)
        nearest[rows] = np.take_along_axis(chosen, np.lexsort((chosen, values)), axis=1)
        own = squared[: max(0, queries - start), queries:]
        np.divide(own, _not_zero(largest[rows][: len(own), None]), out=original[rows])

    part = max(1, _PART_ELEMENTS // size)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, size, block):
            others = features[start : start + block]
            np.matmul(others, features.T, out=products[: len(others)])  # is divided over threads by itself
            firsts = range(0, len(others), part)
            list(pool.map(rank, (start + first for first in firsts), firsts))
    return nearest, largest, original


def _not_zero(values: np.ndarray) -> np.ndarray:
    """Zeros become ones: where all images are equal, every distance is 0 whatever it is divided by."""
    return np.where(values > 0, values, 1)


def _neighbor_matrix(nearest: np.ndarray, value: float = 1) -> scipy.sparse.csr_matrix:
    """The matrix `[n, n]` with a value at each image's neighbours `[n, m]`."""
    size, count = nearest.shape
    values = np.full(nearest.size, value, np.float32)
    return scipy.sparse.csr_matrix((values, nearest.ravel(), np.arange(0, nearest.size + 1, count)), shape=(size, size))


def _expanded_neighbors(nearest: np.ndarray, half: int) -> scipy.sparse.csr_matrix:
    """R `[n, n]` of step 2, in which the rest is 0."""

    def reciprocal(nearest):
        forward = _neighbor_matrix(nearest)
        return forward.multiply(forward.T).tocsr()

    own, close = reciprocal(nearest), reciprocal(nearest[:, :half])
    shared = (own @ close.T).multiply(own).tocsr()  # how many of a member's are in R, which holds itself at least
    shared.data = (shared.data > 2 / 3 * np.diff(close.indptr)[shared.indices]).astype(np.float32)
    shared.eliminate_zeros()
    members = (own + shared @ close).tocsr()
    members.sort_indices()
    return members


def _encoding(features: np.ndarray, members: scipy.sparse.csr_matrix, largest: np.ndarray) -> scipy.sparse.csr_matrix:
    """V `[n, n]` before the local query expansion."""
    row = np.repeat(np.arange(len(features), dtype=np.int32), np.diff(members.indptr))
    weights = np.exp(-_pair_distances(features, row, members.indices) / _not_zero(largest)[row])
    weights /= np.add.reduceat(weights, members.indptr[:-1])[row]  # an image is its own neighbour: no row is empty
    return scipy.sparse.csr_matrix((weights, members.indices, members.indptr), shape=members.shape)


def _pair_distances(features: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Squared distances of pairs `[p]`."""
    block = max(1, _PART_ELEMENTS // features.shape[1])

    def measure(start):
        differences = features[row[start : start + block]]
        differences -= features[column[start : start + block]]
        return np.einsum("pk,pk->p", differences, differences)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(measure, range(0, len(row), block))))


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
    shared /= 2 - shared
    return np.subtract(1, shared, out=shared)
