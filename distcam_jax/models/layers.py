"""Convolution and batch normalisation with torch's arithmetic, channels last.

Published weights come from torch, so what a layer does to the border and to its running statistics is torch's; where
flax's own layers differ, the layer here says so.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from distcam_jax.models.convolution import convolve

VARIANCE_EPSILON = 1e-5  # what batch normalisation adds to the variance
MEMORY = 0.9  # of the running statistics, a batch


def _drawn(key, shape, fan, dtype):
    # Drawn flat, the same numbers: a draw of four axes takes XLA up to five times as long to compile.
    flat = jax.random.normal(key, (math.prod(shape),), dtype)
    return flat.reshape(shape) * jnp.sqrt(jnp.asarray(2.0 / fan, dtype))


def fan_out_normal(
    key: jax.Array, shape: tuple[int, int, int, int], dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "s s i o"]:
    """The start of a convolution's kernel as torchvision's ResNets have it.

    Normal, of variance `2 / (s * s * o)` (He et al., "Delving deep into rectifiers", ICCV 2015).

    Args:
        key: of the draw.
        shape: of the kernel, `(s, s, i, o)`.
        dtype: of the kernel.

    Returns:
        The kernel, bit by bit that of `nnx.initializers.variance_scaling(2.0, "fan_out", "normal")`.

    Examples:
        >>> kernel = fan_out_normal(jax.random.key(0), (3, 3, 50, 8))
        >>> round(float(kernel.std() ** 2 * 3 * 3 * 8), 1)
        2.0
    """
    return _drawn(key, shape, shape[0] * shape[1] * shape[3], dtype)


def fan_in_normal(
    key: jax.Array, shape: tuple[int, int, int, int], dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "s s i o"]:
    """The start of a convolution's kernel as torchvision's DenseNets have it, of variance `2 / (s * s * i)`.

    Args:
        key: of the draw.
        shape: of the kernel, `(s, s, i, o)`.
        dtype: of the kernel.

    Returns:
        The kernel, bit by bit that of `nnx.initializers.variance_scaling(2.0, "fan_in", "normal")`.

    Examples:
        >>> kernel = fan_in_normal(jax.random.key(0), (3, 3, 8, 50))
        >>> round(float(kernel.std() ** 2 * 3 * 3 * 8), 1)
        2.0
    """
    return _drawn(key, shape, shape[0] * shape[1] * shape[2], dtype)


class Conv(nnx.Module):
    """A convolution without bias: `convolve` with its own kernel.

    Attributes:
        kernel: `[s, s, i, o]`, float32.
    """

    def __init__(
        self, features_in: int, features: int, size: int, stride: int = 1, *, dtype, rngs: nnx.Rngs, init: Callable
    ):
        self.kernel = nnx.Param(init(rngs.params(), (size, size, features_in, features), jnp.float32))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """The convolution, in the layer's dtype."""
        return convolve(x.astype(self.dtype), self.kernel.get_value().astype(self.dtype), self.stride)


@jax.custom_vjp
def moments(x: Float[Array, "*b k"]) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Mean and biased variance of every channel, in float32; differentiable in reverse mode.

    Args:
        x: maps or embeddings `[..., k]`.

    Returns:
        Mean `[k]` and variance `[k]` over all other axes.

    Examples:
        >>> mean, variance = moments(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> mean.tolist(), variance.tolist()
        ([2.0, 5.0], [1.0, 0.0])
    """
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, dtype=jnp.float32)
    return mean, jnp.mean(jnp.square(x.astype(jnp.float32) - mean), axes)


def _moments_forward(x):
    mean, variance = moments(x)
    return (mean, variance), (x, mean)


def _moments_backward(residuals, gradients):
    # Written out so that x is kept for it and not x - mean as well.
    x, mean = residuals
    by_mean, by_variance = (gradient / (x.size // x.shape[-1]) for gradient in gradients)
    return ((by_mean + 2 * by_variance * (x.astype(jnp.float32) - mean)).astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy, ICML 2015) with torch's running statistics.

    It differs from `flax.nnx.BatchNorm` in two ways. The running variance is the unbiased one, n / (n - 1) times the
    one that normalises. And the variance is the mean square about the mean, not the difference of two means, which
    loses its digits where a channel's mean is large. Under `jit` with the batch split over devices, both moments are
    those of the whole batch.

    Attributes:
        scale, bias: `[k]`, float32.
        mean, var: running statistics `[k]`, float32.
        use_running_average: whether to normalise with them; `model.eval()` and `model.train()` set it.
    """

    def __init__(self, features: int, *, dtype, zero: bool = False):
        self.scale = nnx.Param(jnp.zeros(features, jnp.float32) if zero else jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.use_running_average = False
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b k"], batch_moments=None) -> Float[Array, "*b k"]:
        """The normalised maps in the layer's dtype; `batch_moments` are those of x where they are known already."""
        if self.use_running_average:
            mean, var = self.mean.get_value(), self.var.get_value()
        else:
            mean, var = moments(x) if batch_moments is None else batch_moments
            count = x.size // x.shape[-1]
            self._update(mean, var * (count / max(count - 1, 1)))
        factor = self.scale.get_value() * jax.lax.rsqrt(var + VARIANCE_EPSILON)
        shift = self.bias.get_value() - mean * factor
        return (x.astype(jnp.float32) * factor + shift).astype(self.dtype)

    def _update(self, mean, var):
        for running, seen in ((self.mean, mean), (self.var, var)):
            running.set_value(MEMORY * running.get_value() + (1 - MEMORY) * jax.lax.stop_gradient(seen))
