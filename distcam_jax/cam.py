"""Class activation maps from distances: Eq. 2 to 7 of Dist-CAM, one function an equation.

Features are channels last, `[..., h, w, k]`; leading `...` is any number of batch axes, which may be empty. Arrays may
be NumPy or JAX arrays of any floating type. Computation and results are float32 whatever comes in, so bfloat16 features
accumulate in float32; float64 stays float64 where JAX's 64-bit mode is on. Every function works under `jit`, `vmap` and
`grad`.

Ranks, sizes (h, w, c and k at least 1) and types that do not fit raise `ValueError`; values cannot be checked in `jit`.
Finite input whose sums over h·w and over k fit the type gives finite maps and gradients; an image with a NaN spoils its
own maps alone.

Products run at the highest precision: by default float32 would be rounded to TF32 on a GPU and to bfloat16 on a TPU,
and maps change. Pass `precision` to trade that for speed.
"""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from distcam_jax.checks import check_positive_integers, integer_labels, working_arrays

AnyArray = Array | np.ndarray
HIGHEST = lax.Precision.HIGHEST

# What the weights [c, k] of the images computed at once may fill: a processor wants them to stay in its cache, an
# accelerator wants enough work at a time.
CPU_BLOCK_BYTES = 8 * 2**20
ACCELERATOR_BLOCK_BYTES = 256 * 2**20


def global_average_pool(features: Float[AnyArray, "*b h w k"]) -> Float[Array, "*b k"]:
    """Mean of every channel over the image, the GAP of Eq. (2) and Eq. (4).

    Args:
        features: feature maps `[..., h, w, k]`.

    Returns:
        Pooled features `[..., k]`.

    Examples:
        >>> global_average_pool(np.array([[[1.0, 8.0], [3.0, 0.0]]])).tolist()
        [2.0, 4.0]
    """
    (features,) = working_arrays(features=(features, "... h w k"))
    return jnp.mean(features, axis=(-3, -2))


def channel_distances(query: Float[AnyArray, "... k"], reference: Float[AnyArray, "... k"]) -> Float[Array, "... k"]:
    """Distance of two pooled features in every channel, `D_k = |GAP(S)_k − GAP(Q)_k|`, Eq. (4).

    Args:
        query: pooled features `[..., k]`.
        reference: pooled features or prototypes `[..., k]`; leading axes broadcast against the query's.

    Returns:
        Distances `[..., k]`, not negative, in the unit of the features.

    Examples:
        >>> channel_distances(np.array([1.0, 5.0]), np.array([[1.0, 2.0], [3.0, 6.0]])).tolist()
        [[0.0, 3.0], [2.0, 1.0]]
    """
    query, reference = working_arrays(query=(query, "... k"), reference=(reference, "... k"))
    return jnp.abs(reference - query)


def reciprocal_weights(
    distances: Float[AnyArray, "*b k"], *, norm: str = "sum", eps: float = 0.1
) -> Float[Array, "*b k"]:
    """Weights that fall with the distance, `W = norm(1 / (D / mean_k D + eps))`, Eq. (5).

    The paper's `1 / D` blows up where two channels agree by chance and leaves a handful of channels in effect. So the
    share `eps` of the mean distance is added. It is relative, to keep weights independent of the features' unit;
    `eps=1e-6` is the literal Eq. (5).

    Args:
        distances: channel distances `[..., k]`, not negative.
        norm: `"sum"`, Σ_k W = 1; `"l2"`, Σ_k W² = 1; `"max"`, the greatest is 1; `"minmax"`, from 0 to 1. The first
            three give the same picture once a heatmap is scaled, `"minmax"` does not.
        eps: positive. Below 1e-12 it acts as 1e-12, above 1e12 as 1e12.

    Returns:
        Weights `[..., k]`. Where all distances are equal, or zero: 1/k, 1/√k, 1 and 1.

    Raises:
        ValueError: the shape or type does not fit, an unknown norm, eps not positive or not finite.

    Examples:
        >>> reciprocal_weights(np.array([1.0, 3.0]), norm="max", eps=0.5).tolist()  # from 1 / 1 and 1 / 2
        [1.0, 0.5]
    """
    (distances,) = working_arrays(distances=(distances, "... k"))
    if norm not in NORMS:
        raise ValueError(f"norm: want one of {', '.join(map(repr, NORMS))}, got {norm!r}")
    if not isinstance(eps, float | int | np.floating | np.integer) or not 0 < eps < math.inf:
        raise ValueError(f"eps: want a positive finite number, got {eps!r}")
    mean = jnp.mean(distances, axis=-1, keepdims=True)
    zero = mean < jnp.finfo(mean.dtype).tiny
    # W does not depend on the unit of D, so the mean may be a constant unit, with its derivative in the numerator only:
    # that of a quotient holds 1 / mean², which leaves float32 where distances are below 1e-19 or above 1e19.
    unit = lax.stop_gradient(jnp.where(zero, 1, mean))
    share = min(max(float(eps), 1e-12), 1e12) * jnp.where(zero, 1, mean / unit)
    return NORMS[norm](1 / (distances / unit + share))


