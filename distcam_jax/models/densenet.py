"""Densely connected networks (Huang et al., "Densely Connected Convolutional Networks", CVPR 2017), channels last.

The arithmetic is torchvision's, so its published weights give its outputs. Two things are computed in another order,
with the same result: a transition averages before its 1 x 1 convolution, which commutes with it at a quarter of the
work; and the batch mean and variance of a feature map are computed once, though every later layer of its block
normalises it with scales of its own.
"""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from distcam_jax.cam import global_average_pool
from distcam_jax.models.backbone import Backbone, check_options, stem_of
from distcam_jax.models.heads import create_head
from distcam_jax.models.layers import BatchNorm, Conv, fan_in_normal, moments
from distcam_jax.models.pooling import average_pool

PRE_POOL = ("relu", "norm")

_conv = partial(Conv, init=fan_in_normal)


class DenseLayer(nnx.Module):
    """Normalisation, ReLU and convolution, 1 x 1 and then 3 x 3, of everything before it in its block."""

    def __init__(self, features_in: int, growth: int, *, dtype, rngs: nnx.Rngs):
        self.norm1 = BatchNorm(features_in, dtype=dtype)
        self.conv1 = _conv(features_in, 4 * growth, 1, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(4 * growth, dtype=dtype)
        self.conv2 = _conv(4 * growth, growth, 3, dtype=dtype, rngs=rngs)

    def __call__(self, maps: list[Array], statistics: list[tuple[Array, Array]]) -> Float[Array, "b h w k"]:
        """New feature maps from all maps before them and, in training, those maps' moments."""
        x = nnx.relu(_normalize(self.norm1, maps, statistics))
        return self.conv2(nnx.relu(self.norm2(self.conv1(x))))


class Transition(nnx.Module):
    """Normalisation, ReLU, a 1 x 1 convolution and a 2 x 2 average, computed in an order that costs less."""

    def __init__(self, features_in: int, features: int, stride: int, *, dtype, rngs: nnx.Rngs):
        self.norm = BatchNorm(features_in, dtype=dtype)
        self.conv = _conv(features_in, features, 1, dtype=dtype, rngs=rngs)
        self.stride = stride

    def __call__(self, maps: list[Array], statistics: list[tuple[Array, Array]]) -> Float[Array, "b h2 w2 k"]:
        """Fewer and, at stride 2, smaller feature maps."""
        x = nnx.relu(_normalize(self.norm, maps, statistics))
        return self.conv(average_pool(x) if self.stride == 2 else x)


def _normalize(norm, maps, statistics):
    """All maps side by side, normalised by their moments where these are known."""
    joined = tuple(map(jnp.concatenate, zip(*statistics, strict=True))) if statistics else None
    return norm(jnp.concatenate(maps, -1), joined)


class DenseNet(Backbone):
    """A densely connected network of four blocks.

    Args:
        blocks: how many layers each block has.
        num_classes: classes c of the head.
        rngs: where the initial weights come from.
        head: one of `distcam_jax.models.HEADS`.
        stem: one of `distcam_jax.models.STEMS`.
        width: channels of the stem, even; every dense layer adds half as many.
        last_stride: stride of the last transition, 1 or 2.
        dtype: of the computation; parameters and statistics stay float32.
        remat: whether each dense layer is computed again for its gradient instead of kept, so that memory grows with
            the depth and not with its square (Pleiss et al., 2017).
        pre_pool: which maps `features` holds: "relu", after the last ReLU, or "norm", before it, which the first public
            code of CAM hooked. The head sees the pooled maps after the ReLU either way, so with "norm" and head="none"
            the output is not `features["embedding"]`.

    Raises:
        ValueError: on a value that an option cannot have.

    Examples:
        >>> model = nnx.eval_shape(lambda: DenseNet((6, 12, 24, 16), num_classes=1000, rngs=nnx.Rngs(0)))
        >>> model.embedding_size, model.total_stride
        (1024, 32)
    """

    def __init__(
        self,
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
        pre_pool: str = "relu",
    ):
        self.dtype = check_options(num_classes=num_classes, width=width, last_stride=last_stride, dtype=dtype)
        if width % 2:
            raise ValueError(f"width must be even for a DenseNet, whose layers add half as many channels, got {width}")
        if pre_pool not in PRE_POOL:
            raise ValueError(f"unknown pre_pool {pre_pool!r}; choose one of {', '.join(PRE_POOL)}")
        start = stem_of(stem)
        self.pooled_stem, self.remat, self.pre_pool = start.pooled, remat, pre_pool
        growth, features = width // 2, width
        options = {"dtype": self.dtype, "rngs": rngs}
        self.conv0 = _conv(3, width, start.size, start.stride, **options)
        self.norm0 = BatchNorm(width, dtype=self.dtype)
        self.blocks, self.transitions = nnx.List([]), nnx.List([])
        for index, count in enumerate(blocks):
            self.blocks.append(
                nnx.List([DenseLayer(features + number * growth, growth, **options) for number in range(count)])
            )
            features += count * growth
            if index < len(blocks) - 1:
                stride = last_stride if index == len(blocks) - 2 else 2
                self.transitions.append(Transition(features, features // 2, stride, **options))
                features //= 2
        self.norm5 = BatchNorm(features, dtype=self.dtype)
        self.embedding_size = features
        self.total_stride = start.total_stride * 4 * last_stride
        self.head = create_head(head, features, num_classes, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w 3"], *, key: Array | None = None
    ) -> tuple[Float[Array, "b _"], dict[str, Array]]:
        """As every backbone; see the option `pre_pool`."""
        self.check_images(images)
        maps = self.feature_maps(images, key)
        embedding = global_average_pool(maps)
        pooled = embedding if self.pre_pool == "relu" else global_average_pool(nnx.relu(maps))
        return self.head(pooled), {"pre_pool": maps, "embedding": embedding}

    def feature_maps(self, images: Float[Array, "b h w 3"], key: Array | None = None) -> Float[Array, "b h2 w2 k"]:
        """The maps after or before the last ReLU, as `pre_pool` says, of images that were checked."""
        del key  # nothing is random here
        x = self.stem(images, self.conv0, self.norm0)
        for block, transition in zip(self.blocks, self.transitions, strict=False):
            x = transition(*self._dense(block, x))
        x = _normalize(self.norm5, *self._dense(self.blocks[-1], x))
        return nnx.relu(x) if self.pre_pool == "relu" else x

    def _dense(self, block, x):
        """All maps of a block and, in training, the moments of each."""
        training = not self.norm5.use_running_average
        maps, statistics = [x], [moments(x)] if training else []
        for layer in block:
            maps.append(self.run_block(layer, maps, statistics))
            if training:
                statistics.append(moments(maps[-1]))
        return maps, statistics


DENSENETS = {
    "densenet121": partial(DenseNet, (6, 12, 24, 16)),
    "densenet161": partial(DenseNet, (6, 12, 36, 24), width=96),
    "densenet169": partial(DenseNet, (6, 12, 32, 32)),
    "densenet201": partial(DenseNet, (6, 12, 48, 32)),
}
