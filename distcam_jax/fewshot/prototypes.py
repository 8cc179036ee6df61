"""Prototypes of a few supports, plain or rectified by the queries, and how near queries are to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from distcam_jax.checks import check_positive_integers, integer_labels, working_arrays

METRICS = ("l1", "l2", "cosine")
_SHORTEST = 1e-12  # a vector whose norm is no larger counts as zero
_NEVER = float(np.finfo(np.float32).min)  # of a way without supports; finite, so that no gradient is NaN
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


def cosines(a, b):
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
    check_metric(metric)
    query, prototypes = working_arrays(query=(query, "m k"), prototypes=(prototypes, "w k"))
    if metric == "cosine":
        return cosines(query, prototypes)
    if metric == "l1":
        return -_channel_sum(lambda x, p: jnp.abs(x - p), query[:, None], prototypes)
    squared = _channel_sum(lambda x, p: jnp.square(x - p), query[:, None], prototypes)
    equal = squared == 0  # there the derivative of the root is infinite
    return jnp.where(equal, 0, -jnp.sqrt(jnp.where(equal, 1, squared)))


def check_metric(metric: str) -> None:
    """Refuses an unknown metric."""
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
    check_temperature(temperature)
    (support,) = working_arrays(support=(support, "a k"))
    support, query = working_arrays(support=(support, "a k"), query=(query, "n k"))
    labels = integer_labels(support_labels, len(support), name="support_labels")
    return rectify(support, labels, query, ways, temperature)[0]


def check_temperature(temperature) -> None:
    """Refuses a temperature that is not positive; one that is traced passes."""
    if isinstance(temperature, int | float | np.number) and not 0 < temperature < np.inf:
        raise ValueError(f"temperature: want a positive finite number, got {temperature}")


def rectify(support, labels, query, ways, temperature):
    """The rectified prototypes `[ways, k]` and the shifted queries `[m, k]`."""
    own = jax.nn.one_hot(labels, ways, dtype=support.dtype, axis=0)  # [ways, n]
    counts = jnp.sum(own, axis=1)
    sums = jnp.matmul(own, support, precision=_HIGHEST)
    prototypes = sums / jnp.maximum(counts, 1)[:, None]
    if len(query):
        to_mean = jnp.full(len(query), 1 / len(query), query.dtype)  # products stay on one core, see `decisions`
        mean = jnp.sum(sums, axis=0) / jnp.maximum(jnp.sum(counts), 1)
        query = query + (mean - jnp.matmul(to_mean, query, precision=_HIGHEST))
    to_query = cosines(query, prototypes)
    nearest = jnp.argmax(jnp.where(counts > 0, to_query, _NEVER), axis=-1)
    assigned = jax.nn.one_hot(nearest, ways, dtype=support.dtype, axis=0)
    members = jnp.where(counts[:, None] > 0, jnp.concatenate([own, assigned], axis=1), 0)
    similar = jnp.concatenate([cosines(support, prototypes), to_query]).T
    exponents = jnp.where(members > 0, jnp.asarray(temperature, support.dtype) * similar, _NEVER)
    weights = members * jax.nn.softmax(exponents, axis=1)
    of_support, of_query = weights[:, : len(support)], weights[:, len(support) :]
    rectified = jnp.matmul(of_support, support, precision=_HIGHEST)
    return rectified + jnp.matmul(of_query, query, precision=_HIGHEST), query
