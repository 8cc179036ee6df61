"""Exact decomposition of a similarity into what each place of an image, or each pair of places, contributes.

An embedding that is the mean of the features over the image, `x = Kᵀ GAP(Q) + bias`, is the mean of an embedding of
every place, `e_i = Kᵀ Q_i + bias`: pooling and a linear head commute. So a similarity of two such embeddings is a sum
over pairs of places, without remainder. Nonlinear heads, and batch-norm in training mode, do not decompose; batch-norm
in evaluation mode is linear and may be folded into kernel and bias.

References:
    Stylianou, Souvenir, Pless, Visualizing Deep Similarity Networks, WACV 2019: the cosine of two average-pooled
    features, spread over the places of one image.
    Zhu, Yang, Chen, Visual Explanation for Deep Metric Learning, IEEE Transactions on Image Processing 30, 2021
    (arXiv:1909.12977): over pairs of places, and through a linear head.
"""

import math

from jax import numpy as jnp
from jaxtyping import Array, Float

from distcam_jax.cam import HIGHEST
from distcam_jax.checks import working_arrays
from distcam_jax.methods.similarities import AnyArray, chosen, inverse_length, magnitude


def similarity_decomposition(
    query: Float[AnyArray, "... h w k"],
    reference: Float[AnyArray, "... h2 w2 k"],
    *,
    metric: str = "cosine",
    kernel: Float[AnyArray, "k d"] | None = None,
    bias: Float[AnyArray, "d"] | None = None,
) -> Float[Array, "... h w h2 w2"]:
    """What every place of one image together with every place of another contributes to their similarity.

    With `e_i`, `e'_j` the embeddings of n and n' places, and x, x' their means, the images' embeddings:

    * `"cosine"`: `e_i · e'_j / (n n' |x| |x'|)`.
    * `"l2"`: `−(e_i − e'_j) · (x − x') / (n n')`: how far a pair lies apart in the direction in which the images do.
      Like the distance it does not depend on the bias, and is 0 everywhere for equal embeddings.

    The bias belongs to every place alike, `1/n` of it each. The code of Zhu et al. leaves it out; the sum is not the
    score then. The form for the L2 distance of vectors of any length is ours.

    Args:
        query: feature maps `[..., h, w, k]`.
        reference: feature maps `[..., h2, w2, k]`; leading axes broadcast against the query's.
        metric: `"cosine"`, or `"l2"` for the negative squared L2 distance.
        kernel: of a linear head `[k, d]` on the pooled features; None for the pooled features themselves.
        bias: of that head `[d]`; None for none.

    Returns:
        Contributions `[..., h, w, h2, w2]` of either sign, which sum to the similarity. The cosine with an embedding of
        zeros is 0, and so are all contributions.

    Raises:
        ValueError: shapes or types do not fit, an unknown metric, a bias without a kernel.

    Examples:
        >>> import numpy as np
        >>> query, reference = np.array([[[1.0, 0.0], [2.0, 4.0]]]), np.array([[[2.0, 3.0], [0.0, 1.0]]])
        >>> similarity_decomposition(query, reference, metric="l2")[0, :, 0].tolist()  # x − x' is ½, 0
        [[0.125, -0.125], [0.0, -0.25]]
    """
    query, reference, kernel, bias = _arrays(query, "... h w k", reference, "... h2 w2 k", kernel, bias)
    x, y = jnp.mean(query, axis=(-3, -2)), jnp.mean(reference, axis=(-3, -2))
    places = math.prod(query.shape[-3:-1]) * math.prod(reference.shape[-3:-1])
    return chosen(_DECOMPOSITIONS, metric=metric)(query, x, reference, y, kernel, bias) / float(places)


