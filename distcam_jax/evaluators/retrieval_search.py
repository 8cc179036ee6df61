"""Searching a gallery with the features of networks, and what single queries find."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from distcam_jax import training
from distcam_jax.evaluators.fewshot import PIXELS, RANDOM, embed_pixels, embed_source
from distcam_jax.evaluators.network import Network, make_network
from distcam_jax.evaluators.retrieval_options import Search, searches_of
from distcam_jax.evaluators.retrieval_task import Task
from distcam_jax.geometry import check_size
from distcam_jax.models import check_search_space, search_features
from distcam_jax.retrieval import k_reciprocal_rerank, market1501_metrics, nearest_neighbors
from distcam_jax.retrieval.distances import difference_distances, finished_distances, unit_vectors
from distcam_jax.retrieval.per_query import (
    average_precision_at_r,
    chance_at_k,
    chance_average_precision,
    hits_at_k,
    precision_at_r,
)

_QUERIES = 256  # whose distances to the whole gallery are computed at once
_ROWS = 4096  # of pooled features that a head sees at once
_PIXELS = 32  # of a small picture's longer side, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """The images as one kind of feature sees them.

    Attributes:
        name: for tables.
        about: what `metrics.json` says of where the features come from.
        query: pooled features of the queries `[q, k]`.
        gallery: of the gallery `[g, k]`.
        search: how it is searched by.
        head: from pooled features `[n, k]` to those that are searched by in the space of `search`.
    """

    name: str
    about: dict
    query: np.ndarray
    gallery: np.ndarray
    search: Search
    head: Callable[[np.ndarray], np.ndarray] | None = None

    def features(self, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Features of queries and gallery in the space that is searched, or the pooled ones."""
        if space == "embedding" or self.head is None:
            return self.query, self.gallery
        query = self.head(self.query)
        return query, query if self.gallery is self.query else self.head(self.gallery)


def embed_network(network: Network, task: Task, search: Search, *, batch: int, about: dict | None = None) -> Embedded:
    """Passes queries and gallery through a network.

    Args:
        network: from `load_network`.
        task: whose images they are.
        search: how the network is searched by.
        batch: images a step.
        about: instead of what a trained network says of itself.

    Returns:
        Its features.

    Raises:
        ValueError: the network does not have the space of the search.
    """
    if about is None:
        about = {"objective": network.config.objective, "steps": network.step, "weights_hash": network.weights_hash}
    head = None
    if search.space != "embedding":
        head = bind_head(nnx.merge(network.graph, network.state, copy=True), search.space)
    query = embed_source(network, task.query.data.source, batch=batch)
    gallery = query if task.alone else embed_source(network, task.gallery.data.source, batch=batch)
    return Embedded(network.name, about | {"search": search.name}, query, gallery, search, head)


def bind_head(model: nnx.Module, space: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function from pooled features `[n, k]` to those that are searched by `[n, d]`, in blocks.

    Args:
        model: of `distcam_jax.models`, in evaluation mode.
        space: of `distcam_jax.models.SEARCH_SPACES`.

    Returns:
        The function.

    Raises:
        ValueError: the model does not have the space.
    """
    check_search_space(model, space)
    graph, state = nnx.split(model)

    @jax.jit
    def block(state, embeddings):
        return search_features(nnx.merge(graph, state, copy=True), embeddings, space)

    def head(embeddings: np.ndarray) -> np.ndarray:
        starts = range(0, len(embeddings), _ROWS)
        return np.concatenate([np.asarray(block(state, embeddings[start : start + _ROWS])) for start in starts])

    return head


def embed_controls(config, mesh: Mesh, num_classes: int, task: Task, search: Search) -> list[Embedded]:
    """The same network with random weights, and the pixels themselves.

    Args:
        config: of the evaluated run.
        mesh: the devices.
        num_classes: of the training data.
        task: whose images they are.
        search: that of the evaluated network, by whose distance the pixels are compared.

    Returns:
        Both.
    """
    batch = config.evaluate.batch
    blank = make_network(training.build_model(config, num_classes), config, RANDOM, mesh)
    size = pixel_size(config.input.image_size)
    query = embed_pixels(task.query.data.source, size=size, batch=batch)
    gallery = query if task.alone else embed_pixels(task.gallery.data.source, size=size, batch=batch)
    of_pixels = dataclasses.replace(search, space="embedding")
    about = {"size": list(size), "search": of_pixels.name}
    return [
        embed_network(blank, task, search, batch=batch, about={"seed": config.seed}),
        Embedded(PIXELS, about, query, gallery, of_pixels),
    ]


def pixel_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of the small pictures whose pixels are compared: a quarter of the input, at most 32 pixels.

    Examples:
        >>> pixel_size(84), pixel_size((256, 128))
        ((21, 21), (32, 16))
    """
    sides = check_size(image_size)
    share = min(1 / 4, _PIXELS / max(sides))
    return max(1, round(sides[0] * share)), max(1, round(sides[1] * share))


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """What a search found.

    Attributes:
        values: metric to the figure of each valid query `[v]`.
        positions: in the gallery, of each query's nearest images `[q, m]`, nearest first, without those that the
            rules take out.
        distances: to them `[q, m]`; infinite where a query has fewer.
    """

    values: dict[str, np.ndarray]
    positions: np.ndarray
    distances: np.ndarray


def rank(task: Task, one: Embedded, search: Search, *, ks: Sequence[int], count: int, rerank: dict) -> Ranking:
    """Searches the gallery, and scores what every query finds.

    Args:
        task: what is searched for.
        one: the features.
        search: how.
        ks: numbers of neighbours of Recall@K or CMC.
        count: of the nearest images to keep, where there are so many.
        rerank: options of `k_reciprocal_rerank`, for a search that is re-ranked.

    Returns:
        The scores, "recall_K", "r_precision" and "map_at_r", or "rank_K" and "map" of persons; and the nearest images.
    """
    query, gallery = one.features(search.space)
    if not task.persons:
        return _rank_classes(task, query, gallery, search.distance, ks, count)
    if search.reranked:
        if search.distance == "cosine":
            query, gallery = (np.asarray(unit_vectors(side)) for side in (query, gallery))
        distances = k_reciprocal_rerank(query, gallery, **rerank)
    else:
        distances = np.concatenate([block for _, block in distance_blocks(query, gallery, search.distance)])
    return _rank_persons(task, distances, ks, count)


def _rank_classes(task: Task, query, gallery, metric: str, ks, count: int) -> Ranking:
    targets, own = task.query.targets, task.gallery.targets
    most = min(int(task.candidates.max()), max(*ks, count, int(task.relevant.max())))
    positions, distances = nearest_neighbors(query, None if task.alone else gallery, count=most, metric=metric)
    hits = (own[positions] == targets[:, None])[task.valid]
    relevant = task.relevant[task.valid]
    values = {f"recall_{k}": found.astype(float) for k, found in hits_at_k(hits, ks).items()}
    values["r_precision"] = precision_at_r(hits, relevant)
    values["map_at_r"] = average_precision_at_r(hits, relevant)
    return Ranking(values, positions[:, :count], distances[:, :count])


def _rank_persons(task: Task, distances: np.ndarray, ks, count: int) -> Ranking:
    sides = task.query.targets, task.gallery.targets, task.query.cameras, task.gallery.cameras
    scores = market1501_metrics(distances, *sides, max_rank=max(ks))
    first = scores.first_match[task.valid]
    values = {f"rank_{k}": (first <= k).astype(float) for k in ks}
    values["map"] = scores.average_precision[task.valid]
    found = [], []
    for start in range(0, len(distances), _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, len(distances)))
        block = np.where(task.is_removed(rows), np.inf, distances[rows])
        nearest = np.argsort(block, axis=1, kind="stable")[:, :count]
        found[0].append(nearest)
        found[1].append(np.take_along_axis(block, nearest, axis=1))
    return Ranking(values, *(np.concatenate(column) for column in found))


