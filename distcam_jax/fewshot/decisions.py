"""Many episodes at once, on embeddings that are computed once."""

import concurrent.futures
import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from distcam_jax.checks import working_arrays
from distcam_jax.compiler import known_options
from distcam_jax.fewshot.prototypes import (
    check_metric,
    check_temperature,
    cosines,
    query_scores,
    rectify,
    transform_features,
)

_BLOCK_ELEMENTS = 2**23  # of the features of the episodes that one call is given

AnyArray = Array | np.ndarray


def _decide(support, query, *, metric, rectified, temperature):
    """Scores `[m, ways]` of the queries of one episode, for supports `[ways, shots, k]` and queries `[m, k]`."""
    ways, shots, channels = support.shape
    if not rectified:
        return query_scores(query, jnp.mean(support, axis=1), metric=metric)
    flat, labels = support.reshape(-1, channels), jnp.repeat(jnp.arange(ways), shots)
    prototypes, shifted = rectify(flat, labels, query, ways, temperature)
    return cosines(shifted, prototypes)


@functools.cache
def _compiled(function):
    """Compiles `_episode_scores` or `_block_accuracies` for the default back end."""
    static = ("metric", "rectified", "temperature")
    # Blocks of episodes run side by side, a core each. If single operations were split over the cores too, features
    # would move from one core's cache to the other's: that takes twice the time.
    options = known_options(xla_disable_hlo_passes="cpu-parallel-task-assigner")
    return jax.jit(function, static_argnames=static, compiler_options=options)


def _episode_scores(embeddings, support_rows, query_rows, *, metric, rectified, temperature):
    """Scores `[e, ways, queries, ways]` of a block of episodes."""

    def one(rows):
        support, query = (embeddings.at[part].get(mode="promise_in_bounds") for part in rows)  # they were checked
        query = query.reshape(-1, query.shape[-1])
        scores = _decide(support, query, metric=metric, rectified=rectified, temperature=temperature)
        return scores.reshape(*rows[1].shape, -1)

    # The features of one episode stay in a core's cache, those of a block do not.
    at_once = None if jax.default_backend() == "cpu" else len(support_rows)
    return jax.lax.map(one, (support_rows, query_rows), batch_size=at_once)


def _block_accuracies(embeddings, support_rows, query_rows, *, metric, rectified, temperature):
    scores = _episode_scores(
        embeddings, support_rows, query_rows, metric=metric, rectified=rectified, temperature=temperature
    )
    right = jnp.argmax(scores, axis=-1) == jnp.arange(scores.shape[1])[:, None]
    right &= ~jnp.any(jnp.isnan(scores), axis=-1)  # whose largest is the first of them
    return jnp.mean(right, axis=(1, 2), dtype=jnp.float32)


def episode_accuracies(
    embeddings: Float[AnyArray, "n k"],
    support_rows: Integer[np.ndarray, "e w s"],
    query_rows: Integer[np.ndarray, "e w q"],
    *,
    metric: str = "l1",
    rectified: bool = False,
    temperature: float | int = 10.0,
    center: Float[AnyArray, " k"] | None = None,
    normalize: bool = False,
) -> Float[np.ndarray, " e"]:
    """Accuracy of many episodes on embeddings that are computed once. Host; the work is jitted, in blocks of episodes.

    Args:
        embeddings: pooled features of all images `[n, k]`.
        support_rows: rows of the supports `[e, ways, shots]`, as of `EpisodeSampler.episodes`.
        query_rows: rows of the queries `[e, ways, queries]`, of the same classes in the same order.
        metric: how near a query is to a prototype, see `query_scores`; `"cosine"` where prototypes are rectified.
        rectified: whether the queries rectify the prototypes and are shifted, see `rectify_prototypes`.
        temperature: of the rectification.
        center: see `transform_features`.
        normalize: see `transform_features`.

    Returns:
        The share of queries that are told right, one an episode `[e]`. A query is told wrong where one of its scores is
        NaN, as embeddings that are not finite make them; they spoil no episode that they are not in.

    Raises:
        ValueError: an unknown metric, another one than cosine for rectified prototypes, rows that are no rows of the
            embeddings, or a shape or type that does not fit.

    Examples:
        >>> embeddings = np.array([[0.0], [1.0], [5.0], [6.0]])
        >>> episode_accuracies(embeddings, np.array([[[0], [2]]]), np.array([[[1], [3]]]), metric="l1").tolist()
        [1.0]
    """
    arguments = (embeddings, support_rows, query_rows, metric, rectified, temperature, center, normalize)
    return _in_blocks(_block_accuracies, *arguments)


