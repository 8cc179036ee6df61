"""Maps of a margin: what speaks for the asked class less what speaks for its rivals, measured in several ways."""

import functools
import math
from collections.abc import Callable

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from distcam_jax.cam import HIGHEST, channel_distances, global_average_pool
from distcam_jax.intersection import rivals_of, shared_activation
from distcam_jax.losses.arguments import check_between
from distcam_jax.methods.context import Context
from distcam_jax.methods.maps import each_image, weighted
from distcam_jax.methods.similarities import AnyArray, chosen

# Of a pooled feature q [k] and a prototype P [..., k], what channel k says for the prototype's class.
EVIDENCE: dict[str, Callable] = {
    "intersection": lambda q, p: jnp.sign(q) * shared_activation(q, p),
    "distance": lambda q, p: -channel_distances(q, p),
    "gradient": lambda q, p: jnp.sign(p - q),
    "difference": lambda q, p: p,
    "whitened": lambda q, p: p,  # the whitening is linear, so it comes last, for the asked classes alone
}
EVIDENCE_NEEDS = {"whitened": ("whitening",)}  # of the context


@functools.partial(jax.jit, static_argnames=("evidence", "temperature", "uniform", "base", "spread", "precision"))
def margin_maps(
    features: Float[AnyArray, "b h w k"],
    context: Context,
    *,
    evidence: str = "intersection",
    temperature: float = math.inf,
    uniform: float = 0.0,
    base: float = 0.0,
    spread: bool = False,
    precision: lax.PrecisionLike = HIGHEST,
) -> Float[Array, "b m h w"]:
    """Maps with the weights `e_k^c − (1 − base) Σ_{c'} π_{c'} e_k^{c'}` for a measure of evidence e.

    With `"intersection"` it is the map of `distcam_jax.intersection_cam`, with `"distance"` and infinite temperature
    that of `distcam_jax.contrastive_dist_cam`. The others are there to be compared with them.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked; its prototypes must leave out classes without samples.
        evidence: of a channel: `"intersection"`, the share of its activation that the prototype has; `"distance"`, the
            negative channel distance; `"gradient"`, that of the negative L1 distance; `"difference"`, the prototype, to
            which the margin of the squared L2 distance comes down; `"whitened"`, the prototype times the context's
            whitening, to which that of the Mahalanobis distance comes down.
        temperature: of the rivals π, see `distcam_jax.intersection.rival_probabilities`.
        uniform: share of the rivals that is spread over all classes alike, see there.
        base: share of the rivals' evidence that is left in the map, in [0, 1].
        spread: divides each weight by the standard deviation of the prototypes in that channel.
        precision: of the product.

    Returns:
        Maps `[b, m, h, w]` of either sign.

    Raises:
        ValueError: as the functions named, an unknown measure of evidence, base outside [0, 1], or a context without
            what it needs.

    Examples:
        >>> import numpy as np
        >>> context = Context(np.array([[1]]), np.array([[2.0, 0.0], [6.0, 4.0]]))  # the pooled feature is 2, 4
        >>> margin_maps(np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context).tolist()  # shares 1, 1 and 1, 0
        [[[[4.0, 0.0]]]]
    """
    measure = chosen(EVIDENCE, evidence=evidence)
    check_between(0, 1, base=base)
    context.require(EVIDENCE_NEEDS.get(evidence, ()), "margin_maps")

    def maps_of(image, rows, context):
        pooled, prototypes = global_average_pool(image), context.prototypes
        rivals = rivals_of(pooled, prototypes, temperature=temperature, uniform=uniform)
        common = jnp.einsum("c,ck->k", rivals, measure(pooled, prototypes), precision=HIGHEST)
        weights = measure(pooled, rows) - (1 - float(base)) * common
        if evidence == "whitened":
            weights = jnp.matmul(weights, context.whitening, precision=HIGHEST)
        if spread:
            deviation = jnp.std(prototypes, axis=0)
            weights = weights / (deviation + 1e-3 * jnp.mean(deviation) + jnp.finfo(weights.dtype).tiny)
        return weighted(image, weights, precision)

    return each_image("margin_maps", features, context, "prototypes", maps_of, context.prototypes.size)