def distance_blocks(query: np.ndarray, gallery: np.ndarray, metric: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Distances of queries to the whole gallery, a few queries at a time.

    Args:
        query: features `[q, d]`.
        gallery: features `[g, d]`.
        metric: of `distcam_jax.retrieval.METRICS`.

    Yields:
        Rows of the queries `[r]` and distances `[r, g]`.
    """
    gallery = jax.device_put(gallery)
    for start in range(0, len(query), _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, len(query)))
        yield rows, np.asarray(_distances(query[rows], gallery, metric))


@functools.partial(jax.jit, static_argnames=("metric",))
def _distances(query, gallery, metric):
    if metric == "cosine":
        query, gallery = unit_vectors(query), unit_vectors(gallery)
    return finished_distances(difference_distances(query, gallery, metric), metric).T


def search_all(task: Task, one: Embedded, *, ks: Sequence[int], count: int, rerank: dict | None) -> dict[str, Ranking]:
    """Every row of the tables that a kind of feature has.

    Args:
        task: what is searched for.
        one: the features.
        ks: see `rank`.
        count: see `rank`.
        rerank: see `rank`; None leaves the re-ranked rows out.

    Returns:
        Name of the search to what it found, the network's own search first.
    """
    searches = searches_of(one.search, rerank=rerank is not None)
    return {search.name: rank(task, one, search, ks=ks, count=count, rerank=rerank or {}) for search in searches}


def chance(task: Task, ks: Sequence[int]) -> dict[str, float]:
    """What a random order is expected to get, by the metrics of `rank`; computed, not drawn.

    Args:
        task: what is searched for.
        ks: see `rank`.

    Returns:
        Metric to its expected mean.
    """
    given = task.relevant[task.valid], task.candidates[task.valid]
    at_k = {k: float(values.mean()) for k, values in chance_at_k(*given, ks).items()}
    if task.persons:
        return {f"rank_{k}": value for k, value in at_k.items()} | {
            "map": float(chance_average_precision(*given).mean())
        }
    return {f"recall_{k}": value for k, value in at_k.items()} | {
        "r_precision": float(np.mean(given[0] / given[1])),
        "map_at_r": float(chance_average_precision(*given, at_r=True).mean()),
    }


def agreement(task: Task, search: Ranking, pooled: Ranking) -> dict[str, np.ndarray]:
    """Where the search and the pooled features choose the same: heatmaps explain the latter, by L1.

    Args:
        task: what is searched for.
        search: of the configured search.
        pooled: of `GAP_L1`.

    Returns:
        "same_image" and "same_target" (its class or person), `[v]` of the valid queries.
    """
    first, other = (ranking.positions[task.valid, 0] for ranking in (search, pooled))
    targets = task.gallery.targets
    return {"same_image": first == other, "same_target": targets[first] == targets[other]}
