"""Softmax over negative L1 distances to class prototypes, Dist-CAM's own objective.

The nearest prototype in L1 is the decision that Dist-CAM explains (Eq. 4 summed over the channels). The prototypes that
a network is trained against are running class means: with freely learned proxies it may score well by its proxies and
much worse by the class means of Eq. 7, which are all that is left at test time.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from distcam_jax.checks import integer_labels, working_arrays
from distcam_jax.losses.distances import absolute, l1_distances

_RULED_OUT = -1e9  # the score of a class without samples; finite, so that no gradient is NaN


def softmax_cross_entropy(
    logits: Float[Array | np.ndarray, "b c"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy of class scores, in nats.

    Args:
        logits: class scores `[b, c]`.
        labels: true classes `[b]`.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1) (Szegedy et al., CVPR 2016);
            classes that `prototype_logits` has ruled out get no share.

    Returns:
        The mean over the batch.

    Raises:
        ValueError: when label_smoothing is outside [0, 1), or a shape or type does not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> round(float(softmax_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))), 4)
        1.3863
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    (logits,) = working_arrays(logits=(logits, "b c"))
    labels = integer_labels(labels, len(logits))
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    if not label_smoothing:
        return hard
    possible = logits > _RULED_OUT / 2
    log_probabilities = jnp.sum(jax.nn.log_softmax(logits), axis=-1, where=possible)
    even = -jnp.mean(log_probabilities / jnp.maximum(jnp.sum(possible, axis=-1), 1).astype(logits.dtype))
    return (1.0 - label_smoothing) * hard + label_smoothing * even


def prototype_logits(
    embeddings: Float[Array | np.ndarray, "b k"],
    prototypes: Float[Array | np.ndarray, "c k"],
    counts: Float[Array | np.ndarray, " c"],
    *,
    scale: float | int | Float[Array, ""] = 1.0,
    relative: bool = False,
) -> Float[Array, "b c"]:
    """Class scores `-scale * L1 distance`; a class that has no samples yet cannot win.

    Args:
        embeddings: pooled features `[b, k]`.
        prototypes: class prototypes `[c, k]`.
        counts: samples behind each prototype `[c]`.
        scale: inverse temperature, positive.
        relative: divides the distances by their mean over the batch and the classes with samples, so that scores depend
            on neither the unit nor the number of the channels, and no inflation of the embedding can lower the loss.

    Returns:
        Scores `[b, c]`; their largest is the nearest prototype's. Those of classes without samples are -1e9.

    Raises:
        ValueError: when scale is not positive, or a shape or type does not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> prototype_logits(jnp.ones((1, 2)), jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.ones(2)).tolist()
        [[-2.0, -0.0]]
    """
    return _scores(l1_distances(embeddings, prototypes), counts, scale, relative)


def update_class_means(
    means: Float[Array | np.ndarray, "c k"],
    counts: Float[Array | np.ndarray, " c"],
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    memory: float | int,
) -> tuple[Float[Array, "c k"], Float[Array, " c"]]:
    """Moves running class means towards the batch.

    Each class is the exact mean of its samples until it has seen `memory` of them; from then on a new sample weighs
    `1 / memory`, so old embeddings are forgotten as the network moves on.

    Args:
        means: running means `[c, k]`; zeros at the start.
        counts: samples each mean stands for `[c]`, at most `memory`; zeros at the start.
        embeddings: pooled features of the batch `[b, k]`.
        labels: their classes `[b]`; a sample whose label is outside [0, c) is left out.
        memory: samples a mean remembers, at least 1.

    Returns:
        The new means `[c, k]` and counts `[c]`. Gradients flow into the batch's share.

    Raises:
        ValueError: when memory is below 1, or a shape or type does not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> means, counts = update_class_means(
        ...     jnp.zeros((2, 1)), jnp.zeros(2), jnp.array([[2.0], [4.0]]), jnp.array([1, 1]), memory=100
        ... )
        >>> means.tolist(), counts.tolist()
        ([[0.0], [3.0]], [0.0, 2.0])
    """
    if not memory >= 1:
        raise ValueError(f"memory must be at least 1 sample, got {memory}")
    means, counts, embeddings = working_arrays(
        means=(means, "c k"), counts=(counts, "c"), embeddings=(embeddings, "b k")
    )
    labels = integer_labels(labels, len(embeddings))
    one_hot = jax.nn.one_hot(labels, means.shape[0], dtype=means.dtype)
    added = jnp.sum(one_hot, axis=0)
    sums = jnp.matmul(one_hot.T, embeddings, precision=jax.lax.Precision.HIGHEST)
    kept = jnp.clip(memory - added, 0.0, counts)
    total = kept + added
    moved = (kept[:, None] * means + sums) / jnp.maximum(total, 1.0)[:, None]
    return jnp.where(added[:, None] > 0, moved, means), jnp.minimum(total, float(memory))


def class_mean_logits(
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    means: Float[Array | np.ndarray, "c k"],
    counts: Float[Array | np.ndarray, " c"],
    *,
    scale: float | int | Float[Array, ""] = 1.0,
    relative: bool = False,
) -> Float[Array, "b c"]:
    """Class scores `-scale * L1 distance` to class means that move with the network.

    The values are those of `prototype_logits` with the running means. In the gradient, the mean of another class moves
    as the batch's samples of that class do, which is what the true class mean does on average; a running mean taken as
    a constant would leave an embedding nothing to win in a channel once it is beyond its own mean. The mean of a
    sample's own class stands still for it: with few samples a class, it would follow the sample and leave nothing to
    attract it.

    Args:
        embeddings: pooled features `[b, k]`.
        labels: their classes `[b]`.
        means: running class means `[c, k]`, the batch included.
        counts: samples behind each mean `[c]`; a class without any cannot win.
        scale: inverse temperature, positive.
        relative: divides the distances by their mean over the batch and the classes with samples, so that scores depend
            on neither the unit nor the number of the channels, and no inflation of the embedding can lower the loss.

    Returns:
        Scores `[b, c]`. Those of classes without samples are -1e9.

    Raises:
        ValueError: when scale is not positive, or a shape or type does not fit.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> means, counts, labels = jnp.array([[0.0], [2.0]]), jnp.ones(2), jnp.array([0, 1])
        >>> def margin(x):  # of the first sample, against class 1
        ...     scores = class_mean_logits(x, labels, means, counts)
        ...     return scores[0, 0] - scores[0, 1]
        >>> jax.grad(margin)(jnp.array([[0.5], [2.0]])).tolist()
        [[-2.0], [1.0]]
    """
    embeddings, means = working_arrays(embeddings=(embeddings, "b k"), means=(means, "c k"))
    means = jax.lax.stop_gradient(means)
    labels = integer_labels(labels, len(embeddings))
    own = jax.nn.one_hot(labels, means.shape[0], dtype=means.dtype)
    sums = jnp.matmul(own.T, embeddings, precision=jax.lax.Precision.HIGHEST)
    batch_means = sums / jnp.maximum(own.sum(axis=0), 1.0)[:, None]
    moving = means + (batch_means - jax.lax.stop_gradient(batch_means))  # adds zero, but for the gradient
    # One-hot rows pick the own mean; unlike indexing, they also split over devices.
    own_means = jnp.matmul(own, means, precision=jax.lax.Precision.HIGHEST)
    to_own = jnp.sum(absolute(embeddings - own_means), axis=-1, keepdims=True)
    distances = jnp.where(own > 0, to_own, l1_distances(embeddings, moving))
    return _scores(distances, counts, scale, relative)


def _scores(distances, counts, scale, relative) -> jax.Array:
    if isinstance(scale, int | float | np.number) and not 0 < scale < np.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    distances, counts = working_arrays(distances=(distances, "b c"), counts=(counts, "c"))
    if relative:
        seen = jnp.where(counts > 0, distances, 0)
        pairs = jnp.maximum(jnp.sum(counts > 0) * len(distances), 1).astype(distances.dtype)
        unit = jnp.sum(seen) / pairs
        distances = distances / jnp.where(unit > 0, unit, 1)  # all distances zero: any unit does
    return jnp.where(counts > 0, -scale * distances, jnp.asarray(_RULED_OUT, distances.dtype))
