"""Few-shot learning on pooled features: prototypes of a few supports, plain or rectified, and many episodes at once.

An episode of w ways has s supports and q queries of each class. Its prototypes are the means of the supports (Snell et
al., NeurIPS 2017), which Dist-CAM explains; a query belongs to the nearest one. Rectification is transductive: it looks
at all queries of an episode together (Liu et al., ECCV 2020).
"""

import concurrent.futures
import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from distcam_jax.checks import check_positive_integers, integer_labels, working_arrays

METRICS = ("l1", "l2", "cosine")
_SHORTEST = 1e-12  # a vector whose norm is no larger counts as zero
_NEVER = float(np.finfo(np.float32).min)  # of a way without supports; finite, so that no gradient is NaN
_BLOCK_ELEMENTS = 2**23  # of the features of the episodes that one call is given
_SLICE = 128  # channels that are added up as one vector
_HIGHEST = jax.lax.Precision.HIGHEST

AnyArray = Array | np.ndarray


def transform_features(
    features: Float[AnyArray, "*n k"], *, center: Float[AnyArray, " k"] | None = None, normalize: bool = False
) -> Float[Array, "*n k"]:
    """Features less a centre, then divided by their lengths, as SimpleShot does.

    Args:
        features: pooled features `[..., k]`.
        center: what is taken off `[k]`, such as the mean of the training classes; None takes off nothing.
        normalize: whether each is divided by its L2 norm; one of zeros stays zero.

    Returns:
        `[..., k]`.

    Raises:
        ValueError: a shape or type does not fit.

    Examples:
        >>> features, center = np.array([[4.0, 6.0], [1.0, 2.0]]), np.array([1.0, 2.0])
        >>> transform_features(features, center=center).tolist()
        [[3.0, 4.0], [0.0, 0.0]]
        >>> np.asarray(transform_features(features, center=center, normalize=True), np.float64).round(2).tolist()
        [[0.6, 0.8], [0.0, 0.0]]

    References:
        Wang et al., "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning", 2019.
    """
    (features,) = working_arrays(features=(features, "... k"))
    if center is not None:
        features, center = working_arrays(features=(features, "... k"), center=(center, "k"))
        features = features - center
    return features * _inverse_lengths(features)[..., None] if normalize else features


def _inverse_lengths(vectors):
    """One over the L2 norms `[...]` of vectors `[..., k]`; 0 for one of zeros."""
    squared = _channel_sum(jnp.square, vectors)
    short = squared <= _SHORTEST**2
    return jnp.where(short, 0, jax.lax.rsqrt(jnp.where(short, 1, squared)))


def _channel_sum(measure, *vectors):
    """The sum over the last axis of what is measured on vectors `[..., k]` that broadcast.

    A sum along the last axis is one number after the other to XLA on a CPU. Slices of the axis add up as vectors, and a
    product with ones adds up the numbers of their sum: L1 distances take a fifth of the time.
    """
    whole = vectors[0].shape[-1] // _SLICE * _SLICE
    total = jnp.sum(measure(*(vector[..., whole:] for vector in vectors)), axis=-1)
    if whole:
        slices = [[vector[..., start : start + _SLICE] for vector in vectors] for start in range(0, whole, _SLICE)]
        added = functools.reduce(jnp.add, [measure(*one) for one in slices])
        total += jnp.matmul(added, jnp.ones(_SLICE, added.dtype), precision=_HIGHEST)
    return total


def _cosines(a, b):
    """Cosines `[m, w]` of vectors `[m, k]` and `[w, k]`; 0 for a vector of zeros."""
    directions = b * _inverse_lengths(b)[:, None]
    return jnp.matmul(a, directions.T, precision=_HIGHEST) * _inverse_lengths(a)[:, None]


def query_scores(
    query: Float[AnyArray, "m k"], prototypes: Float[AnyArray, "w k"], *, metric: str = "l1"
) -> Float[Array, "m w"]:
    """How near queries are to prototypes: the larger, the nearer.

    Args:
        query: pooled features `[m, k]`.
        prototypes: of the classes `[ways, k]`.
        metric: `"l1"` or `"l2"`, whose negative distance is the score; `"cosine"`, the similarity.

    Returns:
        Scores `[m, ways]`. The class of a query is that of its largest score, the lowest of equal ones. Gradients of
        equal vectors are zero.

    Raises:
        ValueError: an unknown metric, or a shape or type that does not fit.

    Examples:
        >>> query_scores(np.array([[1.0, 0.0]]), np.array([[0.0, 0.0], [3.0, 4.0]]), metric="l1").tolist()
        [[-1.0, -6.0]]
    """
    _check_metric(metric)
    query, prototypes = working_arrays(query=(query, "m k"), prototypes=(prototypes, "w k"))
    if metric == "cosine":
        return _cosines(query, prototypes)
    if metric == "l1":
        return -_channel_sum(lambda x, p: jnp.abs(x - p), query[:, None], prototypes)
    squared = _channel_sum(lambda x, p: jnp.square(x - p), query[:, None], prototypes)
    equal = squared == 0  # there the derivative of the root is infinite
    return jnp.where(equal, 0, -jnp.sqrt(jnp.where(equal, 1, squared)))


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric: want one of {', '.join(map(repr, METRICS))}, got {metric!r}")


