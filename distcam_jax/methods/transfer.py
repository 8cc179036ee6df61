"""Gradient weights of a triplet loss, gathered on training samples and carried over to other images.

What `"grad_cam_transfer"` needs, after:

    Chen, Chen, Hajimirsadeghi, Mori, Adapting Grad-CAM for Embedding Networks, WACV 2020 (arXiv:2001.06538).

The paper's, as its abstract and a published summary tell (we have not compared with its full text or with code of its
authors): weights of channels are the gradients of a triplet loss, averaged over many triplets of a training image; the
channels with the largest weights are kept, 50 of them; at test time an image, which has no triplet, takes the weights
of its nearest neighbour among the training images.

Ours, where those are silent or this library differs:

* The sign: weights are the gradients of the *negative* loss, so that a channel counts for what makes the triplet right,
  as in Grad-CAM it does for what raises the class's score.
* Triplets are drawn uniformly, and those whose loss is zero left out of the mean. Which sample is the positive or the
  negative is drawn anew for every triplet; the image itself is always the anchor.
* The embedding is the average-pooled feature, whose gradient is the same at every place, so pooled features suffice and
  no network runs. The constant 1 / (h w) is left out: it does not change the picture.
* Heatmaps here are asked about a class: the neighbour is the nearest training sample of that class.
"""

import functools

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key, UInt32

from distcam_jax.cam import _in_blocks
from distcam_jax.checks import check_positive_integers, integer_labels, working_arrays
from distcam_jax.losses.arguments import check_not_negative
from distcam_jax.methods.context import nearest_indices, rows_or_zeros
from distcam_jax.methods.similarities import SIMILARITIES, AnyArray, chosen


@functools.partial(jax.jit, static_argnames=("triplets", "margin", "metric", "batch_size"))
def triplet_gradient_weights(
    key: Key[Array, ""] | UInt32[Array, "2"],
    embeddings: Float[AnyArray, "n k"],
    labels: Integer[AnyArray, "n"],
    *,
    triplets: int = 100,
    margin: float | int = 0.1,
    metric: str = "cosine",
    batch_size: int | None = None,
) -> tuple[Float[Array, "n k"], Int[Array, "n"]]:
    """Weights of channels of every training sample: minus the gradient of its triplet losses, averaged. Jitted.

    The loss of an anchor a, a positive p and a negative n is `max(0, s(a, n) − s(a, p) + margin)`, s the similarity.
    The mean is over those of the drawn triplets whose loss is not zero. See the module for what is the paper's.

    Args:
        key: decides the triplets.
        embeddings: pooled features of the training samples `[n, k]`, taken a block at a time.
        labels: class of each sample `[n]`. Those below 0 take no part.
        triplets: drawn for each sample, with replacement.
        margin: not negative, in the unit of s. 0.1 in cosines is the usual 0.2 in squared distances of unit vectors.
        metric: of the similarity s: `"cosine"`, `"l1"` or `"l2"`, see `similarity`; the one the model was trained with.
        batch_size: samples computed at once; None chooses by the back end and the size of their triplets.

    Returns:
        Weights `[n, k]` of either sign, and how many triplets each is the mean of `[n]`. Where that is 0, as for the
        only sample of a class, weights are zeros: give such samples the label −1 in `transferred_weights` to look past
        them.

    Raises:
        ValueError: shapes or types do not fit, triplets or batch_size below 1, a negative margin, an unknown metric.

    Examples:
        >>> import numpy as np
        >>> embeddings, labels = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]), np.array([0, 0, 1])
        >>> weights, counts = triplet_gradient_weights(jax.random.key(0), embeddings, labels, triplets=4, metric="l2")
        >>> weights.tolist(), counts.tolist()  # of the first, 2 (p − n); the second's losses are zero
        ([[4.0, -4.0], [0.0, 0.0], [0.0, 0.0]], [4, 0, 0])
    """
    alike = chosen(SIMILARITIES, metric=metric)
    check_positive_integers(triplets=triplets)
    check_not_negative(margin=margin)
    (embeddings,) = working_arrays(embeddings=(embeddings, "n k"))
    labels = integer_labels(labels, len(embeddings))
    positives, negatives, valid = _draw(key, labels, triplets)

    def margin_left(anchor, positive, negative):
        return alike(anchor, positive) - alike(anchor, negative)

    def weights_of(anchor, positives, negatives, valid):
        won, ascent = jax.vmap(jax.value_and_grad(margin_left), in_axes=(None, 0, 0))(
            anchor, embeddings[positives], embeddings[negatives]
        )
        active = valid & (won < margin)
        count = jnp.sum(active, dtype=jnp.int32)
        total = jnp.sum(jnp.where(active[:, None], ascent, 0), axis=0)
        return total / jnp.maximum(count, 1).astype(total.dtype), count

    item_bytes = 3 * triplets * embeddings.shape[1] * embeddings.dtype.itemsize
    return _in_blocks(weights_of, (embeddings, positives, negatives, valid), item_bytes, batch_size)


