"""Heatmaps of a batch for the classes it is asked about, each function `(features, context) -> heatmaps`. All jitted.

Images are taken a block at a time, as each has weights `[m, k]` of its own; contrastive weights take `[c, k]` for each.
Where a batch is sharded over devices, call them inside `jax.shard_map`, as the loop runs along that axis.

All but `uniform_maps` and `energy_maps` raise `ValueError` where shapes or types do not fit, where the context lacks
what they need, and on options that are not listed.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from distcam_jax.cam import HIGHEST, _in_blocks, global_average_pool, reciprocal_weights
from distcam_jax.losses.arguments import check_positive
from distcam_jax.methods.context import Context, working_context
from distcam_jax.methods.decomposition import similarity_map
from distcam_jax.methods.gradients import grad_cam_pp_weights, gradient_maps
from distcam_jax.methods.similarities import CHANNEL_DISTANCES, SIMILARITIES, AnyArray, chosen

# What a heatmap compares an image with: the field of the context for each choice.
REFERENCES = {"prototypes": "prototypes", "neighbors": "neighbors"}
SCORES = {"class": "class_weights"} | dict.fromkeys(SIMILARITIES, "prototypes")


@functools.partial(jax.jit, static_argnames=("precision",))
def cam_maps(
    features: Float[AnyArray, "b h w k"], context: Context, *, precision: lax.PrecisionLike = HIGHEST
) -> Float[Array, "b m h w"]:
    """CAM of the asked classes, Eq. (3), see `distcam_jax.cam`. Needs class_weights.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked.
        precision: of the product.

    Returns:
        Maps `[b, m, h, w]` of either sign.

    Examples:
        >>> context = Context(np.array([[1, 0]]), np.eye(2), class_weights=np.array([[1.0, 0.0], [0.0, -2.0]]))
        >>> cam_maps(np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context).tolist()
        [[[[-16.0, 0.0]], [[1.0, 3.0]]]]
    """

    def maps_of(image, rows, context):
        return weighted(image, rows, precision)

    return each_image("cam_maps", features, context, "class_weights", maps_of)


@functools.partial(jax.jit, static_argnames=("distance", "reference", "norm", "eps", "precision"))
def dist_cam_maps(
    features: Float[AnyArray, "b h w k"],
    context: Context,
    *,
    distance: str = "l1",
    reference: str = "prototypes",
    norm: str = "sum",
    eps: float = 0.1,
    precision: lax.PrecisionLike = HIGHEST,
) -> Float[Array, "b m h w"]:
    """Dist-CAM of the asked classes, Eq. (4) to (6), see `distcam_jax.dist_cam`.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked.
        distance: of a channel of the pooled features x and y. `"l1"`, `|x_k − y_k|`, is the paper's Eq. (4). `"l2"`,
            `(x_k − y_k)²`, and `"cosine"`, half of that of the vectors divided by their lengths, are for models that
            search with those: over k they sum to the squared L2 distance and to 1 − cosine.
        reference: what an image is compared with: `"prototypes"`, or `"neighbors"`, which it then needs.
        norm: how weights are normalised, see `distcam_jax.reciprocal_weights`.
        eps: share of the mean distance added to each, see there.
        precision: of the product.

    Returns:
        Maps `[b, m, h, w]` in the unit of the features.

    Examples:
        >>> context = Context(np.array([[1]]), np.array([[2.0, 0.0], [6.0, 4.0]]))  # the pooled feature is 2, 4
        >>> dist_cam_maps(np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context, norm="max", eps=2.0).tolist()
        [[[[8.5, 1.5]]]]
    """
    measure, field = chosen(CHANNEL_DISTANCES, distance=distance), chosen(REFERENCES, reference=reference)

    def maps_of(image, rows, context):
        distances = measure(global_average_pool(image), rows)
        return weighted(image, reciprocal_weights(distances, norm=norm, eps=eps), precision)

    return each_image("dist_cam_maps", features, context, field, maps_of)


@functools.partial(jax.jit, static_argnames=("distance", "precision"))
def contrastive_maps(
    features: Float[AnyArray, "b h w k"],
    context: Context,
    *,
    distance: str = "l1",
    precision: lax.PrecisionLike = HIGHEST,
) -> Float[Array, "b m h w"]:
    """Contrastive Dist-CAM of the asked classes against the mean of all, see `distcam_jax.contrastive_dist_cam`.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked; its prototypes must leave out classes without samples.
        distance: of a channel, see `dist_cam_maps`.
        precision: of the product.

    Returns:
        Maps `[b, m, h, w]` of either sign.

    Examples:
        >>> context = Context(np.array([[1]]), np.array([[2.0, 0.0], [6.0, 4.0]]))  # the pooled feature is 2, 4
        >>> contrastive_maps(np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context).tolist()
        [[[[14.0, -6.0]]]]
    """
    measure = chosen(CHANNEL_DISTANCES, distance=distance)

    def maps_of(image, rows, context):
        pooled = global_average_pool(image)
        mean = jnp.mean(measure(pooled, context.prototypes), axis=0)
        return weighted(image, mean - measure(pooled, rows), precision)

    return each_image("contrastive_maps", features, context, "prototypes", maps_of, np.size(context.prototypes))


@jax.jit
def uniform_maps(features: Float[AnyArray, "b h w k"], context: Context) -> Float[Array, "b m h w"]:
    """The sum of all channels, `Σ_k Q_k`, the same for every class: what any method must beat.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked.

    Returns:
        Maps `[b, m, h, w]`.

    Raises:
        ValueError: shapes or types do not fit.

    Examples:
        >>> context = Context(np.array([[1]]), np.eye(2))
        >>> uniform_maps(np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context).tolist()
        [[[[9.0, 3.0]]]]
    """
    features, context = working_context(features, context)
    return _for_every_class(jnp.sum(features, axis=-1), context)


@jax.jit
def energy_maps(features: Float[AnyArray, "b h w k"], context: Context) -> Float[Array, "b m h w"]:
    """The energy of the features, `Σ_k Q_k²`, the same for every class.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked.

    Returns:
        Maps `[b, m, h, w]` in the squared unit of the features.

    Raises:
        ValueError: shapes or types do not fit.

    Examples:
        >>> context = Context(np.array([[1]]), np.eye(2))
        >>> energy_maps(np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context).tolist()
        [[[[65.0, 9.0]]]]
    """
    features, context = working_context(features, context)
    return _for_every_class(jnp.sum(jnp.square(features), axis=-1), context)


@functools.partial(jax.jit, static_argnames=("score", "precision"))
def grad_cam_maps(
    features: Float[AnyArray, "b h w k"],
    context: Context,
    *,
    score: str = "class",
    precision: lax.PrecisionLike = HIGHEST,
) -> Float[Array, "b m h w"]:
    """Grad-CAM at the last features, see `grad_cam`, without an array of gradients `[b, m, h, w, k]`.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked.
        score: `"class"`, the linear layer's score, which needs class_weights; or `"l1"`, `"l2"` or `"cosine"`, the
            similarity of the pooled features to the class's prototype, see `similarity_score`.
        precision: of the product.

    Returns:
        Maps `[b, m, h, w]`, not negative; of the class score they are those of CAM, cut off at 0 and divided by h w.

    References:
        Selvaraju et al., ICCV 2017, see `grad_cam`.
        Bachhawat, Generalizing GradCAM for Embedding Networks, 2024 (arXiv:2402.00909), scores an embedding of unit
        length by its product with a class's proxy: for a proxy of the prototype's direction that is `"cosine"`.

    Examples:
        >>> context = Context(np.array([[1]]), np.array([[2.0, 0.0], [6.0, 1.0]]))  # the pooled feature is 2, 4
        >>> grad_cam_maps(np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context, score="l1").tolist()
        [[[[0.0, 1.5]]]]
    """

    def maps_of(image, rows, context):
        return gradient_maps(image, _place_gradients(image, rows, score), precision)

    return each_image("grad_cam_maps", features, context, chosen(SCORES, score=score), maps_of)


@functools.partial(jax.jit, static_argnames=("score", "eps", "precision"))
def grad_cam_pp_maps(
    features: Float[AnyArray, "b h w k"],
    context: Context,
    *,
    score: str = "class",
    eps: float | int = 1e-6,
    precision: lax.PrecisionLike = HIGHEST,
) -> Float[Array, "b m h w"]:
    """Grad-CAM++ at the last features, see `grad_cam_pp`, without an array of gradients `[b, m, h, w, k]`.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked.
        score: see `grad_cam_maps`.
        eps: see `grad_cam_pp`.
        precision: of the product.

    Returns:
        Maps `[b, m, h, w]`, not negative.

    Examples:
        >>> context = Context(np.array([[0]]), np.eye(2), class_weights=np.array([[1.0, -1.0], [0.0, 0.0]]))
        >>> grad_cam_pp_maps(np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context).tolist()
        [[[[0.25, 0.75]]]]
    """
    check_positive(eps=eps)

    def maps_of(image, rows, context):
        gradients = _place_gradients(image, rows, score)[:, None, None, :]
        return gradient_maps(image, grad_cam_pp_weights(image, gradients, eps), precision)

    return each_image("grad_cam_pp_maps", features, context, chosen(SCORES, score=score), maps_of)


@functools.partial(jax.jit, static_argnames=("precision",))
def transfer_maps(
    features: Float[AnyArray, "b h w k"], context: Context, *, precision: lax.PrecisionLike = HIGHEST
) -> Float[Array, "b m h w"]:
    """Grad-CAM with gradient weights of training samples, see `transferred_weights`. Needs transferred.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked.
        precision: of the product.

    Returns:
        Maps `[b, m, h, w]`, not negative.

    References:
        Chen, Chen, Hajimirsadeghi, Mori, Adapting Grad-CAM for Embedding Networks, WACV 2020 (arXiv:2001.06538).

    Examples:
        >>> context = Context(np.array([[1]]), np.eye(2), transferred=np.array([[[1.0, -1.0]]]))
        >>> transfer_maps(np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context).tolist()
        [[[[0.0, 3.0]]]]
    """

    def maps_of(image, rows, context):
        return gradient_maps(image, rows, precision)

    return each_image("transfer_maps", features, context, "transferred", maps_of)


@functools.partial(jax.jit, static_argnames=("metric",))
def decomposition_maps(
    features: Float[AnyArray, "b h w k"], context: Context, *, metric: str = "cosine"
) -> Float[Array, "b m h w"]:
    """What every place contributes to the similarity to the asked classes' prototypes, see `similarity_map`.

    Args:
        features: feature maps `[b, h, w, k]`.
        context: what is asked.
        metric: `"cosine"`, or `"l2"` for the negative squared L2 distance.

    Returns:
        Maps `[b, m, h, w]` of either sign, which sum to the similarity.

    Examples:
        >>> context = Context(np.array([[0]]), np.array([[0.0, 7.0]]))
        >>> decomposition_maps(np.array([[[[1.0, 0.0], [2.0, 4.0]]]]), context).tolist()
        [[[[0.0, 0.800000011920929]]]]
    """

    def maps_of(image, rows, context):
        return similarity_map(image, rows, metric=metric)

    return each_image("decomposition_maps", features, context, "prototypes", maps_of)


def each_image(
    caller: str,
    features: Float[AnyArray, "b h w k"],
    context: Context,
    field: str,
    maps_of: Callable[[Array, Array, Context], Array],
    elements: int = 0,
) -> Float[Array, "b m h w"]:
    """Heatmaps of a batch, where a function makes those of one image; what a method is made of.

    Args:
        caller: named where the context lacks the field.
        features: feature maps `[b, h, w, k]`.
        context: what is asked.
        field: of the context, whose rows `[m, k]` stand for the asked classes; NaN for a class that does not exist.
        maps_of: makes maps `[m, h, w]` of an image `[h, w, k]`, those rows and the context, all of one floating type.
        elements: how many more numbers than these it holds for an image.

    Returns:
        Maps `[b, m, h, w]`, of as many images at once as suit the back end.

    Raises:
        ValueError: shapes or types do not fit, the context lacks the field.

    Examples:
        >>> context = Context(np.array([[1]]), np.array([[2.0, 0.0], [1.0, -0.5]]))
        >>> features = np.array([[[[1.0, 8.0], [3.0, 0.0]]]])
        >>> each_image("f", features, context, "prototypes", lambda image, rows, _: weighted(image, rows)).tolist()
        [[[[-3.0, 3.0]]]]
    """
    context.require([field], caller)
    features, context = working_context(features, context)
    array = getattr(context, field)
    by_class = array.ndim == 2

    @jax.checkpoint  # when differentiated, each block finds its weights again rather than keep [b, m, k]
    def image_maps(image, given):
        return maps_of(image, _rows(array, given) if by_class else given, context)

    of_one = features[0].size if len(features) else 1
    item_bytes = (of_one + context.classes.shape[1] * features.shape[-1] + elements) * features.dtype.itemsize
    return _in_blocks(image_maps, (features, context.classes if by_class else array), item_bytes, None)


def _rows(array, classes):
    inside = (classes >= 0) & (classes < len(array))
    return jnp.where(inside[:, None], array[jnp.where(inside, classes, 0)], jnp.nan)


def weighted(
    image: Float[Array, "h w k"], weights: Float[Array, "m k"], precision: lax.PrecisionLike = HIGHEST
) -> Float[Array, "m h w"]:
    """Maps of one image from several weightings of its channels, `Σ_k W_k Q_k`, Eq. (6).

    Examples:
        >>> weighted(jnp.array([[[1.0, 8.0], [3.0, 0.0]]]), jnp.array([[1.0, -0.5]])).tolist()
        [[[-3.0, 3.0]]]
    """
    return jnp.einsum("hwk,mk->mhw", image, weights, precision=precision)


def _place_gradients(image, rows, score):
    """The gradient `[m, k]` of each score at any place of the image: scores are of pooled features."""
    places = image.shape[0] * image.shape[1]
    if score == "class":
        return rows / places
    return jax.vmap(jax.grad(SIMILARITIES[score]), in_axes=(None, 0))(global_average_pool(image), rows) / places


def _for_every_class(maps, context):
    return jnp.broadcast_to(maps[:, None], (*context.classes.shape, *maps.shape[1:]))
