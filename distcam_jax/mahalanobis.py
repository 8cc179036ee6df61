"""The class activation map of the Mahalanobis distance between an image and its class: an extension of Dist-CAM.

Eq. (4) measures every channel by itself. But channels of a network say the same thing many times over, and a channel
that varies much within a class says little. With the covariance Σ of the pooled features within the classes and
`A = Σ⁻¹`, the distance that takes both into account is

    d²(q, P^c) / 2 = (q − P^c)ᵀ A (q − P^c) / 2 = constant of the image + constant of the class − (A P^c)ᵀ q

So against rivals weighted by π, `Σ_{c'} π_{c'} = 1`, the margin is linear in the pooled feature `q = GAP(Q)`:

    Σ_{c'} π_{c'} d²(q, P^{c'}) / 2 − d²(q, P^c) / 2 = constant + GAP(Σ_k w_k^c Q_k)
    w^c = A (P^c − Σ_{c'} π_{c'} P^{c'})

The map `M^c = Σ_k w_k^c Q_k` is the margin, up to that constant, divided over the places: what CAM is to a linear
layer, without the layer. With all classes as equal rivals, the constant is the class's, and w are the weights of linear
discriminant analysis, the same for every image; with near rivals both are each image's own.

Conventions are those of `distcam_jax.cam`. The decision explained is that of the nearest prototype by this distance,
not by L1.

References:
    Mahalanobis, On the generalized distance in statistics, Proceedings of the National Institute of Sciences of India,
    1936.
    Friedman, Regularized Discriminant Analysis, Journal of the American Statistical Association, 1989 (the ridge).
"""

import functools
import math

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float, Integer

from distcam_jax.cam import HIGHEST, AnyArray, _class_maps
from distcam_jax.checks import integer_labels, working_arrays
from distcam_jax.intersection import rivals_of

DEFAULT_TEMPERATURE = 2.0  # chosen on validation images, see docs/method.md


def within_class_precision(
    samples: Float[AnyArray, "n k"], labels: Integer[AnyArray, "n"], prototypes: Float[AnyArray, "c k"], *, ridge: float
) -> Float[np.ndarray, "k k"]:
    """Inverse covariance of samples around their class prototypes, `A`. Host, in float64.

    Args:
        samples: pooled features of training samples `[n, k]`.
        labels: class of each `[n]`, rows of prototypes.
        prototypes: mean pooled feature of every class `[c, k]`.
        ridge: what is added to every variance, as a share of the mean variance; above 0. Large values leave a multiple
            of the identity.

    Returns:
        `[k, k]` in float32, symmetric.

    Raises:
        ValueError: shapes do not fit, labels outside the prototypes, no spread at all, values that are not finite,
            ridge not positive, a spread so small or large that float32 cannot hold the inverse.

    Examples:
        >>> samples = np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0], [5.0, 5.0]])
        >>> prototypes = np.array([[1.0, 1.0], [5.0, 5.0]])
        >>> within_class_precision(samples, np.array([0, 0, 1, 1]), prototypes, ridge=2.0).tolist()
        [[1.0, 0.0], [0.0, 2.0]]
    """
    samples, prototypes = np.asarray(samples, np.float64), np.asarray(prototypes, np.float64)
    labels = np.asarray(integer_labels(labels, len(samples)))
    if samples.ndim != 2 or prototypes.ndim != 2 or samples.shape[1] != prototypes.shape[1] or not samples.size:
        raise ValueError(f"samples, prototypes: want axes [n k] and [c k], got {samples.shape} and {prototypes.shape}")
    if labels.min() < 0 or labels.max() >= len(prototypes):
        raise ValueError(f"labels: want 0 to {len(prototypes) - 1}, got {labels.min()} to {labels.max()}")
    if not isinstance(ridge, float | int | np.floating | np.integer) or not 0 < ridge < math.inf:
        raise ValueError(f"ridge: want a positive number, got {ridge!r}")
    centred = samples - prototypes[labels]
    covariance = centred.T @ centred / len(centred)
    mean = np.trace(covariance) / len(covariance)
    if not 0 < mean < math.inf:
        raise ValueError(f"samples: want finite values that differ from their prototypes, mean variance is {mean}")
    precision = np.linalg.inv(covariance + ridge * mean * np.eye(len(covariance)))
    with np.errstate(over="ignore"):
        precision = ((precision + precision.T) / 2).astype(np.float32)
    if not np.isfinite(precision).all() or not (np.diagonal(precision) > 0).all():
        raise ValueError(f"samples: float32 cannot hold the inverse of mean variance {mean:.3g} with ridge {ridge}")
    return precision


