"""Few-shot episodes for the report: every query against every prototype of its episode, explained."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.cases import read_examples, run_network
from distcam_jax.evaluators.explain import choose_methods
from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.whitening import measure_whitening
from distcam_jax.fewshot import episode_predictions
from distcam_jax.methods import Context, Method
from distcam_jax.prototypes import Prototypes
from distcam_jax.report import Episode, EpisodeQuery

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def make_episodes(
    config: ml_collections.ConfigDict,
    network: Network,
    prototypes: Prototypes,
    embeddings: np.ndarray,
    data: Dataset,
    episodes: Mapping[int, Rows],
) -> list[Episode]:
    """The first episodes of each number of shots, decided by the nearest prototype in L1.

    Args:
        config: `evaluate` tells how many episodes, how many queries of each, and which methods.
        network: whose features they are.
        prototypes: of its training classes, within which the covariance for Mahalanobis CAM is measured.
        embeddings: pooled features `[n, k]` of the split.
        data: the split.
        episodes: of `draw_episodes`.

    Returns:
        The episodes as the report shows them, see `shown_queries`.
    """
    options = config.evaluate
    if not options.shown_episodes or not options.shown_queries:
        return []
    chosen = choose_methods(options.methods, network, norm=options.norm, eps=options.eps, whitened=True)
    whitening = measure_whitening(network, prototypes, chosen, options, seed=config.seed)
    explain = jax.jit(functools.partial(_maps, chosen, whitening))
    return [
        _episode(
            f"{options.ways}-way {shots}-shot, episode {number + 1}",
            options.shown_queries,
            (network, embeddings, data),
            tuple(values[number] for values in drawn),
            {name: method.title for name, method in chosen.items()},
            explain,
        )
        for shots, drawn in episodes.items()
        for number in range(min(options.shown_episodes, len(drawn[0])))
    ]


def _maps(methods: Mapping[str, Method], whitening, features, prototypes):
    """Maps `[n, ways, h, w]` of every image for every prototype."""
    classes = jnp.tile(jnp.arange(len(prototypes)), (len(features), 1))
    context = Context(classes, prototypes, whitening=whitening)
    return {name: method(features, context) for name, method in methods.items()}


def _episode(title: str, shown: int, material, rows: Rows, titles: Mapping[str, str], explain) -> Episode:
    (network, embeddings, data), (classes, supports, queries) = material, rows
    ways, shots = supports.shape
    predicted, scores = (
        value[0] for value in episode_predictions(embeddings, supports[None], queries[None], metric="l1")
    )
    true = np.broadcast_to(np.arange(ways)[:, None], queries.shape)
    distances = -scores.reshape(-1, ways)
    wrong = predicted != true
    kept = shown_queries(distances, true.ravel(), shown)
    images = np.concatenate([supports.ravel(), queries.ravel()[kept]])
    examples, pictures = read_examples(data, images)
    features = run_network(network, pictures)[1]["pre_pool"][: len(images)]
    maps = explain(features, embeddings[supports].mean(axis=1))
    maps = {titles[name]: np.asarray(values) for name, values in maps.items()}
    own = np.repeat(np.arange(ways), shots)
    return Episode(
        title=title,
        text="A query belongs to the nearest prototype in L1, the mean of its class's supports. Shown are the worst "
        "failures, and in a third of the places right ones, from the narrowest to the clearest.",
        class_names=[data.class_names[label] for label in classes],
        supports=[pictures[way * shots : (way + 1) * shots] for way in range(ways)],
        support_heatmaps={
            name: values[np.arange(len(own)), own].reshape(ways, shots, *values.shape[2:])
            for name, values in maps.items()
        },
        queries=[
            EpisodeQuery(
                image=pictures[len(own) + place],
                heatmaps={name: values[len(own) + place] for name, values in maps.items()},
                scores=distances[row],
                predicted=int(predicted.ravel()[row]),
                true=int(true.ravel()[row]),
                file_name=examples[len(own) + place]["file_name"],
            )
            for place, row in enumerate(kept)
        ],
        score_name="L1 distance",
        max_queries=len(kept),
        counts=(int(np.sum(wrong)), wrong.size),
    )


def shown_queries(distances: np.ndarray, true: np.ndarray, count: int) -> np.ndarray:
    """Which queries of an episode are shown: failures first, but a third of the places for queries that are right.

    Args:
        distances: of each query to each prototype `[m, ways]`; the nearest one decides.
        true: the true class of each query `[m]`.
        count: queries to show, at most.

    Returns:
        Rows: the failures by how wrong they are, then right ones from the narrowest to the clearest, evenly spaced.

    Examples:
        >>> distances = np.array([[1.0, 9.0], [5.0, 4.0], [3.0, 3.5], [2.0, 8.0]])
        >>> shown_queries(distances, np.array([0, 0, 0, 1]), 3).tolist()
        [3, 1, 2]
    """
    own = np.take_along_axis(distances, true[:, None], axis=1)[:, 0]
    others = np.where(np.arange(distances.shape[1]) == true[:, None], np.inf, distances)
    order = np.argsort(others.min(axis=1) - own, kind="stable")
    is_right = np.argmin(distances, axis=1)[order] == true[order]
    wrong, right = order[~is_right], order[is_right]
    places = min(len(right), max(count - len(wrong), count // 3))
    spaced = right[np.linspace(0, len(right) - 1, places).round().astype(int)] if places else right[:0]
    return np.concatenate([wrong[: count - places], spaced])
