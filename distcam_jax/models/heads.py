"""What a backbone ends in: embeddings `[b, k]` in, output out. Dist-CAM itself never looks at a head."""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

HEADS = ("linear", "none")


class LinearHead(nnx.Module):
    """The softmax classifier's last layer, whose rows are CAM's class weights."""

    def __init__(self, embedding_size: int, num_classes: int, *, rngs: nnx.Rngs):
        bound = 1.0 / np.sqrt(embedding_size)

        def init(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)  # torch's, of kernel and bias alike

        self.linear = nnx.Linear(embedding_size, num_classes, kernel_init=init, bias_init=init, rngs=rngs)

    def __call__(self, embedding: Float[Array, "b k"]) -> Float[Array, "b c"]:
        """Class scores."""
        return self.linear(embedding)


class NoHead(nnx.Module):
    """No classifier layer: the embedding is the output."""

    def __call__(self, embedding: Float[Array, "b k"]) -> Float[Array, "b k"]:
        """The embedding, unchanged."""
        return embedding


def create_head(name: str, embedding_size: int, num_classes: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Makes a head by its name.

    Args:
        name: one of `HEADS`.
        embedding_size: channels k of the embedding.
        num_classes: classes c; unused by "none".
        rngs: where the initial weights come from.

    Returns:
        A module from embeddings `[b, k]` to outputs.

    Raises:
        ValueError: on an unknown name.

    Examples:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> create_head("linear", 8, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 8))).shape
        (2, 3)
    """
    if name == "linear":
        return LinearHead(embedding_size, num_classes, rngs=rngs)
    if name == "none":
        return NoHead()
    raise ValueError(f"unknown head {name!r}; choose one of {', '.join(HEADS)}")


def class_weights(model: nnx.Module) -> Float[Array, "c k"] | None:
    """The linear layer's weights, which CAM (Eq. 3) multiplies the feature maps by.

    Args:
        model: a model of `distcam_jax.models`.

    Returns:
        Weights `[c, k]`, or None for a model without a linear layer, for which CAM is not defined.

    Examples:
        >>> from flax import nnx
        >>> from distcam_jax.models import create_model
        >>> model = create_model("resnet18", num_classes=3, width=8, stem="small", rngs=nnx.Rngs(0))
        >>> class_weights(model).shape
        (3, 64)
    """
    head = getattr(model, "head", None)
    if not isinstance(head, LinearHead):
        return None
    return head.linear.kernel.get_value().T
