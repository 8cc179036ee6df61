"""The prototypical loss of a few-shot episode: queries are told by the mean of each class's supports.

Both functions take one episode; `jax.vmap` takes several at once.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distcam_jax.checks import working_arrays
from distcam_jax.losses.distances import METRICS, cosine_similarities, pairwise_distances
from distcam_jax.losses.prototypes import softmax_cross_entropy

EPISODE_METRICS = (*METRICS, "cosine")


def prototypical_logits(
    support: Float[Array | np.ndarray, "w s k"],
    query: Float[Array | np.ndarray, "m k"],
    *,
    metric: str = "squared_l2",
    scale: float | int | Float[Array, ""] = 1.0,
    relative: bool = False,
) -> Float[Array, "m w"]:
    """Scores of queries for the classes of an episode.

    Args:
        support: pooled features of the supports `[ways, shots, k]`.
        query: pooled features of the queries `[m, k]`.
        metric: `"l1"`, `"l2"` or `"squared_l2"`, see `pairwise_distances`, whose negative is the score; `"cosine"`, the
            similarity itself.
        scale: inverse temperature, positive.
        relative: divides distances by their mean over the episode, so that scores depend on neither the unit nor the
            number of the channels. Similarities have no unit, and stay as they are.

    Returns:
        Scores `[m, ways]`; their largest is the nearest class mean's.

    Raises:
        ValueError: on an unknown metric, a scale that is not positive, or a shape or type that does not fit.

    Examples:
        >>> support, query = jnp.array([[[0.0], [2.0]], [[5.0], [7.0]]]), jnp.array([[2.0]])
        >>> prototypical_logits(support, query, metric="l1").tolist()
        [[-1.0, -4.0]]

    References:
        Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017 (squared L2).
    """
    if metric not in EPISODE_METRICS:
        raise ValueError(f"metric: want one of {', '.join(map(repr, EPISODE_METRICS))}, got {metric!r}")
    if isinstance(scale, int | float | np.number) and not 0 < scale < np.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    support, query = working_arrays(support=(support, "w s k"), query=(query, "m k"))
    prototypes = jnp.mean(support, axis=1)
    if metric == "cosine":
        return scale * cosine_similarities(query, prototypes)
    distances = pairwise_distances(query, prototypes, metric=metric)
    if relative:
        unit = jnp.mean(distances)
        distances = distances / jnp.where(unit > 0, unit, 1)  # all distances zero: any unit does
    return -scale * distances


def prototypical(
    support: Float[Array | np.ndarray, "w s k"],
    query: Float[Array | np.ndarray, "w q k"],
    *,
    metric: str = "squared_l2",
    scale: float | int | Float[Array, ""] = 1.0,
    relative: bool = False,
) -> Float[Array, ""]:
    """The prototypical loss of an episode, in nats.

    Args:
        support: pooled features of the supports `[ways, shots, k]`.
        query: pooled features of the queries `[ways, queries, k]`, of the same classes in the same order.
        metric: see `prototypical_logits`.
        scale: inverse temperature, positive.
        relative: see `prototypical_logits`.

    Returns:
        The mean cross-entropy over the queries.

    Raises:
        ValueError: see `prototypical_logits`.

    Examples:
        >>> support, query = jnp.zeros((4, 1, 2)), jnp.ones((4, 3, 2))  # nothing tells the classes apart: log 4
        >>> round(float(prototypical(support, query)), 4)
        1.3863
    """
    support, query = working_arrays(support=(support, "w s k"), query=(query, "w q k"))
    flat = query.reshape(-1, query.shape[-1])
    logits = prototypical_logits(support, flat, metric=metric, scale=scale, relative=relative)
    return softmax_cross_entropy(logits, jnp.repeat(jnp.arange(query.shape[0]), query.shape[1]))
