"""The search on devices: each has some rows of the gallery, finds its own nearest, and the best of all are kept.

Among many, a query's nearest are first sought by what is fast (`product_distances`, or sums of differences for L1), of
which only the least of every `_GROUP` neighbouring rows is kept. The rows of the best groups are then measured once
more, and by these distances put in order.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from distcam_jax.retrieval.distances import (
    difference_distances,
    finished_distances,
    pair_distances,
    product_distances,
    unit_vectors,
    vector_scales,
)

SPARE = 16  # candidates beyond those asked for, among which the exact distances decide
_GROUP = 16  # rows of which one distance is kept, where that pays
# A pair that is measured by itself, its row fetched from anywhere, takes as long as (on a CPU, 512 channels)
_MEASURED = 16  # the differences of so many pairs of two blocks, less their products
_SORTED = 128  # the passage of so many distances through a sort
_GALLERY = 2048  # rows in a block: its distances stay in the cache
_QUERIES = 1024  # in a block of products: fewer read the gallery more often
_QUERIES_OF_DIFFERENCES = 256  # whose sums stay in the cache
_ELEMENTS = 2**26  # distances that are kept of a block of queries, 256 MB


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """What a search is compiled for; `plan_search` makes it.

    Attributes:
        mesh: the devices, along one axis.
        size: rows of the gallery.
        count: neighbours of each query.
        metric: `"l1"`, `"l2"` or `"cosine"`.
        group: neighbouring rows of which one distance is kept.
        exact: whether all distances are measured difference by difference, so that none is measured again.
        block: rows of the gallery in a block, at most.
        queries: rows of a block of queries, at most.
    """

    mesh: Mesh
    size: int
    count: int
    metric: str
    group: int
    exact: bool
    block: int
    queries: int


def plan_search(mesh: Mesh, size: int, count: int, metric: str) -> SearchPlan:
    """The fastest way to search `size` rows, the same whatever the devices.

    Examples:
        >>> mesh = Mesh(np.array(jax.local_devices()[:1]), ("gallery",))
        >>> [plan_search(mesh, 10**6, count, "l2").group for count in (10, 1000)]
        [16, 1]
    """
    candidates = count + SPARE
    group = _GROUP if candidates * _GROUP * _SORTED <= size else 1
    exact = group == 1 and (metric == "l1" or candidates * _MEASURED > size)
    most = _QUERIES_OF_DIFFERENCES if exact or metric == "l1" else _QUERIES
    return SearchPlan(mesh, size, count, metric, group, exact, _GALLERY, max(1, min(most, _ELEMENTS * group // size)))


def placed_gallery(gallery: Float[Array | np.ndarray, "g k"], mesh: Mesh) -> Float[Array, "g2 k"]:
    """A gallery whose rows are split over devices, filled up with zeros where they do not divide; else never copied.

    Examples:
        >>> mesh = Mesh(np.array(jax.local_devices()[:1]), ("gallery",))
        >>> placed_gallery(np.ones((3, 2), np.float32), mesh).shape
        (3, 2)
    """
    sharding = NamedSharding(mesh, P(*mesh.axis_names))
    if len(gallery) % mesh.size == 0:
        return jax.device_put(gallery, sharding)
    rows, host = -(-len(gallery) // mesh.size), np.asarray(gallery)

    def part(index):
        own = host[index[0]]
        return np.pad(own, ((0, rows - len(own)), (0, 0)))

    return jax.make_array_from_callback((rows * mesh.size, gallery.shape[1]), sharding, part)


scales_of = jax.jit(vector_scales, static_argnames="metric")


@functools.partial(jax.jit, static_argnames="search")
def search_block(query, own, gallery, scales, search):
    """Positions and distances `[q, n]` of the nearest of a block of queries `[q, k]`, each in order.

    `own` are the positions that are hidden from the queries `[q]`, `gallery` is a `placed_gallery` and `scales` are its
    `vector_scales`.
    """
    axis = search.mesh.axis_names[0]

    def on_device(query, own, gallery, scales):
        offset = lax.axis_index(axis) * len(gallery)
        distances, positions = _device_neighbors(query, own, gallery, scales, offset, search)
        if search.mesh.size > 1:
            distances, positions = (lax.all_gather(x, axis, axis=1, tiled=True) for x in (distances, positions))
            distances, positions = _nearest(distances, positions, search.count)
        return positions, finished_distances(distances, search.metric)

    # The devices gather the same, which the compiler cannot know: check_vma.
    specs = {"in_specs": (P(), P(), P(axis), P(axis)), "out_specs": P(), "check_vma": False}
    query = unit_vectors(query) if search.metric == "cosine" else query
    return jax.shard_map(on_device, mesh=search.mesh, **specs)(query, own, gallery, scales)


def _device_neighbors(query, own, gallery, scales, offset, search):
    """Distances and positions `[q, n]` of the nearest of a device's rows, which start at `offset`."""
    group, rows = search.group, len(gallery)
    block = min(search.block, rows) // group * group
    numbers = jnp.arange(-(-rows // block), dtype=jnp.int32)
    firsts = jnp.minimum(numbers * block, rows - block)  # the last block may hold rows of the one before it

    def hide(distances, rows_, first_unseen, own):
        positions = rows_ + offset
        return jnp.where((rows_ < first_unseen) | (positions >= search.size) | (positions == own), jnp.inf, distances)

    def step(_, numbered):
        number, first = numbered
        others, theirs = (lax.dynamic_slice_in_dim(rows_, first, block) for rows_ in (gallery, scales))
        distances = _block_distances(query, others, theirs, search)
        distances = hide(distances, first + jnp.arange(block, dtype=jnp.int32)[:, None], number * block, own)
        return None, jnp.min(distances.reshape(block // group, group, len(query)), axis=1)

    _, least = lax.scan(step, None, (numbers, firsts))  # [blocks, groups, q]
    least = least.reshape(-1, len(query)).T
    kept = min(least.shape[1], search.count + (0 if search.exact else SPARE))
    least, chosen = _smallest(least, kept)
    starts = firsts[chosen // (block // group)] + chosen % (block // group) * group
    if search.exact:
        return least, starts + offset
    order = jnp.argsort(chosen, axis=1)
    chosen, starts = (jnp.take_along_axis(x, order, axis=1) for x in (chosen, starts))

    def measure(one):
        query, own, chosen, starts = one
        candidates = (starts[:, None] + jnp.arange(group, dtype=jnp.int32)).reshape(-1)
        others = gallery.at[candidates].get(mode="promise_in_bounds")
        others = unit_vectors(others) if search.metric == "cosine" else others
        unseen = jnp.repeat(chosen // (block // group) * block, group)
        return hide(pair_distances(query, others, search.metric), candidates, unseen, own), candidates + offset

    distances, positions = lax.map(measure, (query, own, chosen, starts))
    return _nearest(distances, positions, min(search.count, distances.shape[1]))


def _block_distances(query, others, scales, search):
    if not search.exact and search.metric != "l1":
        return product_distances(query, others, scales, search.metric)
    others = unit_vectors(others) if search.metric == "cosine" else others
    return difference_distances(query, others, search.metric)


def _smallest(values, count):
    """The least of each row in order, and where they are; of equal ones the first."""
    negative, places = lax.top_k(-values, count)
    return -negative, places


def _nearest(distances, positions, count):
    """The nearest of candidates whose positions rise wherever distances are equal."""
    distances, places = _smallest(distances, count)
    return distances, jnp.take_along_axis(positions, places, axis=1)
