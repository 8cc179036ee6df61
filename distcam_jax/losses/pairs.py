"""Losses over the distances within a batch: contrastive and triplets."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distcam_jax.checks import integer_labels
from distcam_jax.losses.arguments import check_not_negative, check_positive
from distcam_jax.losses.distances import map_blocks, pairwise_distances
from distcam_jax.losses.masking import masked_max, masked_mean, masked_min, pair_masks


def contrastive(
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    metric: str = "l2",
    margin: float | int = 1.0,
) -> Float[Array, ""]:
    """Contrastive loss, the mean of `½ d²` over positive and `½ max(0, margin - d)²` over negative pairs.

    The mean is taken over all `b (b - 1) / 2` pairs i < j together, those whose term is zero included. Positive and
    negative pairs are not balanced; without any positive pair, the negative ones still push each other apart.

    Args:
        embeddings: pooled features `[b, k]`.
        labels: their classes `[b]`.
        metric: what d is, see `pairwise_distances`; the paper's is "l2".
        margin: distance beyond which a negative pair is left alone, positive, in the unit of d; the paper gives none.

    Returns:
        The loss; 0 for a single sample.

    Raises:
        ValueError: on an unknown metric, when the margin is not positive, or a shape or type does not fit.

    References:
        Hadsell, Chopra, LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006, Eq. (4).

    Examples:
        >>> import jax.numpy as jnp
        >>> embeddings = jnp.array([[0.0], [0.5], [0.25]])
        >>> contrastive(embeddings, jnp.array([0, 0, 1])).item()  # of ½ 0.5², ½ 0.75² and ½ 0.75²
        0.2291666716337204
    """
    check_positive(margin=margin)
    distances = pairwise_distances(embeddings, metric=metric)
    labels = integer_labels(labels, len(distances))
    positives, negatives = pair_masks(labels)
    # Every pair stands twice in the matrix, which leaves the mean as it is.
    losses = jnp.square(jnp.where(positives, distances, jax.nn.relu(margin - distances))) / 2
    return masked_mean(losses, positives | negatives)


def batch_hard_triplet(
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    metric: str = "l2",
    margin: float | int | None = 0.3,
) -> Float[Array, ""]:
    """Triplet loss of every anchor's farthest positive and nearest negative, the mean of `max(0, margin + d_p - d_n)`.

    Anchors without a positive or without a negative in the batch are left out of the mean; those whose term is zero are
    not. Equally hard positives or negatives share the gradient.

    Args:
        embeddings: pooled features `[b, k]`.
        labels: their classes `[b]`. Batches of P classes with K samples each are meant; the paper has P = 18, K = 4.
        metric: of the distances, see `pairwise_distances`; the paper's is "l2", not squared.
        margin: not negative, in the distances' unit; 0.3 is that of Luo et al., "Bag of Tricks", CVPRW 2019. None is
            the paper's best, the soft margin `log(1 + exp(d_p - d_n))`.

    Returns:
        The loss; 0 where no anchor has both.

    Raises:
        ValueError: on an unknown metric, when the margin is negative, or a shape or type does not fit.

    References:
        Hermans, Beyer, Leibe, In Defense of the Triplet Loss for Person Re-Identification, arXiv:1703.07737, 2017,
        Eq. (5).

    Examples:
        >>> import jax.numpy as jnp
        >>> embeddings = jnp.array([[0.0], [1.0], [3.0]])  # the third sample has no positive
        >>> batch_hard_triplet(embeddings, jnp.array([0, 0, 1]), margin=2.0).item()  # of 2 + 1 - 3 and 2 + 1 - 2
        0.5
    """
    if margin is not None:
        check_not_negative(margin=margin)
    distances = pairwise_distances(embeddings, metric=metric)
    labels = integer_labels(labels, len(distances))
    positives, negatives = pair_masks(labels)
    gap = masked_max(distances, positives) - masked_min(distances, negatives)
    losses = jax.nn.softplus(gap) if margin is None else jax.nn.relu(margin + gap)
    return masked_mean(losses, jnp.any(positives, axis=-1) & jnp.any(negatives, axis=-1))


def semi_hard_triplet(
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    metric: str = "l2",
    margin: float | int = 0.2,
) -> Float[Array, ""]:
    """Triplet loss of every positive pair with its semi-hard negative, the mean of `max(0, margin + d_p - d_n)`.

    The semi-hard negative of an anchor and a positive is the nearest of those farther from the anchor than the
    positive. The paper is silent on pairs that have none; as in TensorFlow Addons they take the anchor's farthest
    negative, the easiest of the violating ones. The mean is over all ordered positive pairs whose anchor has a
    negative, those whose term is zero included.

    Args:
        embeddings: pooled features `[b, k]`.
        labels: their classes `[b]`.
        metric: of the distances, see `pairwise_distances`; the paper's is "squared_l2" of vectors of length 1, which
            this function does not make them.
        margin: not negative, in the distances' unit; the paper's is 0.2.

    Returns:
        The loss; 0 where there is no such pair.

    Raises:
        ValueError: on an unknown metric, when the margin is negative, or a shape or type does not fit.

    References:
        Schroff, Kalenichenko, Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR 2015,
        section 3.2.

    Examples:
        >>> import jax.numpy as jnp
        >>> embeddings = jnp.array([[0.0], [1.0], [-0.5], [1.5]])
        >>> labels = jnp.array([0, 0, 1, 2])
        >>> semi_hard_triplet(embeddings, labels, margin=1.0).item()  # of 1 + 1 - 1.5, twice: 0.5 is too near
        0.5
    """
    check_not_negative(margin=margin)
    distances = pairwise_distances(embeddings, metric=metric)
    labels = integer_labels(labels, len(distances))
    positives, negatives = pair_masks(labels)
    farthest = masked_max(distances, negatives)

    # One positive at a time for all anchors: all triplets at once would be [b, b, b].
    def with_positive(to_positive):
        beyond = negatives & (distances > to_positive[:, None])
        semi_hard = jnp.where(jnp.any(beyond, axis=-1), masked_min(distances, beyond), farthest)
        return jax.nn.relu(margin + to_positive - semi_hard)

    losses = map_blocks(with_positive, distances.T, distances.size).T
    return masked_mean(losses, positives & jnp.any(negatives, axis=-1, keepdims=True))