def contrastive_weights(distances: Float[AnyArray, "*b c k"]) -> Float[Array, "*b c k"]:
    """Weights of contrastive Dist-CAM, `w_k^c = mean_{c'} D_k^{c'} − D_k^c`, an extension of the paper.

    A channel counts for a class as far as it is nearer to that class than to all classes on average. Summed over k the
    weights give the class's margin, `mean_{c'} dist^{c'} − dist^c` with `dist^c = Σ_k D_k^c`.

    Args:
        distances: distances `[..., c, k]` of a query to every class.

    Returns:
        Weights `[..., c, k]` of either sign, in the unit of the distances; over c they sum to 0.

    Examples:
        >>> contrastive_weights(np.array([[0.0, 4.0], [2.0, 2.0]])).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    (distances,) = working_arrays(distances=(distances, "... c k"))
    return jnp.mean(distances, axis=-2, keepdims=True) - distances


def weighted_channel_sum(
    features: Float[AnyArray, "... h w k"], weights: Float[AnyArray, "... k"], *, precision: lax.PrecisionLike = HIGHEST
) -> Float[Array, "... h w"]:
    """One map from one weight a channel, `M = Σ_k W_k Q_k`, the sum in Eq. (3) and Eq. (6). No ReLU follows.

    Args:
        features: feature maps `[..., h, w, k]`.
        weights: weights `[..., k]`; leading axes broadcast against those of the features.
        precision: of the product.

    Returns:
        Maps `[..., h, w]`.

    Examples:
        >>> weighted_channel_sum(np.array([[[1.0, 8.0], [3.0, 0.0]]]), np.array([1.0, 0.5])).tolist()
        [[5.0, 3.0]]
    """
    features, weights = working_arrays(features=(features, "... h w k"), weights=(weights, "... k"))
    return jnp.einsum("...hwk,...k->...hw", features, weights, precision=precision)


def cam(
    features: Float[AnyArray, "*b h w k"],
    class_weights: Float[AnyArray, "c k"],
    *,
    precision: lax.PrecisionLike = HIGHEST,
) -> Float[Array, "*b c h w"]:
    """Class activation maps of a softmax model, `M^c = Σ_k w_k^c Q_k`, Eq. (3); their mean is Eq. (2)'s class score.

    Args:
        features: feature maps `[..., h, w, k]`.
        class_weights: weights of the last linear layer `[c, k]`.
        precision: of the product.

    Returns:
        Maps `[..., c, h, w]`.

    References:
        Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016.

    Examples:
        >>> cam(np.array([[[1.0, 8.0], [3.0, 0.0]]]), np.array([[1.0, 0.5], [-1.0, 0.0]])).tolist()
        [[[5.0, 3.0]], [[-1.0, -3.0]]]
    """
    features, class_weights = working_arrays(features=(features, "... h w k"), class_weights=(class_weights, "c k"))
    return jnp.einsum("...hwk,ck->...chw", features, class_weights, precision=precision)


@functools.partial(jax.jit, static_argnames=("norm", "eps", "precision", "batch_size"))
def dist_cam(
    features: Float[AnyArray, "*b h w k"],
    prototypes: Float[AnyArray, "c k"],
    *,
    norm: str = "sum",
    eps: float = 0.1,
    precision: lax.PrecisionLike = HIGHEST,
    batch_size: int | None = None,
) -> Float[Array, "*b c h w"]:
    """Dist-CAM of every image for every class, `M^c = Σ_k W_k^c Q_k`, Eq. (6). Jitted.

    Every image has weights `[c, k]` of its own, so images are taken a block at a time and memory does not grow with the
    batch. Where the batch is sharded over devices, call this inside `jax.shard_map`, as the loop runs along that axis.

    Args:
        features: feature maps `[..., h, w, k]`.
        prototypes: mean pooled feature of every class `[c, k]`, as from `class_prototypes`.
        norm: how weights are normalised, see `reciprocal_weights`.
        eps: share of the mean distance added to each, see `reciprocal_weights`.
        precision: of the product.
        batch_size: images computed at once; None chooses by the back end and the size of the weights.

    Returns:
        Maps `[..., c, h, w]` in the unit of the features.

    Raises:
        ValueError: shapes or types do not fit, an unknown norm, eps not positive or not finite, batch_size below 1.

    Examples:
        >>> prototypes = np.array([[2.0, 0.0], [6.0, 4.0]])  # the image's pooled feature is 2, 4
        >>> dist_cam(np.array([[[1.0, 8.0], [3.0, 0.0]]]), prototypes, norm="max", eps=2.0).tolist()
        [[[5.0, 3.0]], [[8.5, 1.5]]]
    """
    weigh = functools.partial(reciprocal_weights, norm=norm, eps=eps)
    return _class_maps(features, prototypes, lambda *pair: weigh(channel_distances(*pair)), precision, batch_size)


@functools.partial(jax.jit, static_argnames=("norm", "eps", "precision"))
def dist_cam_pairs(
    features: Float[AnyArray, "... h w k"],
    references: Float[AnyArray, "... k"],
    *,
    norm: str = "sum",
    eps: float = 0.1,
    precision: lax.PrecisionLike = HIGHEST,
) -> Float[Array, "... h w"]:
    """Dist-CAM of every image for one reference of its own, Eq. (6): its neighbour, match or predicted class. Jitted.

    Args:
        features: feature maps `[..., h, w, k]`.
        references: pooled features or prototypes `[..., k]`; leading axes broadcast against those of the features.
        norm: how weights are normalised, see `reciprocal_weights`.
        eps: share of the mean distance added to each, see `reciprocal_weights`.
        precision: of the product.

    Returns:
        Maps `[..., h, w]` in the unit of the features.

    Raises:
        ValueError: shapes or types do not fit, an unknown norm, eps not positive or not finite.

    Examples:
        >>> features = np.array([[[1.0, 8.0], [3.0, 0.0]]])
        >>> dist_cam_pairs(features, np.array([6.0, 4.0]), norm="max", eps=2.0).tolist()
        [[8.5, 1.5]]
    """
    features, references = working_arrays(features=(features, "... h w k"), references=(references, "... k"))
    distances = channel_distances(global_average_pool(features), references)
    return weighted_channel_sum(features, reciprocal_weights(distances, norm=norm, eps=eps), precision=precision)


@functools.partial(jax.jit, static_argnames=("precision", "batch_size"))
def contrastive_dist_cam(
    features: Float[AnyArray, "*b h w k"],
    prototypes: Float[AnyArray, "c k"],
    *,
    precision: lax.PrecisionLike = HIGHEST,
    batch_size: int | None = None,
) -> Float[Array, "*b c h w"]:
    """Contrastive Dist-CAM of every image for every class: Eq. (6) with `contrastive_weights`. Jitted.

    An extension of the paper: plain Dist-CAM hardly depends on the class it is asked about, this form does.

    Args:
        features: feature maps `[..., h, w, k]`.
        prototypes: mean pooled feature of every class `[c, k]`; leave out classes without samples.
        precision: of the product.
        batch_size: images computed at once; None chooses by the back end and the size of the weights.

    Returns:
        Maps `[..., c, h, w]` of either sign in the squared unit of the features; over c they sum to 0.

    Raises:
        ValueError: shapes or types do not fit, batch_size below 1.

    Examples:
        >>> prototypes = np.array([[2.0, 0.0], [6.0, 4.0]])  # the image's pooled feature is 2, 4
        >>> contrastive_dist_cam(np.array([[[1.0, 8.0], [3.0, 0.0]]]), prototypes).tolist()
        [[[-14.0, 6.0]], [[14.0, -6.0]]]
    """
    weigh = contrastive_weights
    return _class_maps(features, prototypes, lambda *pair: weigh(channel_distances(*pair)), precision, batch_size)


def class_prototypes(
    embeddings: Float[AnyArray, "n k"], labels: Integer[AnyArray, "n"], num_classes: int
) -> tuple[Float[Array, "c k"], Int[Array, "c"]]:
    """Mean pooled feature of every class, Eq. (7). Pooling is linear, so vectors are averaged and maps never stored.

    Args:
        embeddings: pooled features `[n, k]` of the training samples.
        labels: class of each sample `[n]`. Samples labelled below 0, or num_classes and above, are dropped.
        num_classes: number of classes c, a Python integer.

    Returns:
        Prototypes `[c, k]` and counts of samples `[c]`, prototype 0 and count 0 where a class has none: leave it out.

    Raises:
        ValueError: shapes or types do not fit, num_classes below 1.

    Examples:
        >>> prototypes, counts = class_prototypes(np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([1, 1]), 2)
        >>> prototypes.tolist(), counts.tolist()
        ([[0.0, 0.0], [2.0, 4.0]], [0, 2])
    """
    (embeddings,) = working_arrays(embeddings=(embeddings, "n k"))
    labels = integer_labels(labels, len(embeddings))
    check_positive_integers(num_classes=num_classes)
    labels = labels.astype(jnp.int32)
    labels = jnp.where(labels < 0, num_classes, labels)  # a negative index would count from the end
    counts = jnp.zeros(num_classes, jnp.int32).at[labels].add(1, mode="drop")
    sums = jnp.zeros((num_classes, embeddings.shape[1]), embeddings.dtype).at[labels].add(embeddings, mode="drop")
    return sums / jnp.maximum(counts, 1).astype(sums.dtype)[:, None], counts


@functools.partial(jax.jit, static_argnames=("batch_size",))
def nearest_prototype(
    embeddings: Float[AnyArray, "*b k"],
    prototypes: Float[AnyArray, "c k"],
    *,
    counts: Integer[AnyArray, "c"] | None = None,
    batch_size: int | None = None,
) -> tuple[Int[Array, "*b"], Float[Array, "*b c"]]:
    """The prediction: the class with the smallest L1 distance `Σ_k D_k^c`, with the distances of Eq. (4). Jitted.

    Args:
        embeddings: pooled features `[..., k]`, taken a block at a time so that `[n, c, k]` is never held.
        prototypes: mean pooled feature of every class `[c, k]`.
        counts: samples of each class `[c]`; given, classes with none are infinitely far and not just at zero.
        batch_size: embeddings computed at once; None chooses by the back end and the size of the prototypes.

    Returns:
        Labels `[...]`, the lowest of equally near ones, and distances `[..., c]`.

    Raises:
        ValueError: shapes or types do not fit, batch_size below 1.

    Examples:
        >>> labels, distances = nearest_prototype(np.array([[1.0, 2.0]]), np.array([[4.0, 2.0], [2.0, 1.0]]))
        >>> labels.tolist(), distances.tolist()
        ([1], [[3.0, 2.0]])
    """
    embeddings, prototypes = working_arrays(embeddings=(embeddings, "... k"), prototypes=(prototypes, "c k"))
    if counts is not None and counts.shape != prototypes.shape[:1]:
        raise ValueError(f"counts: want shape {prototypes.shape[:1]}, one a prototype, got {counts.shape}")
    *batch, channels = embeddings.shape

    def distances_to_all(embedding):
        return jnp.sum(channel_distances(embedding, prototypes), axis=-1)

    flat = embeddings.reshape(math.prod(batch), channels)
    distances = _in_blocks(distances_to_all, (flat,), prototypes.nbytes, batch_size).reshape(*batch, len(prototypes))
    if counts is not None:
        distances = jnp.where(counts > 0, distances, jnp.inf)
    return jnp.argmin(distances, axis=-1), distances


def _class_maps(features, prototypes, weigh, precision, batch_size):
    """Maps `[..., c, h, w]`; `weigh` makes an image's weights `[c, k]` of its pooled feature and the prototypes."""
    features, prototypes = working_arrays(features=(features, "... h w k"), prototypes=(prototypes, "c k"))
    *batch, height, width, channels = features.shape
    images = features.reshape(math.prod(batch), height * width, channels)

    @jax.checkpoint  # when differentiated, each block finds its weights again rather than keep [n, c, k]
    def maps_of(image, pooled):
        weights = weigh(pooled, prototypes)
        # Classes last: a processor computes features · weightsᵀ 1.5 times as fast as its transpose.
        return jnp.einsum("pk,ck->pc", image, weights, precision=precision)

    pooled = global_average_pool(features).reshape(len(images), channels)
    maps = _in_blocks(maps_of, (images, pooled), prototypes.nbytes, batch_size)
    return jnp.swapaxes(maps, 1, 2).reshape(*batch, len(prototypes), height, width)


