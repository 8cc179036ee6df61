"""What a backbone ends in: embeddings `[b, k]` in, output out. Dist-CAM itself never looks at a head.

Heads compute in float32, whatever the backbone's dtype.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from distcam_jax.checks import check_positive_integers
from distcam_jax.losses import cosine_similarities, l1_distances
from distcam_jax.models.layers import VARIANCE_EPSILON, BatchNorm


class LinearHead(nnx.Module):
    """The softmax classifier's last layer, whose rows are CAM's class weights."""

    def __init__(self, embedding_size: int, num_classes: int, *, rngs: nnx.Rngs):
        bound = 1.0 / np.sqrt(embedding_size)

        def init(key, shape, dtype):
            # torch's, of kernel and bias alike; drawn flat, which takes less time to compile
            return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

        self.linear = nnx.Linear(embedding_size, num_classes, kernel_init=init, bias_init=init, rngs=rngs)

    def __call__(self, embedding: Float[Array, "b k"]) -> Float[Array, "b c"]:
        """Class scores."""
        return self.linear(embedding)


class ProxyHead(nnx.Module):
    """Negative L1 distances to learnt prototypes, so that the largest output is the nearest prototype's.

    The decision is Dist-CAM's (Eq. 4 summed over the channels) with proxies in the place of the class means; proxies
    are those of Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017.

    Attributes:
        prototypes: `[c, k]`; they start uniform in [0, 1), where pooled features after a ReLU lie.
    """

    def __init__(self, embedding_size: int, num_classes: int, *, rngs: nnx.Rngs):
        self.prototypes = nnx.Param(jax.random.uniform(rngs.params(), (num_classes, embedding_size), jnp.float32))

    def __call__(self, embedding: Float[Array, "b k"]) -> Float[Array, "b c"]:
        """Negative distances, in the embedding's unit; no `[b, c, k]` array is kept for the gradient."""
        return -l1_distances(embedding, self.prototypes.get_value())


