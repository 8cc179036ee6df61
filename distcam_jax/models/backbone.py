"""What every backbone has in common: its contract, its options and its stem."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from distcam_jax.cam import global_average_pool
from distcam_jax.checks import check_positive_integers
from distcam_jax.models.layers import BatchNorm, Conv
from distcam_jax.models.pooling import max_pool


class Stem(NamedTuple):
    """How a network starts.

    Attributes:
        size: of the kernel.
        stride: of the convolution.
        pooled: whether a 3 x 3 max-pool at stride 2 follows.
    """

    size: int
    stride: int
    pooled: bool

    @property
    def total_stride(self) -> int:
        """Input pixels a cell stands for, the max-pool included."""
        return 2 * self.stride if self.pooled else self.stride


STEMS = {"imagenet": Stem(7, 2, True), "stride2": Stem(3, 2, False), "small": Stem(3, 1, False)}
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def stem_of(name: str) -> Stem:
    """The stem of that name; a ValueError lists the names."""
    if name not in STEMS:
        raise ValueError(f"unknown stem {name!r}; choose one of {', '.join(STEMS)}")
    return STEMS[name]


def check_options(*, num_classes: int, width: int, last_stride: int, dtype) -> jnp.dtype:
    """Refuses values that the common options cannot have, and gives the dtype."""
    check_positive_integers(width=width, num_classes=num_classes)
    if last_stride not in (1, 2):
        raise ValueError(f"last_stride must be 1 or 2, got {last_stride}")
    if not any(dtype == one or dtype == jnp.dtype(one).name for one in DTYPES):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    return jnp.dtype(dtype)


class Backbone(nnx.Module):
    """A network from normalised images to `(output, features)`.

    Attributes:
        embedding_size: channels k of `features["pre_pool"]` and `features["embedding"]`.
        total_stride: input pixels a cell of the feature map stands for; the smallest image has this side.
        dtype: of the computation.
        pooled_stem: whether the stem ends in a max-pool.
        remat: whether blocks are computed again for their gradient instead of kept.
        head: from embeddings to outputs.
    """

    embedding_size: int
    total_stride: int
    dtype: jnp.dtype
    pooled_stem: bool
    remat: bool
    head: nnx.Module

    def __call__(
        self, images: Float[Array, "b h w 3"], *, key: Array | None = None
    ) -> tuple[Float[Array, "b _"], dict[str, Array]]:
        """Runs the network.

        Args:
            images: normalised images `[b, h, w, 3]`, each side at least `total_stride`.
            key: of what is random in training (DropBlock); networks without such parts need none.

        Returns:
            The head's output, and `features`: "pre_pool" `[b, h', w', k]`, the maps after the last ReLU, and
            "embedding" `[b, k]`, their global average pool in float32.

        Raises:
            ValueError: for images of another rank, channel count or type, or too small a side.
        """
        self.check_images(images)
        maps = self.feature_maps(images, key)
        embedding = global_average_pool(maps)
        return self.head(embedding), {"pre_pool": maps, "embedding": embedding}

    def feature_maps(self, images: Float[Array, "b h w 3"], key: Array | None) -> Float[Array, "b h2 w2 k"]:
        """The maps that are pooled, of images that were checked."""
        raise NotImplementedError

    def stem(self, images: Float[Array, "b h w 3"], conv: Conv, norm: BatchNorm) -> Float[Array, "b h2 w2 k"]:
        """Convolution, normalisation, ReLU, and the max-pool where the stem has one."""
        x = nnx.relu(norm(conv(images)))
        return max_pool(x) if self.pooled_stem else x

    def run_block(self, block: nnx.Module, *inputs) -> Array:
        """A block's output; with `remat`, computed again for its gradient."""
        return nnx.remat(type(block).__call__)(block, *inputs) if self.remat else block(*inputs)

    def check_images(self, images: Array) -> None:
        """Refuses images that the network cannot take, with a ValueError."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must have the shape [b, h, w, 3], got {list(images.shape)}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be normalised floats, got {images.dtype}")
        if min(images.shape[1:3]) < self.total_stride:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels are smaller than the network's stride of "
                f"{self.total_stride}; enlarge them, or choose another stem or last_stride"
            )
