"""The class activation map of the L1 decision itself: an extension of Dist-CAM, derived from Eq. (4).

For numbers that are not negative, `|P − q| = P + q − 2 min(P, q)`. So the distance of Eq. (4), summed over the
channels, is a constant of the class, one of the image, and the histogram intersection of the two:

    dist^c = Σ_k P_k^c + Σ_k q_k − 2 Σ_k min(P_k^c, q_k),    q = GAP(Q)

The last sum is all that an image and a class say about each other. The prototype shares `s_k^c = min(P_k^c, q_k) / q_k`
of a channel's activation. The same share of the activation at every place adds up to that sum again:

    M^c = Σ_k s_k^c Q_k,    GAP(M^c) = Σ_k min(P_k^c, q_k)

So M is to the nearest prototype what CAM is to a linear layer: the decision, up to constants, divided over the places.
A decision is made between classes. Against rivals weighted by π, `Σ_{c'} π_{c'} = 1`, the margin is

    Σ_{c'} π_{c'} dist^{c'} − dist^c = constant + 2 GAP(Σ_k (s_k^c − Σ_{c'} π_{c'} s_k^{c'}) Q_k)

which gives the weights of `intersection_weights`. `2 s − 1` is also the integrated gradient of the negative distance,
from a feature of zeros to the image's, divided by the activation.

Conventions are those of `distcam_jax.cam`. Features may be negative (LeakyReLU): the identity holds with |P| and |q|, a
channel whose sign the prototype has not is not shared, and weights have the sign of the query's channel.

References:
    Swain, Ballard, Color Indexing, IJCV 1991 (histogram intersection).
    Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, ICML 2017 (integrated gradients).
"""

import functools
import math

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from distcam_jax.cam import HIGHEST, AnyArray, _class_maps, channel_distances
from distcam_jax.checks import working_arrays
from distcam_jax.losses.arguments import check_between


def shared_activation(query: Float[AnyArray, "... k"], reference: Float[AnyArray, "... k"]) -> Float[Array, "... k"]:
    """The share of every channel of a query that a reference has too, `s_k = min(P_k, q_k) / q_k`.

    Times the query and summed over k, the shares give the histogram intersection:
    `Σ_k |P_k − q_k| = Σ_k P_k + Σ_k q_k − 2 Σ_k s_k q_k`.

    Args:
        query: pooled features `[..., k]`.
        reference: pooled features or prototypes `[..., k]`; leading axes broadcast against the query's.

    Returns:
        Shares `[..., k]` in [0, 1]; 0 where the signs differ, and where the query is below the root of the type's
        smallest number (1e-19 in float32): there is nothing to share.

    Raises:
        ValueError: shapes or types do not fit.

    Examples:
        >>> shared_activation(np.array([1.0, 4.0, 0.0]), np.array([[2.0, 1.0, 3.0], [0.0, 4.0, 0.0]])).tolist()
        [[1.0, 0.25, 0.0], [0.0, 1.0, 0.0]]
    """
    query, reference = working_arrays(query=(query, "... k"), reference=(reference, "... k"))
    alike = (jnp.sign(query) == jnp.sign(reference)) & (jnp.abs(query) > math.sqrt(jnp.finfo(query.dtype).tiny))
    less = alike & (jnp.abs(reference) < jnp.abs(query))
    share = jnp.where(less, reference, 0) / jnp.where(less, query, 1)  # no quotient, nor its gradient, can overflow
    share = jnp.where(alike & ~less, 1, share)
    return jnp.where(jnp.isnan(query) | jnp.isnan(reference), jnp.nan, share)


def rival_probabilities(
    distances: Float[AnyArray, "*b c"], *, temperature: float = math.inf, uniform: float = 0.0
) -> Float[Array, "*b c"]:
    """How much each class counts as a rival: `π_c ∝ exp(−dist^c / (temperature · std_c dist))`.

    The asked class may stay among its own rivals: that multiplies its map by 1 − π_c and changes nothing else.

    Args:
        distances: of a query to every class `[..., c]`.
        temperature: in units of the standard deviation over the classes; infinite, all classes count the same.
        uniform: share in [0, 1] that is spread over all classes alike.

    Returns:
        Probabilities `[..., c]`; all 1/c where all distances are equal.

    Raises:
        ValueError: the shape or type does not fit, temperature not positive, uniform outside [0, 1].

    Examples:
        >>> rival_probabilities(np.array([1.0, 3.0])).tolist()
        [0.5, 0.5]
        >>> rival_probabilities(np.array([1.0, 3.0, 1.0]), temperature=1e-3).tolist()
        [0.5, 0.0, 0.5]
    """
    (distances,) = working_arrays(distances=(distances, "... c"))
    if not isinstance(temperature, float | int | np.floating | np.integer) or not temperature > 0:
        raise ValueError(f"temperature: want a positive number, got {temperature!r}")
    check_between(0, 1, uniform=uniform)
    if math.isinf(temperature):
        return jnp.full_like(distances, 1 / distances.shape[-1])
    distances = distances - jnp.min(distances, axis=-1, keepdims=True)
    # First to a unit in which squares fit the type. The result does not depend on it, so it may be a constant.
    unit = lax.stop_gradient(jnp.mean(distances, axis=-1, keepdims=True))
    distances = distances / jnp.where(unit > 0, unit, 1)
    variance = jnp.var(distances, axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1))
    near = jax.nn.softmax(-distances / (float(temperature) * deviation), axis=-1)
    return (1 - float(uniform)) * near + float(uniform) / distances.shape[-1]