class CosineHead(nnx.Module):
    """Cosine similarities to one weight vector a class, which losses with an angular margin take.

    Attributes:
        kernel: `[k, c]`, without a bias. It starts normal with deviation `1 / sqrt(k)`: every direction is as likely,
            and lengths are near the 1 that Liu et al. ("SphereFace", CVPR 2017) hold them at.
    """

    def __init__(self, embedding_size: int, num_classes: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(1.0 / np.sqrt(embedding_size))
        self.kernel = nnx.Param(init(rngs.params(), (embedding_size, num_classes), jnp.float32))

    def __call__(self, embedding: Float[Array, "b k"]) -> Float[Array, "b c"]:
        """Similarities in [-1, 1]; 0, with gradients of 0, for an embedding or a weight of zeros."""
        return cosine_similarities(embedding, self.kernel.get_value().T)


class BatchNormNeckHead(nnx.Module):
    """A batch normalisation without shift, then a linear classifier without bias.

    Metric losses are trained on the embedding before the neck, the classifier and the retrieval use the feature after
    it. Source: Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", CVPRW 2019.

    Attributes:
        norm: whose `bias` is frozen at zero: it stands among the statistics, not the parameters.
        linear: the classifier, which starts normal with deviation 0.001.
    """

    def __init__(self, embedding_size: int, num_classes: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(embedding_size, dtype=jnp.float32)
        self.norm.bias = nnx.BatchStat(jnp.zeros(embedding_size, jnp.float32))  # pyrefly: ignore[bad-assignment]
        init = nnx.initializers.normal(0.001)
        self.linear = nnx.Linear(embedding_size, num_classes, use_bias=False, kernel_init=init, rngs=rngs)

    def neck(self, embedding: Float[Array, "b k"]) -> Float[Array, "b k"]:
        """The normalised feature, which retrieval is done with in evaluation mode.

        In training mode it is normalised by its batch, and each call moves the running statistics.
        """
        return self.norm(embedding)

    def __call__(self, embedding: Float[Array, "b k"]) -> Float[Array, "b c"]:
        """Class scores."""
        return self.linear(self.neck(embedding))

    def evaluation_factor(self) -> Float[Array, " k"]:
        """What the neck multiplies every channel by in evaluation."""
        return self.norm.scale.get_value() * jax.lax.rsqrt(self.norm.var.get_value() + VARIANCE_EPSILON)

    def class_weights(self) -> Float[Array, "c k"]:
        """The classifier's weights, multiplied by the factor that the neck has in evaluation for every channel."""
        return (self.linear.kernel.get_value() * self.evaluation_factor()[:, None]).T


class ProjectionHead(nnx.Module):
    """A linear map without bias to an embedding of another size, for metric losses and searches.

    Attributes:
        kernel: `[k, d]`. It starts normal with deviation `1 / sqrt(k)`.
    """

    def __init__(self, embedding_size: int, size: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(1.0 / np.sqrt(embedding_size))
        self.kernel = nnx.Param(init(rngs.params(), (embedding_size, size), jnp.float32))

    def __call__(self, embedding: Float[Array, "b k"]) -> Float[Array, "b d"]:
        """The projected feature."""
        return jnp.matmul(embedding, self.kernel.get_value(), precision=jax.lax.Precision.HIGHEST)


class NoHead(nnx.Module):
    """No classifier layer: the embedding is the output."""

    def __call__(self, embedding: Float[Array, "b k"]) -> Float[Array, "b k"]:
        """The embedding, unchanged."""
        return embedding


_CLASSES = {
    "linear": LinearHead,
    "proxy": ProxyHead,
    "cosine": CosineHead,
    "batch_norm_neck": BatchNormNeckHead,
    "projection": ProjectionHead,
}
HEADS = (*_CLASSES, "none")


def create_head(name: str, embedding_size: int, num_classes: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Makes a head by its name.

    Args:
        name: one of `HEADS`, which output, for embeddings `[b, k]`: "linear" class scores `[b, c]`; "proxy" negative L1
            distances to learnt prototypes `[b, c]`; "cosine" similarities to learnt class weights `[b, c]`, in [-1, 1];
            "batch_norm_neck" class scores `[b, c]` of the normalised embedding, which its method `neck` gives;
            "projection" an embedding of c channels; "none" the embedding `[b, k]`.
        embedding_size: channels k of the embedding.
        num_classes: classes c, or the channels of a projection; unused by "none".
        rngs: where the initial weights come from.

    Returns:
        A module from embeddings `[b, k]` to outputs, in training mode.

    Raises:
        ValueError: on an unknown name, or a size below 1.

    Examples:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> create_head("linear", 8, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 8))).shape
        (2, 3)
        >>> create_head("batch_norm_neck", 8, 3, rngs=nnx.Rngs(0)).neck(jnp.ones((2, 8))).shape
        (2, 8)
    """
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}; choose one of {', '.join(HEADS)}")
    if name == "none":
        return NoHead()
    check_positive_integers(embedding_size=embedding_size, num_classes=num_classes)
    return _CLASSES[name](embedding_size, num_classes, rngs=rngs)


def class_weights(model: nnx.Module) -> Float[Array, "c k"] | None:
    """The weights which CAM (Eq. 3) multiplies the feature maps by.

    Those of the linear layer; of a batch-norm neck, whose classifier sees `scale · (x - mean) / sqrt(var + eps)`, the
    classifier's weights times `scale / sqrt(var + eps)` with the running statistics, so that Eq. 2 gives the class
    scores of evaluation up to a constant a class. The constant, which the mean leaves, belongs to no channel. (The maps
    of a DenseNet with pre_pool="norm" are those before the ReLU that its head sees: Eq. 2 does not hold for them.)

    Args:
        model: a model of `distcam_jax.models`.

    Returns:
        Weights `[c, k]`, or None for a model whose scores are not linear in the embedding ("proxy", "cosine") or that
        has none ("projection", "none"), for which CAM is not defined.

    Examples:
        >>> from flax import nnx
        >>> from distcam_jax.models import create_model
        >>> model = create_model("resnet18", num_classes=3, width=8, stem="small", rngs=nnx.Rngs(0))
        >>> class_weights(model).shape
        (3, 64)
    """
    head = getattr(model, "head", None)
    if isinstance(head, LinearHead):
        return head.linear.kernel.get_value().T
    return head.class_weights() if isinstance(head, BatchNormNeckHead) else None


SEARCH_SPACES = ("embedding", "projection", "neck")


def check_search_space(model: nnx.Module, space: str) -> None:
    """Refuses a space that is unknown or that the model does not have; a ValueError lists the names."""
    if space not in SEARCH_SPACES:
        raise ValueError(f"unknown search space {space!r}; choose one of {', '.join(SEARCH_SPACES)}")
    needed = {"projection": ProjectionHead, "neck": BatchNormNeckHead}.get(space, object)
    head = getattr(model, "head", None)
    if not isinstance(head, needed):
        raise ValueError(f"the search space {space!r} needs a {needed.__name__}, the model has a {type(head).__name__}")


def search_features(model: nnx.Module, embedding: Float[Array, "b k"], space: str) -> Float[Array, "b d"]:
    """The features of images in the space in which they are searched.

    Args:
        model: a model of `distcam_jax.models`, in evaluation mode.
        embedding: its pooled features `[b, k]`.
        space: "embedding", these themselves; "projection", what a `ProjectionHead` makes of them; "neck", what the
            normalisation of a `BatchNormNeckHead` does.

    Returns:
        `[b, d]`; not normalised.

    Raises:
        ValueError: the space is unknown, or the model's head is another one.

    Examples:
        >>> from flax import nnx
        >>> from distcam_jax.models import create_model
        >>> model = create_model("resnet18", num_classes=3, width=8, stem="small", head="projection", rngs=nnx.Rngs(0))
        >>> search_features(model, jnp.ones((2, 64)), "projection").shape
        (2, 3)
    """
    check_search_space(model, space)
    if space == "embedding":
        return embedding
    head: Any = getattr(model, "head", None)
    return head.neck(embedding) if space == "neck" else head(embedding)
