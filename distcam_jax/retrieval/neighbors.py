"""Exact nearest neighbours of pooled features; no `[q, g]` array is ever held.

Distances in L2 and cosine come from matrix products, whose rounding hides how near neighbours differ. So a few more
than asked for are kept, and these are measured once more, difference by difference, before they are put in order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from distcam_jax.checks import check_positive_integers, working_arrays
from distcam_jax.retrieval import faiss_search
from distcam_jax.retrieval.distances import METRICS
from distcam_jax.retrieval.search import SearchPlan, placed_gallery, plan_search, scales_of, search_block

BACKENDS = ("jax", "faiss")

AnyArray = Array | np.ndarray


def nearest_neighbors(
    query: Float[AnyArray, "q k"],
    gallery: Float[AnyArray, "g k"] | None = None,
    *,
    count: int,
    metric: str = "l2",
    mesh: Mesh | None = None,
    backend: str = "jax",
) -> tuple[Int[np.ndarray, "q n"], Float[np.ndarray, "q n"]]:
    """The nearest vectors of a gallery to each query. Host; the work is jitted, in blocks of both.

    What is returned does not depend on blocks, devices or back end, but for the last digits of a distance, and for
    neighbours that differ by less than the digits of a matrix product can tell: where more than 16 of them compete for
    the last places, that rounding decides which are measured exactly.

    Args:
        query: pooled features `[q, k]`, finite.
        gallery: vectors that are searched `[g, k]`, finite; None searches the queries themselves, of which none is its
            own neighbour, whatever stands at other positions.
        count: neighbours n of each query, at most as many as there are.
        metric: `"l1"`, `sum_k |x_k - y_k|`; `"l2"`, `sqrt(sum_k (x_k - y_k)²)`; `"cosine"`, one minus the cosine of the
            angle, which is 1 for a vector of zeros.
        mesh: devices of one axis, over which the gallery's rows are split; None searches on one device.
        backend: `"jax"`, or `"faiss"` for that library's flat search on the CPU, without a mesh, in float32, and for
            cosine on normalised copies.

    Returns:
        Positions in the gallery `[q, n]`, nearest first and the lower one of equally near ones, and their distances.

    Raises:
        ValueError: an unknown metric or back end, more neighbours than there are, values that are not finite, a mesh of
            several axes or for faiss, or a shape or type that does not fit.
        ImportError: faiss is not installed.

    Examples:
        >>> positions, distances = nearest_neighbors(np.array([[0.0], [1.0], [5.0]]), count=1, metric="l1")
        >>> positions.tolist(), distances.tolist()
        ([[1], [0], [1]], [[1.0], [1.0], [4.0]])
    """
    for name, value, known in (("metric", metric, METRICS), ("backend", backend, BACKENDS)):
        if value not in known:
            raise ValueError(f"{name}: want one of {', '.join(map(repr, known))}, got {value!r}")
    check_positive_integers(count=count)
    mesh = _checked_mesh(mesh, backend)
    itself = gallery is None
    query, gallery = _in_one_type(query, query if itself else gallery)
    if not len(query):
        raise ValueError(f"query: want at least one row, got shape {query.shape}")
    available = len(gallery) - itself
    if count > available:
        raise ValueError(f"count: want at most the {available} neighbours that there are, got {count}")
    if backend == "faiss":
        _check_finite(query=query, gallery=gallery)
        return faiss_search.search(np.asarray(query), np.asarray(gallery), count, metric, itself=itself)
    placed = placed_gallery(gallery, mesh)
    _check_finite(query=query, gallery=placed)
    return _in_blocks(query, placed, plan_search(mesh, len(gallery), count, metric), itself=itself)


def _checked_mesh(mesh: Mesh | None, backend: str) -> Mesh:
    """The devices to search on."""
    if mesh is None:
        return Mesh(np.array(jax.local_devices()[:1]), ("gallery",))
    if backend != "jax" or len(mesh.axis_names) != 1:
        raise ValueError(f"mesh: want a single axis and the back end 'jax', got {dict(mesh.shape)} and {backend!r}")
    return mesh


def _in_one_type(query, gallery) -> list[AnyArray]:
    """Both sets in float32 or float64, copied only where that is another type; on the host where they are there."""
    query, gallery = (x if isinstance(x, Array) else np.asarray(x) for x in (query, gallery))
    if query.ndim == gallery.ndim == 2 and query.shape[1] != gallery.shape[1]:
        raise ValueError(f"gallery: want {query.shape[1]} channels as in query, got shape {gallery.shape}")
    # Of each a part without rows is looked at, since looking at all would bring it to a device. A gallery without rows
    # is left to the caller's own words.
    empty = {name: (x[:0] if x.ndim else x, "n k") for name, x in (("query", query), ("gallery", gallery))}
    kinds = [working_arrays(**{name: value})[0].dtype for name, value in empty.items()]
    wide = np.float64 if np.float64 in kinds else np.float32
    return [x if x.dtype == wide else x.astype(wide) for x in (query, gallery)]


def _check_finite(**arrays) -> None:
    for name, array in arrays.items():
        if not bool(jnp.isfinite(array).all()):
            raise ValueError(f"{name}: want finite values, got some that are NaN or infinite")


def _in_blocks(query, gallery, search: SearchPlan, *, itself: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions and distances `[q, n]` of all queries."""
    rows, scales = min(search.queries, len(query)), scales_of(gallery, search.metric)
    found = []
    for start in range(0, len(query), rows):
        own = np.arange(start, start + rows, dtype=np.int32) if itself else np.full(rows, -1, np.int32)
        part = np.asarray(query[start : start + rows])
        part = np.pad(part, ((0, rows - len(part)), (0, 0)))
        found.append(search_block(part, own, gallery, scales, search))
    columns = zip(*jax.device_get(found), strict=True)
    positions, distances = (np.concatenate(column)[: len(query)] for column in columns)
    return positions, distances