def rivals_of(
    query: Float[AnyArray, "*b k"],
    prototypes: Float[AnyArray, "c k"],
    *,
    temperature: float = math.inf,
    uniform: float = 0.0,
) -> Float[Array, "*b c"]:
    """`rival_probabilities` by the L1 distances between queries and prototypes.

    Args:
        query: pooled features `[..., k]`.
        prototypes: mean pooled feature of every class `[c, k]`; leave out classes without samples.
        temperature: see `rival_probabilities`.
        uniform: see there.

    Returns:
        Probabilities `[..., c]`.

    Raises:
        ValueError: shapes or types do not fit, or as there.

    Examples:
        >>> rivals_of(np.array([1.0]), np.array([[0.0], [4.0], [2.0]]), temperature=1e-3).tolist()
        [0.5, 0.0, 0.5]
    """
    query, prototypes = working_arrays(query=(query, "... k"), prototypes=(prototypes, "c k"))
    distances = jnp.sum(channel_distances(query[..., None, :], prototypes), axis=-1)
    return rival_probabilities(distances, temperature=temperature, uniform=uniform)


def intersection_weights(
    query: Float[AnyArray, "*b k"],
    prototypes: Float[AnyArray, "c k"],
    *,
    temperature: float = math.inf,
    base: float = 0.0,
) -> Float[Array, "*b c k"]:
    """Weights of the decision's own map, `w_k^c = s_k^c − (1 − base) Σ_{c'} π_{c'} s_k^{c'}`.

    Args:
        query: pooled features `[..., k]`.
        prototypes: mean pooled feature of every class `[c, k]`; leave out classes without samples.
        temperature: of the rivals π, see `rival_probabilities`.
        base: 0 explains the margin, why this class and not another; 1 the intersection, what image and class have in
            common. Between the two, the map keeps a share of what all classes have.

    Returns:
        Weights `[..., c, k]` from −1 to 1, without a unit.

    Raises:
        ValueError: shapes or types do not fit, temperature not positive, base outside [0, 1].

    Examples:
        >>> prototypes = np.array([[2.0, 1.0], [0.0, 4.0]])
        >>> intersection_weights(np.array([1.0, 4.0]), prototypes).tolist()  # shares 1, 0.25 and 0, 1
        [[0.5, -0.375], [-0.5, 0.375]]
        >>> intersection_weights(np.array([1.0, 4.0]), prototypes, base=1.0).tolist()
        [[1.0, 0.25], [0.0, 1.0]]
    """
    query, prototypes = working_arrays(query=(query, "... k"), prototypes=(prototypes, "c k"))
    check_between(0, 1, base=base)
    shares = shared_activation(query[..., None, :], prototypes)
    rivals = rivals_of(query, prototypes, temperature=temperature)
    common = jnp.einsum("...c,...ck->...k", rivals, shares, precision=HIGHEST)
    return jnp.sign(query)[..., None, :] * (shares - (1 - float(base)) * common[..., None, :])


@functools.partial(jax.jit, static_argnames=("temperature", "base", "precision", "batch_size"))
def intersection_cam(
    features: Float[AnyArray, "*b h w k"],
    prototypes: Float[AnyArray, "c k"],
    *,
    temperature: float = math.inf,
    base: float = 0.0,
    precision: lax.PrecisionLike = HIGHEST,
    batch_size: int | None = None,
) -> Float[Array, "*b c h w"]:
    """The map of every image's L1 decision for every class: Eq. (6) with `intersection_weights`. Jitted.

    Args:
        features: feature maps `[..., h, w, k]`.
        prototypes: mean pooled feature of every class `[c, k]`; leave out classes without samples.
        temperature: of the rivals, see `rival_probabilities`.
        base: how much stays of what all classes have in common, see `intersection_weights`.
        precision: of the product.
        batch_size: images computed at once; None chooses by the back end and the size of the weights.

    Returns:
        Maps `[..., c, h, w]` of either sign in the unit of the features. With base 1 their means are the histogram
        intersections of image and prototypes.

    Raises:
        ValueError: shapes or types do not fit, temperature not positive, base outside [0, 1], batch_size below 1.

    Examples:
        >>> prototypes = np.array([[1.0, 4.0], [4.0, 1.0]])  # the image's pooled feature is 2, 4
        >>> intersection_cam(np.array([[[1.0, 8.0], [3.0, 0.0]]]), prototypes, base=1.0).tolist()
        [[[8.5, 1.5]], [[3.0, 3.0]]]
    """

    def weigh(pooled, prototypes):
        return intersection_weights(pooled, prototypes, temperature=temperature, base=base)

    return _class_maps(features, prototypes, weigh, precision, batch_size)