@functools.partial(jax.jit, static_argnames=("metric", "neighbors", "channels"))
def transferred_weights(
    embeddings: Float[AnyArray, "b k"],
    classes: Integer[AnyArray, "b m"],
    samples: Float[AnyArray, "n k"],
    sample_labels: Integer[AnyArray, "n"],
    sample_weights: Float[AnyArray, "n k"],
    *,
    metric: str = "cosine",
    neighbors: int = 1,
    channels: int | None = 50,
) -> Float[Array, "b m k"]:
    """Gradient weights of the nearest training sample of each asked class, for `Context.transferred`. Jitted.

    The paper's images ask about no class and take the nearest sample of all: that is one class, 0, for every sample.

    Args:
        embeddings: pooled features of the images `[b, k]`.
        classes: the classes asked about each `[b, m]`.
        samples: pooled features of the training samples `[n, k]`.
        sample_labels: class of each sample `[n]`. Those below 0 take no part.
        sample_weights: gradient weights of each sample `[n, k]`, as from `triplet_gradient_weights`.
        metric: what is nearest: `"cosine"`, `"l1"` or `"l2"`, see `similarity`.
        neighbors: of how many nearest samples the mean is taken; the paper's is 1.
        channels: how many channels keep their weight, those with the greatest; the others get 0. None keeps all.

    Returns:
        Weights `[b, m, k]`; zeros where a class has no sample.

    Raises:
        ValueError: shapes or types do not fit, neighbors or channels below 1, an unknown metric.

    Examples:
        >>> import numpy as np
        >>> samples, weights = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[1.0, -1.0], [2.0, 3.0]])
        >>> asked, labels = np.array([[0, 1]]), np.array([0, 0])
        >>> transferred_weights(np.array([[3.0, 2.0]]), asked, samples, labels, weights, channels=1).tolist()
        [[[0.0, 3.0], [0.0, 0.0]]]
    """
    samples, embeddings, weights = working_arrays(
        samples=(samples, "n k"), embeddings=(embeddings, "b k"), sample_weights=(sample_weights, "n k")
    )
    check_positive_integers(neighbors=neighbors)
    indices = nearest_indices(embeddings, classes, samples, sample_labels, metric=metric, count=neighbors)
    found = jnp.maximum(jnp.sum(indices >= 0, axis=-1, dtype=jnp.int32), 1).astype(weights.dtype)
    means = jnp.sum(rows_or_zeros(weights, indices), axis=-2) / found[..., None]
    if channels is None:
        return means
    check_positive_integers(channels=channels)
    greatest, places = jax.lax.top_k(means, min(channels, means.shape[-1]))
    return jnp.put_along_axis(jnp.zeros_like(means), places, greatest, axis=-1, inplace=False)


def _draw(key, labels, triplets):
    """Indices of positives and negatives of every anchor `[n, triplets]`, and whether there are any."""
    order = jnp.argsort(labels)
    ordered = labels[order]
    first = jnp.searchsorted(ordered, labels, side="left")
    size = jnp.searchsorted(ordered, labels, side="right") - first
    rank = jnp.zeros_like(first).at[order].set(jnp.arange(len(labels), dtype=first.dtype)) - first
    without = jnp.sum(labels < 0, dtype=first.dtype)  # samples without a class stand in front
    others = len(labels) - without - size
    valid = (labels >= 0) & (size > 1) & (others > 0)

    def uniform(key, ends):
        return jax.random.randint(key, (len(labels), triplets), 0, jnp.maximum(ends, 1)[:, None], first.dtype)

    for_positives, for_negatives = jax.random.split(key)
    place = uniform(for_positives, size - 1)
    positives = first[:, None] + place + (place >= rank[:, None]).astype(place.dtype)  # anyone but the anchor
    place = without + uniform(for_negatives, others)
    negatives = place + jnp.where(place >= first[:, None], size[:, None], 0)  # anyone but the anchor's class
    last = max(len(labels) - 1, 0)
    valid = jnp.broadcast_to(valid[:, None], (len(labels), triplets))
    return order[jnp.minimum(positives, last)], order[jnp.minimum(negatives, last)], valid