def episode_predictions(
    embeddings: Float[AnyArray, "n k"],
    support_rows: Integer[np.ndarray, "e w s"],
    query_rows: Integer[np.ndarray, "e w q"],
    *,
    metric: str = "l1",
    rectified: bool = False,
    temperature: float | int = 10.0,
    center: Float[AnyArray, " k"] | None = None,
    normalize: bool = False,
) -> tuple[Int[np.ndarray, "e w q"], Float[np.ndarray, "e w q w"]]:
    """What is decided about every query of some episodes. Host.

    Args:
        embeddings: see `episode_accuracies`, as all others.
        support_rows: `[e, ways, shots]`.
        query_rows: `[e, ways, queries]`.
        metric: how near a query is to a prototype.
        rectified: whether the queries rectify the prototypes and are shifted.
        temperature: of the rectification.
        center: see `transform_features`.
        normalize: see `transform_features`.

    Returns:
        The class of each query, 0 to ways − 1 `[e, ways, queries]`, and its scores `[e, ways, queries, ways]`: negative
        distances, or cosines. The class is -1 where a score is NaN.

    Raises:
        ValueError: see `episode_accuracies`.

    Examples:
        >>> embeddings = np.array([[0.0], [4.0], [5.0]])
        >>> predicted, scores = episode_predictions(embeddings, np.array([[[0], [2]]]), np.array([[[1], [1]]]))
        >>> predicted.tolist(), scores[0, 0, 0].tolist()
        ([[[1], [1]]], [-4.0, -1.0])
    """
    arguments = (embeddings, support_rows, query_rows, metric, rectified, temperature, center, normalize)
    scores = _in_blocks(_episode_scores, *arguments)
    return np.where(np.isnan(scores).any(axis=-1), -1, np.argmax(scores, axis=-1)), scores


def _in_blocks(function, embeddings, supports, queries, metric, rectified, temperature, center, normalize):
    """What a function gives for blocks of episodes of one size, the last one filled up with its first episode.

    On a CPU a call keeps one core busy, and calls of one thread run one after the other: each core has a thread.
    """
    _check_decision(metric, rectified, temperature)
    given = {"embeddings": (embeddings, "n k")} | ({} if center is None else {"center": (center, "k")})
    features = transform_features(working_arrays(**given)[0], center=center, normalize=normalize)
    supports, queries = (np.asarray(rows) for rows in (supports, queries))
    for name, rows in (("support_rows", supports), ("query_rows", queries)):
        _check_rows(name, rows, len(features))
    if supports.shape[:2] != queries.shape[:2]:
        raise ValueError(f"support_rows, query_rows: want the same [e, ways], got {supports.shape} and {queries.shape}")
    per_episode = (supports[0].size + queries[0].size) * features.shape[1]
    blocks = math.ceil(len(supports) / max(1, _BLOCK_ELEMENTS // per_episode))
    block = math.ceil(len(supports) / blocks)
    decide = functools.partial(
        _compiled(function), features, metric=metric, rectified=rectified, temperature=float(temperature)
    )

    def call(start: int) -> np.ndarray:
        rows = [part[start : start + block] for part in (supports, queries)]
        rows = [np.concatenate([part, np.repeat(part[:1], block - len(part), axis=0)]) for part in rows]
        return np.asarray(decide(*rows))

    first, *others = range(0, len(supports), block)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [call(first), *pool.map(call, others)]  # the first one compiles
    return np.concatenate(found)[: len(supports)]


def _check_decision(metric: str, rectified: bool, temperature) -> None:
    check_metric(metric)
    if rectified and metric != "cosine":
        raise ValueError(f"metric: rectified prototypes are told by 'cosine', got {metric!r}")
    if rectified:
        check_temperature(temperature)


def _check_rows(name: str, rows: np.ndarray, count: int) -> None:
    if rows.ndim != 3 or not rows.size or not np.issubdtype(rows.dtype, np.integer):
        want = f"{name}: want integers [e, ways, images] with no axis empty"
        raise ValueError(f"{want}, got {rows.dtype} of shape {rows.shape}")
    if rows.min() < 0 or rows.max() >= count:
        raise ValueError(f"{name}: want rows of the {count} embeddings, got {rows.min()} to {rows.max()}")


def mean_confidence_interval(accuracies: Float[AnyArray, " e"]) -> tuple[float, float]:
    """Mean accuracy over episodes with its 95 % interval, 1.96 σ / √n with the sample's deviation. Host.

    The interval is that of the draw of episodes: they share images, so it tells nothing of other images or networks.

    Args:
        accuracies: one an episode `[e]`.

    Returns:
        The mean, and half the width of its interval; NaN for a single episode.

    Raises:
        ValueError: no episode, or another shape.

    Examples:
        >>> mean, half_width = mean_confidence_interval(np.array([0.4, 0.6, 0.8]))
        >>> round(mean, 4), round(half_width, 4)
        (0.6, 0.2263)
    """
    values = np.asarray(accuracies, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"accuracies: want at least one number [e], got shape {values.shape}")
    if len(values) == 1:
        return float(values[0]), float("nan")
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
