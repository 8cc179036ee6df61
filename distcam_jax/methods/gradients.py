"""Grad-CAM and Grad-CAM++ of any score of an image's features."""

import math
from collections.abc import Callable

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from distcam_jax.cam import HIGHEST, _in_blocks, global_average_pool
from distcam_jax.checks import working_arrays
from distcam_jax.losses.arguments import check_positive
from distcam_jax.methods.similarities import SIMILARITIES, AnyArray, chosen, similarity

Score = Callable[[Array], Array]


def grad_cam(
    features: Float[AnyArray, "*b h w k"],
    score: Score,
    *,
    precision: lax.PrecisionLike = HIGHEST,
    batch_size: int | None = None,
) -> Float[Array, "*b h w"]:
    """Grad-CAM, `relu(Σ_k α_k Q_k)`, with α_k the mean over the image of the score's gradient in channel k.

    Args:
        features: feature maps `[..., h, w, k]` of any layer.
        score: function of one image's features `[h, w, k]` to a scalar, in float32: a class's score, a similarity as
            from `similarity_score`, or the rest of a network from an inner layer on.
        precision: of the product; that of the score is its own.
        batch_size: images computed at once; None chooses by the back end and the size of the features. Choose it where
            the score needs much memory.

    Returns:
        Maps `[..., h, w]`, not negative.

    Raises:
        ValueError: the shape or type does not fit, the score is no scalar, batch_size below 1.

    References:
        Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017,
        Eq. (1) and (2).

    Examples:
        >>> import numpy as np
        >>> features = np.array([[[1.0, 8.0], [3.0, 0.0]]])
        >>> grad_cam(features, lambda image: image.mean(axis=(0, 1)) @ np.array([2.0, -0.5], np.float32)).tolist()
        [[0.0, 3.0]]
    """

    def map_of(image, gradients):
        return gradient_maps(image, grad_cam_weights(gradients)[None], precision)[0]

    return _each(features, score, map_of, batch_size)


def grad_cam_pp(
    features: Float[AnyArray, "*b h w k"],
    score: Score,
    *,
    eps: float | int = 1e-6,
    precision: lax.PrecisionLike = HIGHEST,
    batch_size: int | None = None,
) -> Float[Array, "*b h w"]:
    """Grad-CAM++, `relu(Σ_k w_k Q_k)` with `w_k = Σ_ij α_ij relu(g_ij)`, g the gradient of the score S in channel k.

    The paper differentiates `Y = exp(S)`, whose second and third derivatives are `Y g²` and `Y g³` where S is piecewise
    linear. So `α = g² / (2 g² + g³ Σ_ab Q_ab)`, which is `1 / (2 + g Σ_ab Q_ab)`, in which form a small gradient needs
    no epsilon; where g is zero nothing is added. The common factor `exp(S)` of all weights is left out: it does not
    change the picture and overflows, or vanishes for the negative distances that embeddings are scored by. A score that
    is not piecewise linear, as a cosine is not, is taken at its tangent.

    Args:
        features: feature maps `[..., h, w, k]` of any layer.
        score: function of one image's features `[h, w, k]` to a scalar, see `grad_cam`.
        eps: positive, the least magnitude of `2 + g Σ_ab Q_ab`. After a ReLU that is at least 2 wherever it counts.
        precision: of the product.
        batch_size: images computed at once, see `grad_cam`.

    Returns:
        Maps `[..., h, w]`, not negative.

    Raises:
        ValueError: the shape or type does not fit, the score is no scalar, eps not positive, batch_size below 1.

    References:
        Chattopadhyay, Sarkar, Howlader, Balasubramanian, Grad-CAM++: Generalized Gradient-based Visual Explanations for
        Deep Convolutional Networks, WACV 2018 (arXiv:1710.11063), section 3.

    Examples:
        >>> import numpy as np
        >>> features = np.array([[[1.0, 8.0], [3.0, 0.0]]])
        >>> grad_cam_pp(features, lambda image: image.mean(axis=(0, 1)) @ np.array([1.0, -1.0], np.float32)).tolist()
        [[0.25, 0.75]]
    """
    check_positive(eps=eps)

    def map_of(image, gradients):
        return gradient_maps(image, grad_cam_pp_weights(image, gradients, eps)[None], precision)[0]

    return _each(features, score, map_of, batch_size)


