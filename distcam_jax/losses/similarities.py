"""Losses over the inner products within a batch: N-pair, NT-Xent and multi-similarity."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distcam_jax.checks import integer_labels, working_arrays
from distcam_jax.losses.arguments import check_finite, check_not_negative, check_positive
from distcam_jax.losses.distances import unit_vectors
from distcam_jax.losses.masking import masked_logsumexp, masked_max, masked_mean, masked_min, pair_masks


def n_pair(
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    regularization: float | int = 0.0,
) -> Float[Array, ""]:
    """Multi-class N-pair loss, the mean over pairs i of `log(1 + sum_j exp(f_i · f_j⁺ - f_i · f_i⁺))`.

    The first and second sample of a class in the batch are an anchor `f_i` and its positive `f_i⁺`, the third and
    fourth another pair, and so on; what is left over takes no part. The sum is over the positives `f_j⁺` of the pairs
    of other classes. With two samples of each class this is the paper's batch of N pairs, in any order. Embeddings are
    not normalised, as in the paper; `regularization` holds their lengths down.

    Args:
        embeddings: pooled features `[b, k]`.
        labels: their classes `[b]`.
        regularization: weight of the mean squared length of the anchors and positives, not negative; the paper adds
            such a term, without a figure.

    Returns:
        The loss; 0 where no class has two samples.

    Raises:
        ValueError: when regularization is negative, or a shape or type does not fit.

    References:
        Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, NIPS 2016, the N-pair-mc loss of
        section 3.2.

    Examples:
        >>> import jax.numpy as jnp
        >>> embeddings = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(n_pair(embeddings, jnp.array([0, 0, 1, 1])).item(), 4)  # log(1 + exp(-1)), twice
        0.3133
    """
    check_not_negative(regularization=regularization)
    (embeddings,) = working_arrays(embeddings=(embeddings, "b k"))
    labels = integer_labels(labels, len(embeddings))
    same, negatives = pair_masks(labels)
    earlier = jnp.sum(jnp.tril(same), axis=-1)  # samples of the class that come before
    is_anchor = earlier % 2 == 0
    pairs = same & is_anchor[:, None] & (earlier[None, :] == earlier[:, None] + 1)
    products = _products(embeddings)
    to_others = masked_logsumexp(products, negatives & ~is_anchor[None, :])
    loss = masked_mean(jax.nn.softplus(to_others[:, None] - products), pairs)
    if not regularization:
        return loss
    used = jnp.any(pairs, axis=1) | jnp.any(pairs, axis=0)
    return loss + regularization * masked_mean(jnp.sum(jnp.square(embeddings), axis=-1), used)


def nt_xent(
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    temperature: float | int = 0.07,
) -> Float[Array, ""]:
    """Normalised temperature-scaled cross-entropy, `-log(exp(s_ip / t) / (exp(s_ip / t) + sum_n exp(s_in / t)))`.

    `s` are cosines, p is a positive of i, n are its negatives; the mean is over all ordered positive pairs (i, p). The
    other positives of i are in no denominator. With two samples of each class this is the paper's Eq. (1). The values
    are those of `optax.losses.ntxent`, which is NaN for a batch without positive pairs, refuses strict type promotion
    and computes bfloat16 as such.

    Args:
        embeddings: pooled features `[b, k]`, of any length: they are normalised here.
        labels: their classes `[b]`; in the paper, the two views of one image.
        temperature: positive; the paper has 0.1 for ImageNet and 0.5 for CIFAR-10, optax 0.07.

    Returns:
        The loss, in nats; 0 where there is no positive pair.

    Raises:
        ValueError: when the temperature is not positive, or a shape or type does not fit.

    References:
        Chen, Kornblith, Norouzi, Hinton, A Simple Framework for Contrastive Learning of Visual Representations, ICML
        2020, Eq. (1).

    Examples:
        >>> import jax.numpy as jnp
        >>> embeddings = jnp.array([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> round(nt_xent(embeddings, jnp.array([0, 0, 1, 1]), temperature=1.0).item(), 4)  # log(1 + 2 exp(-1))
        0.5514
    """
    check_positive(temperature=temperature)
    scores = _cosines(embeddings) / temperature
    labels = integer_labels(labels, len(scores))
    positives, negatives = pair_masks(labels)
    return masked_mean(jax.nn.softplus(masked_logsumexp(scores, negatives)[:, None] - scores), positives)


def multi_similarity(
    embeddings: Float[Array | np.ndarray, "b k"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    alpha: float | int = 2.0,
    beta: float | int = 50.0,
    base: float | int = 0.5,
    epsilon: float | int = 0.1,
) -> Float[Array, ""]:
    """Multi-similarity loss over mined pairs, on cosines `S`.

    The mean over anchors i of `log(1 + sum_{p ∈ P_i} exp(-alpha (S_ip - base))) / alpha +
    log(1 + sum_{n ∈ N_i} exp(beta (S_in - base))) / beta`. Mining keeps a negative where `S_in > min_p S_ip - epsilon`
    and a positive where `S_ip < max_n S_in + epsilon`, minimum and maximum over all positives and negatives of i.

    Anchors without a positive or without a negative have nothing to be mined against: their term is 0. The mean is over
    the whole batch, as in the paper.

    Args:
        embeddings: pooled features `[b, k]`, of any length: they are normalised here.
        labels: their classes `[b]`.
        alpha: steepness for positives, positive.
        beta: steepness for negatives, positive; the paper has 50, its authors' code 40.
        base: λ of the paper, the cosine that counts as neutral; the paper has 1, its authors' code 0.5.
        epsilon: margin of the mining, not negative.

    Returns:
        The loss.

    Raises:
        ValueError: when alpha or beta is not positive, epsilon is negative, or a shape or type does not fit.

    References:
        Wang, Han, Huang, Dong, Scott, Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning,
        CVPR 2019, section 4.

    Examples:
        >>> import jax.numpy as jnp
        >>> embeddings, labels = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), jnp.array([0, 0, 1])
        >>> round(multi_similarity(embeddings, labels).item(), 4)  # log(1 + e) / 2 / 3: the second sample alone
        0.2189
    """
    check_positive(alpha=alpha, beta=beta)
    check_not_negative(epsilon=epsilon)
    check_finite(base=base)
    cosines = _cosines(embeddings)
    labels = integer_labels(labels, len(cosines))
    positives, negatives = pair_masks(labels)
    has_both = jnp.any(positives, axis=-1, keepdims=True) & jnp.any(negatives, axis=-1, keepdims=True)
    least_positive = masked_min(cosines, positives)[:, None]
    greatest_negative = masked_max(cosines, negatives)[:, None]
    mined_positives = positives & has_both & (cosines < greatest_negative + epsilon)
    mined_negatives = negatives & has_both & (cosines > least_positive - epsilon)
    pull = jax.nn.softplus(masked_logsumexp(-alpha * (cosines - base), mined_positives)) / alpha
    push = jax.nn.softplus(masked_logsumexp(beta * (cosines - base), mined_negatives)) / beta
    return jnp.mean(pull + push)


def _cosines(embeddings) -> jax.Array:
    (embeddings,) = working_arrays(embeddings=(embeddings, "b k"))
    return _products(unit_vectors(embeddings))


def _products(vectors) -> jax.Array:
    return jnp.matmul(vectors, vectors.T, precision=jax.lax.Precision.HIGHEST)
