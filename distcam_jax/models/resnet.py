"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016), channels last.

Padding, the stride in a block's first convolution and the distribution of the initial kernels are torchvision's. Every
model returns `(output, features)`; see `ResNet`.
"""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from distcam_jax.cam import global_average_pool
from distcam_jax.models.backbone import Backbone
from distcam_jax.models.heads import create_head

STEMS = ("imagenet", "stride2", "small")

# torch pads (1, 1) where "SAME" at stride 2 pads (0, 1), so every padding is written out.
_kernel_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(features_in: int, features_out: int, size: int, stride: int, *, dtype, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        features_in,
        features_out,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=_kernel_init,
        rngs=rngs,
    )


def _batch_norm(features: int, *, dtype, rngs: nnx.Rngs, zero: bool = False) -> nnx.BatchNorm:
    init = nnx.initializers.zeros_init() if zero else nnx.initializers.ones_init()
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=init, rngs=rngs)


class BasicBlock(nnx.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, features_in: int, width: int, stride: int, *, dtype, rngs: nnx.Rngs):
        conv = partial(_conv, dtype=dtype, rngs=rngs)
        norm = partial(_batch_norm, dtype=dtype, rngs=rngs)
        self.conv1, self.bn1 = conv(features_in, width, 3, stride), norm(width)
        # A last scale of zero makes every block start as the identity (Goyal et al., 2017, Sect. 5.1).
        self.conv2, self.bn2 = conv(width, width, 3, 1), norm(width, zero=True)
        resized = stride != 1 or features_in != width
        self.downsample = nnx.List([conv(features_in, width, 1, stride), norm(width)] if resized else [])

    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 k2"]:
        """Feature maps after the block's last ReLU."""
        shortcut = x
        for layer in self.downsample:
            shortcut = layer(shortcut)
        x = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(Backbone):
    """A residual network that returns its output and the feature maps that Dist-CAM weighs."""

    def __init__(
        self,
        block: type[BasicBlock],
        blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        rngs: nnx.Rngs,
        head: str = "linear",
        stem: str = "imagenet",
        width: int = 64,
        last_stride: int = 2,
        dtype=jnp.float32,
    ):
        if stem not in STEMS:
            raise ValueError(f"unknown stem {stem!r}; choose one of {', '.join(STEMS)}")
        if width < 1 or num_classes < 1:
            raise ValueError(f"width and num_classes must be at least 1, got {width} and {num_classes}")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, got {last_stride}")
        dtype = jnp.dtype(dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"dtype must be a floating type such as float32 or bfloat16, got {dtype}")
        size, stride = {"imagenet": (7, 2), "stride2": (3, 2), "small": (3, 1)}[stem]
        self.pooled_stem = stem == "imagenet"
        self.dtype = dtype
        self.conv1 = _conv(3, width, size, stride, dtype=dtype, rngs=rngs)
        self.bn1 = _batch_norm(width, dtype=dtype, rngs=rngs)
        self.stages = nnx.List([])
        features_in = width
        strides = (1, 2, 2, last_stride)
        for index, (count, first) in enumerate(zip(blocks, strides, strict=True)):
            stage = []
            for number in range(count):
                stride_here = first if number == 0 else 1
                stage.append(block(features_in, width * 2**index, stride_here, dtype=dtype, rngs=rngs))
                features_in = width * 2**index * block.expansion
            self.stages.append(nnx.List(stage))
        self.embedding_size = features_in
        self.total_stride = stride * (2 if self.pooled_stem else 1) * 4 * last_stride
        self.head = create_head(head, features_in, num_classes, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _"], dict[str, Array]]:
        """Runs the network.

        Args:
            images: normalised images `[b, h, w, 3]`, each side at least `total_stride`.

        Returns:
            The head's output, and `features`: "pre_pool" `[b, h', w', k]`, the non-negative maps after the last ReLU,
            and "embedding" `[b, k]`, their global average pool in float32.

        Raises:
            ValueError: for images of another rank, channel count or type, or too small a side.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must have the shape [b, h, w, 3], got {list(images.shape)}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be normalised floats, got {images.dtype}")
        if min(images.shape[1:3]) < self.total_stride:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels are smaller than the network's stride of "
                f"{self.total_stride}; enlarge them, or choose another stem or last_stride"
            )
        x = nnx.relu(self.bn1(self.conv1(images.astype(self.dtype))))
        if self.pooled_stem:
            # The border that is pooled with is minus infinity, as torch's is.
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        embedding = global_average_pool(x)
        return self.head(embedding), {"pre_pool": x, "embedding": embedding}


def resnet18(
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    head: str = "linear",
    stem: str = "imagenet",
    width: int = 64,
    last_stride: int = 2,
    dtype=jnp.float32,
) -> ResNet:
    """ResNet-18: two blocks of two 3 x 3 convolutions in each of the four stages.

    Args:
        num_classes: classes c of the head.
        rngs: where the initial weights come from.
        head: one of `distcam_jax.models.HEADS`.
        stem: one of `STEMS`.
        width: channels of the first stage; each later stage has twice as many.
        last_stride: stride of the last stage, 1 or 2.
        dtype: of the computation; parameters and statistics stay float32.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: on a value that an option cannot have.

    Examples:
        >>> model = nnx.eval_shape(lambda: resnet18(num_classes=2, rngs=nnx.Rngs(0), stem="small", width=2))
        >>> model.embedding_size, model.total_stride
        (16, 8)
    """
    return ResNet(
        BasicBlock,
        (2, 2, 2, 2),
        num_classes=num_classes,
        rngs=rngs,
        head=head,
        stem=stem,
        width=width,
        last_stride=last_stride,
        dtype=dtype,
    )