def similarity_score(reference: Float[AnyArray, "k"], metric: str = "cosine") -> Score:
    """A score for `grad_cam` and `grad_cam_pp`: the similarity of the pooled features to a reference.

    Args:
        reference: a pooled feature or prototype `[k]`.
        metric: `"l1"`, the negative L1 distance; `"l2"`, the negative squared L2 distance; `"cosine"`.

    Returns:
        A function of features `[h, w, k]` to a scalar.

    Raises:
        ValueError: the shape or type does not fit, an unknown metric.

    Examples:
        >>> import numpy as np
        >>> similarity_score(np.array([2.0, 0.0]), "l1")(np.array([[[1.0, 8.0], [3.0, 0.0]]])).item()
        -4.0
    """
    chosen(SIMILARITIES, metric=metric)
    (reference,) = working_arrays(reference=(reference, "k"))
    return lambda features: similarity(global_average_pool(features), reference, metric=metric)


def grad_cam_weights(gradients: Float[Array, "... h w k"]) -> Float[Array, "... k"]:
    """Grad-CAM's weights of channels, Eq. (1): the mean of the gradient over the image.

    Examples:
        >>> grad_cam_weights(jnp.array([[[1.0], [3.0]]])).tolist()
        [2.0]
    """
    return jnp.mean(gradients, axis=(-3, -2))


def grad_cam_pp_weights(
    features: Float[Array, "h w k"], gradients: Float[Array, "*m h2 w2 k"], eps: float | int
) -> Float[Array, "*m k"]:
    """Grad-CAM++'s weights of channels, see `grad_cam_pp`. Gradients `[1, 1, k]` hold for every place alike.

    Examples:
        >>> grad_cam_pp_weights(jnp.array([[[1.0], [3.0]]]), jnp.array([[[0.5], [-1.0]]]), 1e-6).tolist()
        [0.125]
    """
    denominator = 2 + gradients * jnp.sum(features, axis=(0, 1))
    small = jnp.abs(denominator) < eps
    denominator = jnp.where(small, jnp.where(denominator < 0, -eps, eps), denominator)
    # The mean, not the sum, as the gradients may stand for all places at once.
    return jnp.mean(jax.nn.relu(gradients) / denominator, axis=(-3, -2)) * math.prod(features.shape[:2])


def gradient_maps(
    image: Float[Array, "h w k"], weights: Float[Array, "m k"], precision: lax.PrecisionLike = HIGHEST
) -> Float[Array, "m h w"]:
    """Maps of one image from several weightings of its channels, `relu(Σ_k α_k Q_k)`, Eq. (2) of Grad-CAM.

    Examples:
        >>> gradient_maps(jnp.array([[[1.0, 8.0], [3.0, 0.0]]]), jnp.array([[1.0, -0.25]])).tolist()
        [[[0.0, 3.0]]]
    """
    return jax.nn.relu(jnp.einsum("hwk,mk->mhw", image, weights, precision=precision))


def _each(features, score, map_of, batch_size):
    """Maps of every image, from it and the gradient of its score."""
    (features,) = working_arrays(features=(features, "... h w k"))
    *batch, height, width, channels = features.shape
    one = jax.ShapeDtypeStruct((height, width, channels), features.dtype)
    result = jax.eval_shape(score, one)
    if getattr(result, "shape", None) != () or not jnp.issubdtype(result.dtype, jnp.floating):
        raise ValueError(f"score: want a function of features [h, w, k] = {one.shape} to a scalar, got {result}")
    images = features.reshape(math.prod(batch), height, width, channels)
    item_bytes = one.size * features.dtype.itemsize
    maps = _in_blocks(lambda image: map_of(image, jax.grad(score)(image)), (images,), item_bytes, batch_size)
    return maps.reshape(*batch, height, width)
