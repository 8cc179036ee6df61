"""ResNet-12 with DropBlock, the usual network of few-shot learning, channels last.

Source: Lee et al., "Meta-Learning with Differentiable Convex Optimization", CVPR 2019, and its public code, whose
borders, statistics and first values are kept. Two things of that code are left out: ordinary dropout after the first
two blocks, and the 40,000 steps over which its DropBlock grows to the full rate.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from distcam_jax.checks import check_positive_integers
from distcam_jax.models.backbone import Backbone, check_options
from distcam_jax.models.heads import create_head
from distcam_jax.models.layers import BatchNorm, Conv, fan_out_normal

SLOPE = 0.1  # of LeakyReLU below zero
DROPPED_BLOCKS = (2, 3)  # that DropBlock follows

# The source asks for torch's `kaiming_normal_(mode="fan_out", nonlinearity="leaky_relu")` and leaves its slope at 0, so
# the deviation is sqrt(2 / fan_out), as for a ReLU, not sqrt(2 / (1 + SLOPE**2) / fan_out).
_conv = partial(Conv, init=fan_out_normal)


def drop_block(
    key: Array, x: Float[Array | np.ndarray, "b h w k"], *, rate: float | int, size: int = 5
) -> Float[Array, "b h w k"]:
    """Sets squares of each feature map to zero, and enlarges the rest to make up for it.

    A block starts at each place where a whole one fits, independently per image and channel, with the probability
    `rate · h · w / size² / ((h - size + 1) · (w - size + 1))`, which drops about the share `rate`: less where blocks
    overlap. What is kept is multiplied by (elements / elements kept), counted over the whole array.

    Args:
        key: of the random numbers.
        x: feature maps `[b, h, w, k]`.
        rate: share to drop, in [0, 1); 0 returns `x`.
        size: side of a block in cells; on a map with a shorter side, that side.

    Returns:
        `[b, h, w, k]` of the type of `x`.

    Raises:
        ValueError: for another rank or type, a rate outside [0, 1) or a size below 1.

    Examples:
        >>> import jax
        >>> dropped = drop_block(jax.random.key(0), jnp.ones((2, 8, 8, 1)), rate=0.3, size=3)
        >>> bool(dropped.min() == 0), round(float(dropped.mean()), 4)
        (True, 1.0)

    References:
        Ghiasi et al., "DropBlock: A regularization method for convolutional networks", NeurIPS 2018; the scale over the
        whole array is that of the public code of Lee et al. (CVPR 2019).
    """
    x = jnp.asarray(x)
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: want floats of shape [b, h, w, k], got {x.dtype} of shape {list(x.shape)}")
    _check_rate(rate=rate)
    check_positive_integers(size=size)
    if rate == 0 or x.size == 0:
        return x
    b, h, w, k = x.shape
    size = min(size, h, w)
    rows, columns = h - size + 1, w - size + 1
    gamma = rate * h * w / size**2 / (rows * columns)  # at most the rate
    starts = jax.random.bernoulli(key, gamma, (b, rows, columns, k))
    kept = ~_spread(_spread(starts, size, 1), size, 2)
    dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    share = jnp.maximum(jnp.mean(kept, dtype=dtype), 1.0 / x.size)  # none kept: all is zero, whatever the scale
    return jnp.where(kept, x.astype(dtype) / share, 0.0).astype(x.dtype)


def _spread(starts, size, axis):
    """Where a run of `size` cells along an axis covers, given where runs start."""
    count = starts.shape[axis] + size - 1
    pad = [(0, 0)] * starts.ndim
    pad[axis] = (size - 1, size - 1)
    padded = jnp.pad(starts, pad)
    covered = jax.lax.slice_in_dim(padded, 0, count, axis=axis)
    for shift in range(1, size):
        covered |= jax.lax.slice_in_dim(padded, shift, shift + count, axis=axis)
    return covered


def _check_rate(**argument):
    ((name, rate),) = argument.items()
    if not 0 <= rate < 1:
        raise ValueError(f"{name}: want a share in [0, 1), got {rate}")


def _max_pool(x):
    """The largest of every 2 x 2 window at stride 2; an odd last row or column is left out."""
    # Not `jnp.max`: its gradient divides by how many elements equal the maximum, which is 0 where the compiler computes
    # an element again and rounds it otherwise.
    return _larger_of_pairs(_larger_of_pairs(x, 1), 2)


def _larger_of_pairs(x, axis):
    count = x.shape[axis] // 2
    pairs = jax.lax.slice_in_dim(x, 0, 2 * count, axis=axis)
    pairs = pairs.reshape(*x.shape[:axis], count, 2, *x.shape[axis + 1 :])
    return jnp.maximum(*(jax.lax.index_in_dim(pairs, number, axis + 1, keepdims=False) for number in (0, 1)))


class Block(nnx.Module):
    """Three 3 x 3 convolutions and a 1 x 1 shortcut, then a 2 x 2 max-pool."""

    def __init__(self, features_in: int, features: int, *, pooled: bool, dtype, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.conv1 = _conv(features_in, features, 3, **options)
        self.bn1 = BatchNorm(features, dtype=dtype)
        self.conv2 = _conv(features, features, 3, **options)
        self.bn2 = BatchNorm(features, dtype=dtype)
        self.conv3 = _conv(features, features, 3, **options)
        self.bn3 = BatchNorm(features, dtype=dtype)
        self.downsample = nnx.List([_conv(features_in, features, 1, **options), BatchNorm(features, dtype=dtype)])
        self.pooled = pooled

    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h2 w2 k2"]:
        """Feature maps after the block's last LeakyReLU, pooled where the block pools."""
        conv, norm = self.downsample
        shortcut = norm(conv(x))
        x = nnx.leaky_relu(self.bn1(self.conv1(x)), SLOPE)
        x = nnx.leaky_relu(self.bn2(self.conv2(x)), SLOPE)
        x = nnx.leaky_relu(self.bn3(self.conv3(x)) + shortcut, SLOPE)
        return _max_pool(x) if self.pooled else x