def mahalanobis_weights(
    query: Float[AnyArray, "*b k"],
    prototypes: Float[AnyArray, "c k"],
    precision_matrix: Float[AnyArray, "k k"],
    *,
    temperature: float = DEFAULT_TEMPERATURE,
) -> Float[Array, "*b c k"]:
    """Weights of the margin of the Mahalanobis distance, `w^c = A (P^c − Σ_{c'} π_{c'} P^{c'})`.

    Args:
        query: pooled features `[..., k]`.
        prototypes: mean pooled feature of every class `[c, k]`; leave out classes without samples.
        precision_matrix: A `[k, k]`, symmetric, as from `within_class_precision`.
        temperature: of the rivals π by their L1 distance, see `distcam_jax.intersection.rival_probabilities`.

    Returns:
        Weights `[..., c, k]` of either sign.

    Raises:
        ValueError: shapes or types do not fit, temperature not positive.

    Examples:
        >>> prototypes, precision_matrix = np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.5], [0.5, 4.0]])
        >>> mahalanobis_weights(np.array([1.0, 4.0]), prototypes, precision_matrix).tolist()  # both as near
        [[1.0, 0.5], [-1.0, -0.5]]
    """
    query, prototypes, precision_matrix = working_arrays(
        query=(query, "... k"), prototypes=(prototypes, "c k"), precision_matrix=(precision_matrix, "k k")
    )
    return _margin_weights(query, prototypes, _whitened(prototypes, precision_matrix), temperature)


def _whitened(prototypes, precision_matrix):
    """`A P^c` `[c, k]`, up to a vector that all classes share; it takes c·k² steps, so once for all queries."""
    return jnp.matmul(prototypes - jnp.mean(prototypes, axis=0), precision_matrix, precision=HIGHEST)


def _margin_weights(query, prototypes, whitened, temperature):
    rivals = rivals_of(query, prototypes, temperature=temperature)
    return whitened - jnp.einsum("...c,ck->...k", rivals, whitened, precision=HIGHEST)[..., None, :]


@functools.partial(jax.jit, static_argnames=("temperature", "precision", "batch_size"))
def mahalanobis_cam(
    features: Float[AnyArray, "*b h w k"],
    prototypes: Float[AnyArray, "c k"],
    precision_matrix: Float[AnyArray, "k k"],
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    precision: lax.PrecisionLike = HIGHEST,
    batch_size: int | None = None,
) -> Float[Array, "*b c h w"]:
    """The map of every image's Mahalanobis margin for every class: Eq. (6) with `mahalanobis_weights`. Jitted.

    Args:
        features: feature maps `[..., h, w, k]`.
        prototypes: mean pooled feature of every class `[c, k]`; leave out classes without samples.
        precision_matrix: A `[k, k]`, symmetric, as from `within_class_precision`.
        temperature: of the rivals, see `mahalanobis_weights`.
        precision: of the product.
        batch_size: images computed at once; None chooses by the back end and the size of the weights.

    Returns:
        Maps `[..., c, h, w]` of either sign.

    Raises:
        ValueError: shapes or types do not fit, temperature not positive, batch_size below 1.

    Examples:
        >>> prototypes, precision_matrix = np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.5], [0.5, 4.0]])
        >>> mahalanobis_cam(np.array([[[2.0, 0.0], [0.0, 8.0]]]), prototypes, precision_matrix).tolist()
        [[[2.0, 4.0]], [[-2.0, -4.0]]]
    """
    features, prototypes, precision_matrix = working_arrays(
        features=(features, "... h w k"), prototypes=(prototypes, "c k"), precision_matrix=(precision_matrix, "k k")
    )
    whitened = _whitened(prototypes, precision_matrix)

    def weigh(pooled, prototypes):
        return _margin_weights(pooled, prototypes, whitened, temperature)

    return _class_maps(features, prototypes, weigh, precision, batch_size)
