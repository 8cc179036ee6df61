"""Queries for the report: each with its nearest images, and both of every pair explained by the other."""

from collections.abc import Mapping

import ml_collections
import numpy as np

from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.cases import read_examples, run_network
from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.retrieval_maps import PairMaps
from distcam_jax.evaluators.retrieval_options import DISTANCES, GAP_L1
from distcam_jax.evaluators.retrieval_search import Embedded, Ranking
from distcam_jax.evaluators.retrieval_task import Task
from distcam_jax.report import Match, Retrieval, RetrievalQuery


def make_retrieval(
    config: ml_collections.ConfigDict,
    network: Network,
    task: Task,
    one: Embedded,
    rankings: Mapping[str, Ranking],
    maps: PairMaps,
    titles: Mapping[str, str],
    *,
    text: str = "",
) -> list[Retrieval]:
    """Some queries with the images that the network's own search finds first.

    Args:
        config: `evaluate` tells how many queries and matches.
        network: whose features are explained.
        task: what is searched for.
        one: the network's features.
        rankings: of `search_all`, of the same features.
        maps: of `bind_pairs`.
        titles: of `pair_titles`.
        text: below the heading, after what the section shows.

    Returns:
        The section of the report, or none.
    """
    options = config.evaluate
    if not options.shown_queries:
        return []
    ranking = rankings[one.search.name]
    metric = "map" if task.persons else "map_at_r"
    chosen = shown_queries(ranking.values[metric], options.shown_queries)
    rows, precisions = task.valid[chosen], ranking.values[metric][chosen]
    found = ranking.positions[rows, : options.shown_matches]
    there = np.isfinite(ranking.distances[rows, : options.shown_matches])
    pictures, names = _read(task.query.data, rows)
    others, other_names = _read(task.gallery.data, found.ravel())
    pairs = _explain(network, task, one, maps, (rows, pictures), (found, others), batch=options.batch)
    pairs = {
        titles[name]: [side.reshape(*found.shape, *side.shape[1:]) for side in sides] for name, sides in pairs.items()
    }

    def match(place: int, number: int) -> Match:
        position, flat = found[place, number], place * found.shape[1] + number
        return Match(
            image=others[flat],
            class_name=task.gallery.name(position),
            distance=float(ranking.distances[rows[place], number]),
            correct=bool(task.gallery.targets[position] == task.query.targets[rows[place]]),
            heatmaps={title: of_match[place, number] for title, (_, of_match) in pairs.items()},
            query_heatmaps={title: of_query[place, number] for title, (of_query, _) in pairs.items()},
            file_name=other_names[flat],
            camera=task.camera(task.gallery, position),
            rank=number + 1,
        )

    queries = [
        RetrievalQuery(
            image=pictures[place],
            class_name=task.query.name(row),
            matches=[match(place, number) for number in np.flatnonzero(there[place]).tolist()],
            average_precision=float(precisions[place]),
            file_name=names[place],
            camera=task.camera(task.query, row),
            note=_note(task, rankings, row),
        )
        for place, row in enumerate(rows)
    ]
    words = [_TEXT, text, *([_RIVALS] if "mahalanobis" in titles else [])]
    return [
        Retrieval(
            title="Queries and their nearest images",
            text=" ".join(sentence for sentence in words if sentence),
            queries=queries,
            class_word=task.word,
            precision_name="average precision" if task.persons else "average precision at R",
            distance_name=f"{DISTANCES[one.search.distance]} distance",
        )
    ]


_TEXT = (
    "Half of the queries are those of the worst average precision, the others are spread evenly from there to the "
    "best. Each pair is explained both ways: the query by the match, and the match by the query."
)
_RIVALS = "Mahalanobis CAM sets an image's partner against the gallery's other images, near ones counting more."


def _note(task: Task, rankings: Mapping[str, Ranking], row: int | np.integer) -> str:
    """Says where the space of Dist-CAM would have found another image."""
    search, pooled = next(iter(rankings.values())), rankings[GAP_L1.name]
    if search.positions[row, 0] == pooled.positions[row, 0]:
        return ""
    other = pooled.positions[row, 0]
    return f"In GAP space (L1) another image is the nearest: {task.gallery.name(other)}."


def shown_queries(precisions: np.ndarray, count: int) -> np.ndarray:
    """Which queries are shown: half of them the worst, the others evenly spaced from there to the best.

    Args:
        precisions: average precision of each query `[v]`.
        count: queries to show, at most.

    Returns:
        Rows, the lowest precision first.

    Examples:
        >>> precisions = np.array([0.9, 0.1, 0.5, 0.7, 0.2, 1.0])
        >>> shown_queries(precisions, 4).tolist(), shown_queries(precisions, 2).tolist()
        ([1, 4, 2, 5], [1, 5])
    """
    order = np.argsort(precisions, kind="stable")
    worst = order[: -(-min(count, len(order)) // 2)]
    rest = order[len(worst) :]
    places = min(len(rest), count - len(worst))
    return np.concatenate([worst, rest[np.linspace(len(rest) - 1, 0, places).round().astype(int)[::-1]]])


def _read(data: Dataset, rows: np.ndarray) -> tuple[list[np.ndarray], list[str]]:
    """Pictures and names of some images."""
    examples, pictures = read_examples(data, rows)
    return pictures, [example["file_name"] for example in examples]


def _explain(network: Network, task: Task, one: Embedded, maps: PairMaps, queries, found, *, batch: int) -> dict:
    """Maps of every query for its matches, and of every match for its query, both `[n · m, h, w]`, by method.

    Of `queries`, their rows `[n]` and pictures, and of what was `found`, the positions `[n, m]` and all their pictures.
    A few queries at a time, as many images as a batch has, for which the network is compiled already. Features are
    computed again, as the passes over the images keep only pooled ones.
    """
    (rows, pictures), (positions, others) = queries, found
    count = positions.shape[1]
    at_once = max(1, batch // (1 + count))
    size = network.even_batch(max(batch, 1 + count))
    parts = []
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        own, matches = rows[part], positions[part].ravel()
        shown = pictures[part] + others[start * count : (start + at_once) * count]
        blank = [np.zeros_like(shown[0])] * (size - len(shown))
        features = np.asarray(run_network(network, shown + blank)[1]["pre_pool"])
        pairs = np.minimum(np.arange(size), len(matches) - 1)  # padded by the last one
        places, matches = pairs // count, matches[pairs]
        sides = (
            (features[places], one.gallery[matches], own[places] if task.alone else None),
            (features[len(own) + pairs], one.query[own[places]], matches),
        )
        for images, references, hidden in sides:
            values = maps(images, references[:, None], one.gallery, hidden)
            parts.append({name: np.asarray(value)[: len(own) * count, 0] for name, value in values.items()})
    return {name: [np.concatenate([part[name] for part in parts[side::2]]) for side in (0, 1)] for name in parts[0]}
