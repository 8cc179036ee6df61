"""What every backbone has in common."""

from flax import nnx
from jaxtyping import Array, Float


class Backbone(nnx.Module):
    """A network from normalised images to `(output, features)`.

    Attributes:
        embedding_size: channels k of `features["pre_pool"]` and `features["embedding"]`.
        total_stride: input pixels a cell of the feature map stands for; the smallest image has this side.
        head: from embeddings to outputs.
    """

    embedding_size: int
    total_stride: int
    head: nnx.Module

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _"], dict[str, Array]]:
        """Output, and features "pre_pool" `[b, h', w', k]` and "embedding" `[b, k]`."""
        raise NotImplementedError