def similarity_map(
    query: Float[AnyArray, "... h w k"],
    reference_embedding: Float[AnyArray, "... k"],
    *,
    metric: str = "cosine",
    kernel: Float[AnyArray, "k d"] | None = None,
    bias: Float[AnyArray, "d"] | None = None,
) -> Float[Array, "... h w"]:
    """What every place of an image contributes to its similarity to a pooled feature, as a prototype is.

    The sum of `similarity_decomposition` over the reference's places, whatever they were, without an array of pairs:
    `e_i · x' / (n |x| |x'|)` for the cosine, `−(e_i − x') · (x − x') / n` for the negative squared L2 distance. Before
    its ReLU, Grad-CAM of the latter is twice this map but for a constant; of the cosine it has other weights, as the
    derivative of |x| enters.

    Args:
        query: feature maps `[..., h, w, k]`.
        reference_embedding: a pooled feature or prototype `[..., k]`, before the head: as pooling and head commute, the
            head of a mean is the mean of heads. Leading axes broadcast against the query's.
        metric: `"cosine"`, or `"l2"` for the negative squared L2 distance.
        kernel: of a linear head `[k, d]`, which the reference passes too; None for none.
        bias: of that head `[d]`; None for none.

    Returns:
        Contributions `[..., h, w]` of either sign, which sum to the similarity; those to an L2 distance may be negative
        everywhere. The cosine with an embedding of zeros is 0, and so are all contributions.

    Raises:
        ValueError: shapes or types do not fit, an unknown metric, a bias without a kernel.

    Examples:
        >>> import numpy as np
        >>> query = np.array([[[1.0, 0.0], [2.0, 4.0]]])  # 1½, 2 on average
        >>> similarity_map(query, np.array([0.0, 7.0])).tolist()  # 2 / 2½ in all
        [[0.0, 0.800000011920929]]
    """
    query, reference, kernel, bias = _arrays(query, "... h w k", reference_embedding, "... k", kernel, bias)
    x, places = jnp.mean(query, axis=(-3, -2)), math.prod(query.shape[-3:-1])
    pairs = chosen(_DECOMPOSITIONS, metric=metric)(query, x, reference[..., None, None, :], reference, kernel, bias)
    return pairs[..., 0, 0] / float(places)


def _arrays(query, query_axes, reference, reference_axes, kernel, bias):
    given = {"query": (query, query_axes), "reference": (reference, reference_axes)}
    if kernel is not None:
        given["kernel"] = (kernel, "k d")
    if bias is not None:
        if kernel is None:
            raise ValueError("bias: want none without a kernel, as without a head there is no bias")
        given["bias"] = (bias, "d")
    arrays = dict(zip(given, working_arrays(**given), strict=True))
    return arrays["query"], arrays["reference"], arrays.get("kernel"), arrays.get("bias")


def _head(features, kernel, bias=None):
    if kernel is not None:
        features = jnp.matmul(features, kernel, precision=HIGHEST)
    return features if bias is None else features + bias


def _cosine(query, x, reference, y, kernel, bias):
    """Contributions times the number of pairs, for the features of places and their means."""
    query = _scaled(_head(query, kernel, bias), _head(x, kernel, bias))
    reference = _scaled(_head(reference, kernel, bias), _head(y, kernel, bias))
    return jnp.einsum("...hwk,...yxk->...hwyx", query, reference, precision=HIGHEST)


def _scaled(places, mean):
    """The embeddings of places over the length of their mean; zeros where that is zero."""
    scale = magnitude(mean)
    return places / scale[..., None, None, :] * inverse_length(mean / scale)[..., None, None, :]


def _l2(query, x, reference, y, kernel, bias):
    """Contributions times the number of pairs, for the features of places and their means.

    Places are taken relative to their mean: where all features are large and alike, the differences keep their digits.
    """
    del bias  # the same on both sides
    apart = _head(x - y, kernel)

    def beyond_mean(places, mean):
        deviations = _head(places - mean[..., None, None, :], kernel)
        return jnp.einsum("...hwk,...k->...hw", deviations, apart, precision=HIGHEST)

    distance = jnp.sum(jnp.square(apart), axis=-1)[..., None, None, None, None]
    return beyond_mean(reference, y)[..., None, None, :, :] - beyond_mean(query, x)[..., None, None] - distance


_DECOMPOSITIONS = {"cosine": _cosine, "l2": _l2}