def _in_blocks(function: Callable, arrays: tuple, item_bytes: int, batch_size: int | None):
    """Applies a function along the first axis, to `batch_size` items at once or as many as suit the back end."""
    if batch_size is None:
        block_bytes = CPU_BLOCK_BYTES if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK_BYTES
        batch_size = max(1, block_bytes // item_bytes)
    check_positive_integers(batch_size=batch_size)
    if len(arrays[0]) <= batch_size:
        return jax.vmap(function)(*arrays)
    return lax.map(lambda items: function(*items), arrays, batch_size=batch_size if batch_size > 1 else None)


def _minmax(weights):
    low, high = jnp.min(weights, axis=-1, keepdims=True), jnp.max(weights, axis=-1, keepdims=True)
    constant = low == high
    return jnp.where(constant, 1, (weights - low) / jnp.where(constant, 1, high - low))


# Weights arrive here between 1e-12 and 1e12: no sum or square, nor a derivative's, is zero or overflows.
NORMS: dict[str, Callable] = {
    "sum": lambda weights: weights / jnp.sum(weights, axis=-1, keepdims=True),
    "l2": lambda weights: weights / jnp.linalg.norm(weights, axis=-1, keepdims=True),
    "max": lambda weights: weights / jnp.max(weights, axis=-1, keepdims=True),
    "minmax": _minmax,
}
