"""What a heatmap is asked about: classes, and what stands for each of them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from distcam_jax.checks import check_positive_integers, integer_labels, working_arrays
from distcam_jax.methods.similarities import SIMILARITIES, AnyArray, chosen

_AXES = {"prototypes": "c k", "class_weights": "c k", "whitening": "k k", "neighbors": "n m k", "transferred": "n m k"}
# Elements of the samples gathered at once: a processor wants them to stay in its cache (measured: four times as fast
# as with 2**22), an accelerator wants enough work at a time.
_CPU_BLOCK_ELEMENTS = 2**18
_ACCELERATOR_BLOCK_ELEMENTS = 2**24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """The classes whose maps of b images are asked for, and what methods know of them. A pytree; works under `jit`.

    A class outside 0 … c − 1 has a map of NaN.

    Attributes:
        classes: the m classes asked about each image `[b, m]`, integers, rows of prototypes and class_weights.
        prototypes: mean pooled feature of every class `[c, k]`, as from `distcam_jax.class_prototypes`.
        class_weights: weights of the last linear layer `[c, k]`, for CAM and for gradients of class scores.
        whitening: inverse of the features' covariance within the classes `[k, k]`, as from
            `distcam_jax.mahalanobis.within_class_precision`.
        neighbors: pooled feature of the nearest training sample of each asked class `[b, m, k]`, as from
            `nearest_samples`.
        transferred: gradient weights carried over from training samples `[b, m, k]`, as from `transferred_weights`.

    Examples:
        >>> Context(classes=np.array([[1]]), prototypes=np.eye(2, dtype=np.float32)).neighbors is None
        True
    """

    # Any: tree maps put shapes and tracers where the arrays are.
    classes: Any
    prototypes: Any
    class_weights: Any = None
    neighbors: Any = None
    transferred: Any = None
    whitening: Any = None

    def require(self, names: Sequence[str], caller: str) -> None:
        """Refuses, with a ValueError that names the caller, to go on where one of the fields is None."""
        for name in names:
            if getattr(self, name) is None:
                raise ValueError(f"{caller}: wants context.{name}, which is None")


def working_context(features: Float[AnyArray, "b h w k"], context: Context) -> tuple[Array, Context]:
    """Features and context with their shapes checked, in one floating type; a ValueError where they do not fit.

    Examples:
        >>> context = Context(classes=np.array([[1]]), prototypes=np.eye(2))
        >>> working_context(np.ones((1, 2, 3, 2)), context)[1].prototypes.dtype
        dtype('float32')
    """
    classes, given = jnp.asarray(context.classes), {}
    batch = np.shape(features)[:1]
    if classes.ndim != 2 or classes.shape[:1] != batch or not jnp.issubdtype(classes.dtype, jnp.integer):
        want = f"want integers [b, m] with b = {batch[0] if batch else '?'} as in features"
        raise ValueError(f"context.classes: {want}, got {classes.dtype} of shape {classes.shape}")
    for name in ("neighbors", "transferred"):
        shape = np.shape(getattr(context, name))
        if getattr(context, name) is not None and (len(shape) != 3 or shape[:2] != classes.shape):
            want = f"want axes [b m k] with b, m = {classes.shape} as in context.classes"
            raise ValueError(f"context.{name}: {want}, got shape {shape}")
    for name, axes in _AXES.items():
        if getattr(context, name) is not None:
            given[f"context.{name}"] = (getattr(context, name), axes)
    *arrays, features = working_arrays(**given, features=(features, "n h w k"))
    fields = {name.removeprefix("context."): array for name, array in zip(given, arrays, strict=True)}
    return features, dataclasses.replace(context, classes=classes, **fields)


@functools.partial(jax.jit, static_argnames=("metric",))
def nearest_samples(
    embeddings: Float[AnyArray, "b k"],
    classes: Integer[AnyArray, "b m"],
    samples: Float[AnyArray, "n k"],
    sample_labels: Integer[AnyArray, "n"],
    *,
    metric: str = "l1",
) -> tuple[Int[Array, "b m"], Float[Array, "b m k"]]:
    """The nearest training sample of each asked class, for `Context.neighbors`. Jitted.

    Only samples of the asked class are looked at, a few at a time: memory grows with b·m·k alone and work with b·m·k
    times the size of the largest class. Has no gradients.

    Args:
        embeddings: pooled features of the images `[b, k]`.
        classes: the classes asked about each `[b, m]`.
        samples: pooled features of the training samples `[n, k]`.
        sample_labels: class of each sample `[n]`. Those below 0 take no part.
        metric: `"l1"`, `"l2"` or `"cosine"`, see `similarity`.

    Returns:
        Indices of the samples `[b, m]`, the lowest of equally near ones, and their pooled features `[b, m, k]`; a class
        without samples has index −1 and zeros.

    Raises:
        ValueError: shapes or types do not fit, an unknown metric.

    Examples:
        >>> samples = np.array([[0.0], [4.0], [7.0]])
        >>> indices, nearest = nearest_samples(np.array([[5.0]]), np.array([[0, 1, 2]]), samples, np.array([0, 0, 1]))
        >>> indices.tolist(), nearest.tolist()
        ([[1, 2, -1]], [[[4.0], [7.0], [0.0]]])
    """
    indices = nearest_indices(embeddings, classes, samples, sample_labels, metric=metric, count=1)[..., 0]
    (samples,) = working_arrays(samples=(samples, "n k"))
    return indices, rows_or_zeros(samples, indices)


def nearest_indices(
    embeddings: Float[AnyArray, "b k"],
    classes: Integer[AnyArray, "b m"],
    samples: Float[AnyArray, "n k"],
    sample_labels: Integer[AnyArray, "n"],
    *,
    metric: str,
    count: int,
) -> Int[Array, "b m {count}"]:
    """The `count` nearest samples of each asked class, nearest first; −1 where a class has fewer.

    Examples:
        >>> samples, labels = np.array([[0.0], [4.0], [7.0]]), np.array([0, 0, 1])
        >>> nearest_indices(np.array([[5.0]]), np.array([[0, 1]]), samples, labels, metric="l1", count=2).tolist()
        [[[1, 0], [2, -1]]]
    """
    alike = chosen(SIMILARITIES, metric=metric)
    check_positive_integers(count=count)
    embeddings, samples = working_arrays(embeddings=(embeddings, "b k"), samples=(samples, "n k"))
    labels, classes = integer_labels(sample_labels, len(samples)).astype(jnp.int32), jnp.asarray(classes)
    if classes.ndim != 2 or len(classes) != len(embeddings) or not jnp.issubdtype(classes.dtype, jnp.integer):
        want = f"want integers [b, m] with b = {len(embeddings)} as in embeddings"
        raise ValueError(f"classes: {want}, got {classes.dtype} of shape {classes.shape}")
    classes = classes.astype(jnp.int32)
    none = (jnp.full((*classes.shape, count), -jnp.inf, samples.dtype), jnp.full((*classes.shape, count), -1))
    if not len(samples):
        return none[1]
    order = jnp.argsort(labels)  # stable: samples of a class stand together, in their own order
    first = jnp.searchsorted(labels[order], classes, side="left")
    sizes = jnp.where(classes < 0, 0, jnp.searchsorted(labels[order], classes, side="right") - first)
    block = _CPU_BLOCK_ELEMENTS if jax.default_backend() == "cpu" else _ACCELERATOR_BLOCK_ELEMENTS
    step = max(1, block // max(1, classes.size * samples.shape[1]))

    def merge_block(state):
        offset, best, indices = state
        places = offset + jnp.arange(step)
        rows = order[jnp.minimum(first[..., None] + places, len(order) - 1)]
        scores = alike(embeddings[:, None, None, :], samples[rows])
        # A sample that is NaN or infinitely far is the last choice, but before no sample at all.
        scores = jnp.maximum(jnp.where(jnp.isnan(scores), -jnp.inf, scores), jnp.finfo(scores.dtype).min)
        scores = jnp.where(places < sizes[..., None], scores, -jnp.inf)
        best, kept = lax.top_k(jnp.concatenate([best, scores], axis=-1), count)  # of equal ones, the first
        found = jnp.take_along_axis(jnp.concatenate([indices, rows.astype(indices.dtype)], axis=-1), kept, axis=-1)
        return offset + step, best, jnp.where(best == -jnp.inf, -1, found)

    return lax.while_loop(lambda state: state[0] < jnp.max(sizes, initial=0), merge_block, (0, *none))[2]


def rows_or_zeros(array: Float[Array, "n k"], indices: Int[Array, "*i"]) -> Float[Array, "*i k"]:
    """Rows of an array, and zeros where the index is −1.

    Examples:
        >>> rows_or_zeros(jnp.array([[5.0]]), jnp.array([0, -1])).tolist()
        [[5.0], [0.0]]
    """
    if not len(array):
        return jnp.zeros((*indices.shape, array.shape[1]), array.dtype)
    return jnp.where(indices[..., None] < 0, 0, array[indices])
