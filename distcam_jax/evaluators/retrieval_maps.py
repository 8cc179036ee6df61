"""Heatmaps of pairs of images: an image explained by another one's pooled feature, its reference.

Dist-CAM lives in the space of pooled features, whatever space is searched. What differentiates or decomposes a
similarity does so of the one that is searched by: through the projection, or through the neck, which is linear in
evaluation. `METHODS` are asked about references as they otherwise are about prototypes.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from distcam_jax.cam import HIGHEST, global_average_pool, weighted_channel_sum
from distcam_jax.evaluators.network import Network
from distcam_jax.intersection import rival_probabilities
from distcam_jax.mahalanobis import DEFAULT_TEMPERATURE
from distcam_jax.methods import Context, Method, grad_cam, grad_cam_pp, similarity, similarity_map
from distcam_jax.models.heads import BatchNormNeckHead, ProjectionHead, check_search_space
from distcam_jax.retrieval.distances import difference_distances

AnyArray = Array | np.ndarray
Linear = tuple[Float[AnyArray, "k d"], Float[AnyArray, " d"]]

PAIR_METHODS = (
    "dist_cam",
    "dist_cam_literal",
    "mahalanobis",
    "uniform",
    "energy",
    "grad_cam_l1",
    "grad_cam_l2",
    "grad_cam_cosine",
    "grad_cam_pp_cosine",
    "decomposition_cosine",
    "decomposition_l2",
)
_WORDS = {"projection": ", projection", "neck": ", after the neck"}  # in titles


def linear_head(head: nnx.Module) -> Linear | None:
    """What a head does to the pooled features in evaluation, as a kernel `[k, d]` and a bias `[d]`.

    Args:
        head: with its running statistics. The neck's normalisation is a diagonal kernel.

    Returns:
        Kernel and bias of the feature that is searched by; None for other heads.

    Examples:
        >>> kernel, bias = linear_head(ProjectionHead(4, 2, rngs=nnx.Rngs(0)))
        >>> kernel.shape, bias.tolist()
        ((4, 2), [0.0, 0.0])
    """
    if isinstance(head, ProjectionHead):
        kernel = head.kernel.get_value()
        return kernel, jnp.zeros(kernel.shape[1], kernel.dtype)
    if not isinstance(head, BatchNormNeckHead):
        return None
    norm, factor = head.norm, head.evaluation_factor()
    return jnp.diag(factor), norm.bias.get_value() - norm.mean.get_value() * factor


def search_head(network: Network, space: str) -> Linear | None:
    """`linear_head` of a network, or None where it searches among the pooled features themselves.

    Args:
        network: from `load_network`.
        space: of `distcam_jax.models.SEARCH_SPACES`.

    Returns:
        Kernel and bias.

    Raises:
        ValueError: the space is unknown, or none of the network's.
    """
    if space == "embedding":
        return None
    model = nnx.merge(network.graph, network.state, copy=True)
    check_search_space(model, space)
    return linear_head(model.head)


def pair_titles(methods: Mapping[str, Method], space: str) -> dict[str, str]:
    """What tables and pages call the methods where a space is searched.

    Args:
        methods: of `choose_methods`.
        space: of `distcam_jax.models.SEARCH_SPACES`.

    Returns:
        Name to title.

    Examples:
        >>> from distcam_jax.methods import METHODS
        >>> pair_titles({name: METHODS[name] for name in ("dist_cam", "grad_cam_cosine")}, "neck")
        {'dist_cam': 'Dist-CAM', 'grad_cam_cosine': 'Grad-CAM, cosine, after the neck'}
    """
    return {
        name: method.title + (_WORDS.get(space, "") if name in _SEARCHED else "") for name, method in methods.items()
    }


PairMaps = Callable[[AnyArray, AnyArray, AnyArray, AnyArray | None], dict[str, Array]]


def bind_pairs(
    methods: Mapping[str, Method],
    network: Network,
    *,
    space: str = "embedding",
    whitening: Float[np.ndarray, "k k"] | None = None,
) -> PairMaps:
    """One function from images and their references to the heatmaps of all methods, compiled for the devices.

    The Mahalanobis distance is explained against rivals (see `distcam_jax.mahalanobis`). Here they are the images of
    the gallery, each a class of its own, near ones counting more, whatever class they are of: `rival_means`. So the
    map says what speaks for the reference and not for the images beside it in the list, and no label is looked at.

    Args:
        methods: of `choose_methods`, some of `PAIR_METHODS`.
        network: whose features they explain.
        space: that is searched.
        whitening: of `within_class_precision`, where a method needs it.

    Returns:
        A function of pre-pool features `[b, h, w, k]`, references `[b, m, k]`, the pooled features of the gallery
        `[g, k]`, and where each image stands in it itself `[b]`, or None where none does, to `{name: maps [b, m, h,
        w]}` on the devices, in the order of `methods`. b divides evenly over them.
    """
    given = {"head": search_head(network, space), "whitening": whitening}

    def local(features, references, own, given):
        found = {}
        for name, method in methods.items():
            if name == "mahalanobis":
                rivals = rival_means(global_average_pool(features), given["gallery"], own)
                weights = jnp.matmul(references - rivals[:, None], given["whitening"], precision=HIGHEST)
                found[name] = weighted_channel_sum(features[:, None], weights)
            elif name in _SEARCHED and given["head"] is not None:
                found[name] = _through_head(_SEARCHED[name], features, references, given["head"])
            else:
                classes = jnp.arange(references.shape[0] * references.shape[1]).reshape(references.shape[:2])
                found[name] = method(features, Context(classes, references.reshape(-1, references.shape[-1])))
        return found

    batch, whole = PartitionSpec("data"), PartitionSpec()
    specs = (batch, batch, batch, whole)
    compiled = jax.jit(jax.shard_map(local, mesh=network.mesh, in_specs=specs, out_specs=batch, check_vma=False))

    def maps(features, references, gallery, own) -> dict[str, Array]:
        rivals = {"gallery": gallery if "mahalanobis" in methods else None}
        values = compiled(features, references, own, given | rivals)
        return {name: values[name] for name in methods}  # jit sorts a dict by name

    return maps


def _through_head(map_of, features, references, head):
    """Maps `[b, m, h, w]` from a function of an image `[h, w, k]`, its reference `[k]`, kernel and bias."""

    def of_image(given):
        image, rows = given
        return jax.vmap(lambda reference: map_of(image, reference, *head))(rows)

    return jax.lax.map(of_image, (features.astype(references.dtype), references))


def _gradient(image, reference, kernel, bias, *, method, metric):
    def searched(pooled):
        return jnp.matmul(pooled, kernel, precision=HIGHEST) + bias

    wanted = searched(reference)
    return method(image, lambda features: similarity(searched(global_average_pool(features)), wanted, metric=metric))


def _decomposition(image, reference, kernel, bias, *, metric):
    return similarity_map(image, reference, metric=metric, kernel=kernel, bias=bias)


# The methods that explain a similarity, which may be one of the features after the head.
_SEARCHED: dict[str, Callable] = {
    "grad_cam_l1": functools.partial(_gradient, method=grad_cam, metric="l1"),
    "grad_cam_l2": functools.partial(_gradient, method=grad_cam, metric="l2"),
    "grad_cam_cosine": functools.partial(_gradient, method=grad_cam, metric="cosine"),
    "grad_cam_pp_cosine": functools.partial(_gradient, method=grad_cam_pp, metric="cosine"),
    "decomposition_cosine": functools.partial(_decomposition, metric="cosine"),
    "decomposition_l2": functools.partial(_decomposition, metric="l2"),
}


@jax.jit
def rival_means(
    embeddings: Float[AnyArray, "b k"], gallery: Float[AnyArray, "g k"], own: Int[AnyArray, " b"] | None = None
) -> Float[Array, "b k"]:
    """What Mahalanobis CAM sets each image's reference against: the gallery's mean, near images counting more. Jitted.

    Args:
        embeddings: pooled features `[b, k]`.
        gallery: those that are searched `[g, k]`.
        own: where each image stands in the gallery itself `[b]`, which is no rival of its own; None where none does.

    Returns:
        `Σ_g π_g P^g` `[b, k]`, with `π` of `rival_probabilities` at the temperature of Mahalanobis CAM.

    Examples:
        >>> rival_means(np.array([[1.0]]), np.array([[1.0], [0.0], [2.0]]), np.array([0])).tolist()  # both as near
        [[1.0]]
    """
    embeddings, gallery = jnp.asarray(embeddings, jnp.float32), jnp.asarray(gallery, jnp.float32)
    near = functools.partial(rival_probabilities, temperature=DEFAULT_TEMPERATURE)
    distances = difference_distances(embeddings, gallery, "l1").T

    def without(distances, row):
        others = jnp.arange(len(gallery) - 1, dtype=row.dtype)
        others = others + (others >= row).astype(row.dtype)
        return jnp.zeros_like(distances).at[others].set(near(distances[others]))

    weights = near(distances) if own is None else jax.vmap(without)(distances, jnp.asarray(own))
    return jnp.matmul(weights, gallery, precision=HIGHEST)