class ResNet12(Backbone):
    """A residual network of four blocks for small images; 84 x 84 pixels give maps of 5 x 5.

    `features["pre_pool"]` are the maps after the last LeakyReLU and max-pool, in training after DropBlock too. Other
    than after a ReLU, they may be slightly negative.

    Args:
        num_classes: classes c of the head.
        rngs: where the initial weights come from.
        head: one of `distcam_jax.models.HEADS`.
        widths: channels of the four blocks; (64, 128, 256, 512) is the other usual choice.
        last_stride: 2, or 1 to leave out the last max-pool: maps of 10 x 10 from 84 x 84 pixels.
        drop_rate: share that DropBlock drops after the last two blocks, in training mode only, in [0, 1). Unless it is
            0, the model in training mode is called with a key: `model(images, key=key)`.
        dtype: of the computation; parameters and statistics stay float32.
        remat: whether each block is computed again for its gradient instead of kept, for memory.

    Attributes:
        deterministic: whether DropBlock is off; `model.eval()` and `model.train()` set it.

    Raises:
        ValueError: on a value that an option cannot have.

    Examples:
        >>> model = nnx.eval_shape(lambda: ResNet12(num_classes=64, rngs=nnx.Rngs(0)))
        >>> model.embedding_size, model.total_stride
        (640, 16)
    """

    def __init__(
        self,
        *,
        num_classes: int,
        rngs: nnx.Rngs,
        head: str = "linear",
        widths: Sequence[int] = (64, 160, 320, 640),
        last_stride: int = 2,
        drop_rate: float | int = 0.1,
        dtype=jnp.float32,
        remat: bool = False,
    ):
        widths = tuple(widths)
        if len(widths) != 4 or any(not isinstance(width, int | np.integer) or width < 1 for width in widths):
            raise ValueError(f"widths: want four positive integers, one a block, got {widths}")
        _check_rate(drop_rate=drop_rate)
        self.dtype = check_options(num_classes=num_classes, width=widths[0], last_stride=last_stride, dtype=dtype)
        self.drop_rate, self.remat, self.deterministic = drop_rate, remat, False
        self.stages = nnx.List([])
        for features_in, features, stride in zip((3, *widths), widths, (2, 2, 2, last_stride), strict=False):
            self.stages.append(Block(features_in, features, pooled=stride == 2, dtype=self.dtype, rngs=rngs))
        self.embedding_size = widths[-1]
        self.total_stride = 8 * last_stride
        self.head = create_head(head, widths[-1], num_classes, rngs=rngs)

    def feature_maps(self, images: Float[Array, "b h w 3"], key: Array | None = None) -> Float[Array, "b h2 w2 k"]:
        """The maps that are pooled, of images that were checked; a ValueError where DropBlock misses its key."""
        if self.deterministic or not self.drop_rate:
            key = None
        elif key is None:
            raise ValueError(
                f"DropBlock needs a key in training mode with drop_rate {self.drop_rate}: call model(images, key=key), "
                "or call model.eval() first, or create the model with drop_rate=0"
            )
        x = images
        for index, block in enumerate(self.stages):
            x = self.run_block(block, x)
            if key is not None and index in DROPPED_BLOCKS:
                x = drop_block(jax.random.fold_in(key, index), x, rate=self.drop_rate)
        return x


RESNET12 = {"resnet12": ResNet12}
