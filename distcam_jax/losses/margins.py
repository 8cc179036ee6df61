"""Margins on cosines: the true class's score is made smaller before the softmax, so that it must win by a distance.

Each function takes cosines `[b, c]` of the embeddings to the class weights, such as the model head "cosine" gives, and
returns logits `[b, c]` for `softmax_cross_entropy`. With the margin that means none, all are `scale * cosines`.

The true class's logit falls steadily as its angle grows, up to π: a margin that let it rise again would reward the
worst samples. The derivative of an angle by its cosine is infinite at 1 and -1; cosines there, or beyond by rounding,
are taken one rounding step inside, where it is finite.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distcam_jax.checks import integer_labels, working_arrays
from distcam_jax.losses.arguments import check_between, check_not_negative, check_positive


def sphereface_logits(
    cosines: Float[Array | np.ndarray, "b c"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    margin: float | int = 1.35,
    scale: float | int = 64.0,
) -> Float[Array, "b c"]:
    """Multiplicative angular margin, `scale · ψ(θ)` for the true class, `scale · cos θ` for the others.

    `ψ(θ) = (-1)^j cos(margin · θ) - 2 j` for θ in [j π / margin, (j + 1) π / margin] goes on where `cos(margin · θ)`
    would rise again.

    Args:
        cosines: cosines `[b, c]`, in [-1, 1].
        labels: true classes `[b]`; a row whose label is outside [0, c) has no margin.
        margin: m of the paper, at least 1, which is no margin. The paper has 4 with the embedding's length as scale,
            and blends the margin in during training, as 4 alone hardly converges; 1.35 is what Deng et al. (ArcFace,
            CVPR 2019) train with at a scale of 64.
        scale: positive.

    Returns:
        Logits `[b, c]`.

    Raises:
        ValueError: when margin is below 1 or scale is not positive, or a shape or type does not fit.

    References:
        Liu, Wen, Yu, Li, Raj, Song, SphereFace: Deep Hypersphere Embedding for Face Recognition, CVPR 2017, Eq. (7).

    Examples:
        >>> import jax.numpy as jnp
        >>> logits = sphereface_logits(jnp.array([[0.0, 0.5]]), jnp.array([0]), margin=2, scale=1)
        >>> [round(x, 3) for x in logits[0].tolist()]  # cos(2 · π / 2)
        [-1.0, 0.5]
    """
    check_not_negative(margin=margin)
    if margin < 1:
        raise ValueError(f"margin: want at least 1, which is no margin, got {margin!r}")

    def with_margin(inside):
        angles = margin * jnp.arccos(inside)
        turns = jnp.floor(angles / math.pi)
        return (1 - 2 * (turns % 2)) * jnp.cos(angles) - 2 * turns

    return _logits(cosines, labels, scale, with_margin)


def cosface_logits(
    cosines: Float[Array | np.ndarray, "b c"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    margin: float | int = 0.35,
    scale: float | int = 64.0,
) -> Float[Array, "b c"]:
    """Additive cosine margin, `scale · (cos θ - margin)` for the true class, `scale · cos θ` for the others.

    Args:
        cosines: cosines `[b, c]`, in [-1, 1].
        labels: true classes `[b]`; a row whose label is outside [0, c) has no margin.
        margin: m of the paper, not negative; the paper has 0.35.
        scale: positive; the paper has 64.

    Returns:
        Logits `[b, c]`.

    Raises:
        ValueError: when margin is negative or scale is not positive, or a shape or type does not fit.

    References:
        Wang, Wang, Zhou, Ji, Gong, Zhou, Li, Liu, CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR
        2018, Eq. (4).

    Examples:
        >>> import jax.numpy as jnp
        >>> cosface_logits(jnp.array([[0.5, 0.5]]), jnp.array([0]), margin=0.25, scale=4).tolist()
        [[1.0, 2.0]]
    """
    check_not_negative(margin=margin)
    return _logits(cosines, labels, scale, lambda inside: inside - margin)


def arcface_logits(
    cosines: Float[Array | np.ndarray, "b c"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    margin: float | int = 0.5,
    scale: float | int = 64.0,
) -> Float[Array, "b c"]:
    """Additive angular margin, `scale · cos(θ + margin)` for the true class, `scale · cos θ` for the others.

    From θ = π - margin on, where `cos(θ + margin)` would rise again, the true class has
    `scale · (cos θ - margin · sin(margin))`, as in the authors' code with `easy_margin` off: a step down, then a fall.

    Args:
        cosines: cosines `[b, c]`, in [-1, 1].
        labels: true classes `[b]`; a row whose label is outside [0, c) has no margin.
        margin: m of the paper, in radians from 0 to π / 2; the paper has 0.5.
        scale: positive; the paper has 64.

    Returns:
        Logits `[b, c]`.

    Raises:
        ValueError: when margin is outside [0, π / 2] or scale is not positive, or a shape or type does not fit.

    References:
        Deng, Guo, Xue, Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019, Eq. (3).

    Examples:
        >>> import jax.numpy as jnp
        >>> logits = arcface_logits(jnp.array([[0.0, 0.5]]), jnp.array([0]), margin=0.5, scale=1)
        >>> [round(x, 4) for x in logits[0].tolist()]  # cos(π / 2 + 0.5) = -sin(0.5)
        [-0.4794, 0.5]
    """
    check_between(0, math.pi / 2, margin=margin)

    def with_margin(inside):
        sines = jnp.sqrt((1 - inside) * (1 + inside))  # no cancellation near 1, and never 0
        shifted = inside * math.cos(margin) - sines * math.sin(margin)
        return jnp.where(inside > -math.cos(margin), shifted, inside - margin * math.sin(margin))

    return _logits(cosines, labels, scale, with_margin)


def _logits(cosines, labels, scale, with_margin) -> jax.Array:
    check_positive(scale=scale)
    (cosines,) = working_arrays(cosines=(cosines, "b c"))
    labels = integer_labels(labels, len(cosines))
    own = jax.nn.one_hot(labels, cosines.shape[1], dtype=bool)
    return scale * jnp.where(own, with_margin(_inside(cosines)), cosines)


def _inside(cosines) -> jax.Array:
    """Cosines a rounding step off 1 and -1, whose gradient is that of the cosines."""
    limit = 1 - float(jnp.finfo(cosines.dtype).eps)
    return cosines + jax.lax.stop_gradient(jnp.clip(cosines, -limit, limit) - cosines)