def shift_queries(support: Float[AnyArray, "n k"], query: Float[AnyArray, "m k"]) -> Float[Array, "m k"]:
    """Queries moved by what separates the means of supports and queries, ξ = mean(support) − mean(query).

    Args:
        support: pooled features of all supports of an episode `[n, k]`.
        query: pooled features of all its queries `[m, k]`.

    Returns:
        `[m, k]`.

    Raises:
        ValueError: a shape or type does not fit.

    Examples:
        >>> shift_queries(np.array([[1.0], [3.0]]), np.array([[10.0], [12.0]])).tolist()
        [[1.0], [3.0]]

    References:
        Liu et al., "Prototype Rectification for Few-Shot Learning", ECCV 2020 (cross-class bias).
    """
    support, query = working_arrays(support=(support, "a k"), query=(query, "m k"))
    return query + (jnp.mean(support, axis=0) - jnp.mean(query, axis=0))


def rectify_prototypes(
    support: Float[AnyArray, "n k"],
    support_labels: Integer[AnyArray, " n"],
    query: Float[AnyArray, "m k"],
    ways: int,
    *,
    temperature: float | int | Float[Array, ""] = 10.0,
) -> Float[Array, "ways k"]:
    """Prototypes rectified by the queries of their episode.

    With p_c the mean of the supports of class c, every query is shifted (see `shift_queries`) and assigned to the class
    of the largest cosine to p_c. The new prototype of c is the weighted mean of its supports and of the queries that
    were assigned to it; the weight of x is proportional to exp(temperature · cos(x, p_c)), normalised over that set.
    Shifted queries are to be told by their cosine to the new prototypes.

    Args:
        support: pooled features of the supports `[n, k]`.
        support_labels: their classes `[n]`, 0 to ways − 1; a support of another one takes no part.
        query: pooled features of the queries `[m, k]`, as they are: the shift is done here. None of them (m = 0) leaves
            the weighted means of the supports.
        ways: classes; static under `jit`.
        temperature: positive.

    Returns:
        `[ways, k]`; zeros for a class without supports, which no query is assigned to.

    Raises:
        ValueError: ways below 1, a temperature that is not positive, or a shape or type that does not fit.

    Examples:
        >>> support, query = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[3.0, 0.0], [0.0, 3.0]])
        >>> np.asarray(rectify_prototypes(support, np.array([0, 1]), query, 2), np.float64).round(2).tolist()
        [[1.26, -0.26], [-0.26, 1.26]]

    References:
        Liu et al., "Prototype Rectification for Few-Shot Learning", ECCV 2020. Public implementations of it differ, in
        weights that are a softmax over the classes, without a temperature, or of queries that are not shifted.
    """
    check_positive_integers(ways=ways)
    _check_temperature(temperature)
    (support,) = working_arrays(support=(support, "a k"))
    support, query = working_arrays(support=(support, "a k"), query=(query, "n k"))
    labels = integer_labels(support_labels, len(support), name="support_labels")
    return _rectify(support, labels, query, ways, temperature)[0]


def _check_temperature(temperature) -> None:
    if isinstance(temperature, int | float | np.number) and not 0 < temperature < np.inf:
        raise ValueError(f"temperature: want a positive finite number, got {temperature}")


def _rectify(support, labels, query, ways, temperature):
    """The rectified prototypes `[ways, k]` and the shifted queries `[m, k]`."""
    own = jax.nn.one_hot(labels, ways, dtype=support.dtype, axis=0)  # [ways, n]
    counts = jnp.sum(own, axis=1)
    sums = jnp.matmul(own, support, precision=_HIGHEST)
    prototypes = sums / jnp.maximum(counts, 1)[:, None]
    if len(query):
        to_mean = jnp.full(len(query), 1 / len(query), query.dtype)  # products stay on one core, see `_compiled`
        mean = jnp.sum(sums, axis=0) / jnp.maximum(jnp.sum(counts), 1)
        query = query + (mean - jnp.matmul(to_mean, query, precision=_HIGHEST))
    to_query = _cosines(query, prototypes)
    nearest = jnp.argmax(jnp.where(counts > 0, to_query, _NEVER), axis=-1)
    assigned = jax.nn.one_hot(nearest, ways, dtype=support.dtype, axis=0)
    members = jnp.where(counts[:, None] > 0, jnp.concatenate([own, assigned], axis=1), 0)
    similar = jnp.concatenate([_cosines(support, prototypes), to_query]).T
    exponents = jnp.where(members > 0, jnp.asarray(temperature, support.dtype) * similar, _NEVER)
    weights = members * jax.nn.softmax(exponents, axis=1)
    of_support, of_query = weights[:, : len(support)], weights[:, len(support) :]
    rectified = jnp.matmul(of_support, support, precision=_HIGHEST)
    return rectified + jnp.matmul(of_query, query, precision=_HIGHEST), query


def _decide(support, query, *, metric, rectified, temperature):
    """Scores `[m, ways]` of the queries of one episode, for supports `[ways, shots, k]` and queries `[m, k]`."""
    ways, shots, channels = support.shape
    if not rectified:
        return query_scores(query, jnp.mean(support, axis=1), metric=metric)
    flat, labels = support.reshape(-1, channels), jnp.repeat(jnp.arange(ways), shots)
    prototypes, shifted = _rectify(flat, labels, query, ways, temperature)
    return _cosines(shifted, prototypes)


@functools.cache
def _compiled(function):
    """Compiles `_episode_scores` or `_block_accuracies` for the default back end."""
    static = ("metric", "rectified", "temperature")
    if jax.default_backend() != "cpu":
        return jax.jit(function, static_argnames=static)
    # Blocks of episodes run side by side, a core each. If single operations were split over the cores too, features
    # would move from one core's cache to the other's: that takes twice the time.
    options = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
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
    _check_metric(metric)
    if rectified and metric != "cosine":
        raise ValueError(f"metric: rectified prototypes are told by 'cosine', got {metric!r}")
    if rectified:
        _check_temperature(temperature)


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
