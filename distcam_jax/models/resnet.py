"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016), channels last.

The arithmetic is torchvision's, so its published weights give its outputs: the stride of a bottleneck sits on the 3 x 3
convolution, and what `distcam_jax.models.layers` says of borders and statistics. The one exception is where training
starts: each block's last scale is zero here, so that a block starts as the identity (Goyal et al., 2017, Sect. 5.1).
"""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from distcam_jax.models.backbone import Backbone, check_options, stem_of
from distcam_jax.models.heads import create_head
from distcam_jax.models.layers import BatchNorm, Conv, fan_out_normal

_conv = partial(Conv, init=fan_out_normal)


class BasicBlock(nnx.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, features_in: int, width: int, stride: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = _conv(features_in, width, 3, stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, dtype=dtype)
        self.conv2 = _conv(width, width, 3, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, dtype=dtype, zero=True)
        self.downsample = _downsample(features_in, width, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 k2"]:
        """Feature maps after the block's last ReLU."""
        shortcut = x
        for layer in self.downsample:
            shortcut = layer(shortcut)
        x = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nnx.Module):
    """A 3 x 3 convolution, which holds the stride, between two 1 x 1 convolutions, and a shortcut."""

    expansion = 4

    def __init__(self, features_in: int, width: int, stride: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = _conv(features_in, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, dtype=dtype)
        self.conv2 = _conv(width, width, 3, stride, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, dtype=dtype)
        self.conv3 = _conv(width, 4 * width, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(4 * width, dtype=dtype, zero=True)
        self.downsample = _downsample(features_in, 4 * width, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 k2"]:
        """Feature maps after the block's last ReLU."""
        shortcut = x
        for layer in self.downsample:
            shortcut = layer(shortcut)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        return nnx.relu(self.bn3(self.conv3(x)) + shortcut)


def _downsample(features_in: int, features: int, stride: int, *, dtype, rngs: nnx.Rngs) -> nnx.List:
    """What brings the shortcut to the block's output shape: nothing where it has it."""
    if stride == 1 and features_in == features:
        return nnx.List([])
    return nnx.List([_conv(features_in, features, 1, stride, dtype=dtype, rngs=rngs), BatchNorm(features, dtype=dtype)])


class ResNet(Backbone):
    """A residual network of four stages.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        blocks: how many blocks each stage has.
        num_classes: classes c of the head.
        rngs: where the initial weights come from.
        head: one of `distcam_jax.models.HEADS`.
        stem: one of `distcam_jax.models.STEMS`.
        width: channels of the first stage's 3 x 3 convolutions; each later stage has twice as many.
        last_stride: stride of the last stage, 1 or 2.
        dtype: of the computation; parameters and statistics stay float32.
        remat: whether each block is computed again for its gradient instead of kept, for memory.

    Raises:
        ValueError: on a value that an option cannot have.

    Examples:
        >>> make = lambda: ResNet(Bottleneck, (3, 4, 6, 3), num_classes=1000, rngs=nnx.Rngs(0))
        >>> model = nnx.eval_shape(make)
        >>> model.embedding_size, model.total_stride
        (2048, 32)
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        rngs: nnx.Rngs,
        head: str = "linear",
        stem: str = "imagenet",
        width: int = 64,
        last_stride: int = 2,
        dtype=jnp.float32,
        remat: bool = False,
    ):
        self.dtype = check_options(num_classes=num_classes, width=width, last_stride=last_stride, dtype=dtype)
        start = stem_of(stem)
        self.pooled_stem, self.remat = start.pooled, remat
        options = {"dtype": self.dtype, "rngs": rngs}
        self.conv1 = _conv(3, width, start.size, start.stride, **options)
        self.bn1 = BatchNorm(width, dtype=self.dtype)
        self.stages = nnx.List([])
        features_in = width
        for index, (count, stride) in enumerate(zip(blocks, (1, 2, 2, last_stride), strict=True)):
            stage: list[nnx.Module] = []
            for number in range(count):
                stage.append(block(features_in, width * 2**index, stride if number == 0 else 1, **options))
                features_in = width * 2**index * block.expansion
            self.stages.append(nnx.List(stage))
        self.embedding_size = features_in
        self.total_stride = start.total_stride * 4 * last_stride
        self.head = create_head(head, features_in, num_classes, rngs=rngs)

    def feature_maps(self, images: Float[Array, "b h w 3"], key: Array | None = None) -> Float[Array, "b h2 w2 k"]:
        """The maps after the last ReLU, of images that were checked."""
        del key  # nothing is random here
        x = self.stem(images, self.conv1, self.bn1)
        for stage in self.stages:
            for block in stage:
                x = self.run_block(block, x)
        return x


RESNETS = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
}
