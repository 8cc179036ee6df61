"""Losses that hold one vector a class: Proxy-NCA and the centre loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distcam_jax.checks import integer_labels, working_arrays
from distcam_jax.losses.arguments import check_between, check_positive
from distcam_jax.losses.distances import pairwise_distances, unit_vectors
from distcam_jax.losses.masking import masked_logsumexp, masked_mean


def proxy_nca(
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    proxies: Float[Array | np.ndarray, "c k"],
    *,
    metric: str = "squared_l2",
    scale: float | int = 1.0,
    normalize: bool = True,
) -> Float[Array, ""]:
    """Proxy-NCA, the mean of `-log(exp(-scale d(x, p_y)) / sum_{z ≠ y} exp(-scale d(x, p_z)))`.

    The original: the true class's proxy is not in the denominator, so the loss has no lower bound of 0 and goes on
    pulling where a softmax would be satisfied. (The softmax, which later papers use, is `softmax_cross_entropy` of
    `prototype_logits`.)

    Args:
        embeddings: pooled features `[b, k]`.
        labels: their classes `[b]`; a sample whose label is outside [0, c) is left out of the mean.
        proxies: learnt vectors `[c, k]`, at least 2.
        metric: of d, see `pairwise_distances`; the paper's is "squared_l2", Dist-CAM's "l1".
        scale: inverse temperature, positive; the paper has none, which is 1.
        normalize: divides embeddings and proxies by their l2 lengths, as the paper does. Dist-CAM's distances are those
            of embeddings as they are: False.

    Returns:
        The loss, of either sign.

    Raises:
        ValueError: on an unknown metric, fewer than 2 proxies, when scale is not positive, or a shape or type does not
            fit.

    References:
        Movshovitz-Attias, Toshev, Leung, Ioffe, Singh, No Fuss Distance Metric Learning using Proxies, ICCV 2017, the
        NCA loss with proxies of Algorithm 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> embeddings, proxies = jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 0.0], [1.0, 4.0]])
        >>> proxy_nca(embeddings, jnp.array([0]), proxies, metric="l1", normalize=False).item()  # 2 - 3
        -1.0
    """
    check_positive(scale=scale)
    embeddings, proxies = working_arrays(embeddings=(embeddings, "b k"), proxies=(proxies, "c k"))
    labels = integer_labels(labels, len(embeddings))
    if len(proxies) < 2:
        raise ValueError(f"proxies: want axes [c k] with c at least 2, got shape {proxies.shape}")
    if normalize:
        embeddings, proxies = unit_vectors(embeddings), unit_vectors(proxies)
    scores = -scale * pairwise_distances(embeddings, proxies, metric=metric)
    own = jax.nn.one_hot(labels, len(proxies), dtype=bool)
    to_own = jnp.sum(jnp.where(own, scores, 0), axis=-1)
    return masked_mean(masked_logsumexp(scores, ~own) - to_own, jnp.any(own, axis=-1))


def center_loss(
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    centers: Float[Array | np.ndarray, "c k"],
) -> Float[Array, ""]:
    """Centre loss, the mean of `½ ‖x - c_y‖²`, half the squared distance to the centre of the own class.

    The paper sums over the batch; this is its loss divided by the number of samples, as its weights (λ = 0.003 in the
    paper) go with. The channels are summed. Gradients flow into embeddings and centres; the paper moves the centres by
    `update_centers` instead, Luo et al. ("Bag of Tricks", CVPRW 2019) by their own SGD.

    Args:
        embeddings: pooled features `[b, k]`.
        labels: their classes `[b]`; a sample whose label is outside [0, c) is left out of the mean.
        centers: centres `[c, k]`.

    Returns:
        The loss, in the embeddings' unit squared.

    Raises:
        ValueError: when the channel counts differ, or a shape or type does not fit.

    References:
        Wen, Zhang, Li, Qiao, A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016, Eq. (2).

    Examples:
        >>> import jax.numpy as jnp
        >>> embeddings, centers = jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([[9.0, 9.0], [1.0, 0.0]])
        >>> center_loss(embeddings, jnp.array([1, 1]), centers).item()  # of ½ 2² and ½ 1²
        1.25
    """
    embeddings, centers = working_arrays(embeddings=(embeddings, "b k"), centers=(centers, "c k"))
    labels = integer_labels(labels, len(embeddings))
    own = jax.nn.one_hot(labels, len(centers), dtype=centers.dtype)
    # One-hot rows pick the own centre; unlike indexing, they also split over devices.
    own_centers = jnp.matmul(own, centers, precision=jax.lax.Precision.HIGHEST)
    losses = jnp.sum(jnp.square(embeddings - own_centers), axis=-1) / 2
    return masked_mean(losses, jnp.any(own > 0, axis=-1))


def update_centers(
    centers: Float[Array | np.ndarray, "c k"],
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    rate: float | int = 0.5,
) -> Float[Array, "c k"]:
    """Moves the centres of the centre loss towards the batch, `c - rate · sum_i (c - x_i) / (1 + n)`.

    The sum is over the batch's n samples of the class. The one in the denominator keeps a class of few samples from
    being thrown about, and one of none in its place.

    Args:
        centers: centres `[c, k]`; the paper starts them at random.
        embeddings: pooled features of the batch `[b, k]`.
        labels: their classes `[b]`; a sample whose label is outside [0, c) is left out.
        rate: α of the paper, in [0, 1]; the paper has 0.5.

    Returns:
        The new centres `[c, k]`. Gradients flow into the batch's share.

    Raises:
        ValueError: when rate is outside [0, 1], or a shape or type does not fit.

    References:
        Wen, Zhang, Li, Qiao, A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016, Eq. (4)
        and Algorithm 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> update_centers(jnp.array([[0.0], [5.0]]), jnp.array([[3.0], [6.0]]), jnp.array([0, 0])).tolist()
        [[1.5], [5.0]]
    """
    check_between(0, 1, rate=rate)
    centers, embeddings = working_arrays(centers=(centers, "c k"), embeddings=(embeddings, "b k"))
    labels = integer_labels(labels, len(embeddings))
    own = jax.nn.one_hot(labels, len(centers), dtype=centers.dtype)
    counts = jnp.sum(own, axis=0)[:, None]
    sums = jnp.matmul(own.T, embeddings, precision=jax.lax.Precision.HIGHEST)
    return centers - rate * (counts * centers - sums) / (1 + counts)
