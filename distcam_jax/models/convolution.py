"""One convolution, lowered to what is fast on the device it runs on.

On a GPU or TPU this is XLA's convolution and its derivatives, untouched, but for the 1 x 1 kernels, which are matrix
products there as well. On a CPU XLA's convolution is slow in three places (benchmarks/RESULTS.md): 1 x 1 kernels, which
become matrix products; their kernel's gradient over large maps, which is summed image by image; and the gradient of a
strided convolution, which is put together from dense convolutions instead of one over a map full of zeros. All of it is
the same sum in another order.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# XLA's own kernels for reductions, and Eigen's, not YNNPACK's, for convolutions and products.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    "xla_disable_hlo_passes": "cse_barrier_expander",
}

_NHWC = ("NHWC", "HWIO", "NHWC")


@functools.cache
def compiler_options() -> dict[str, str]:
    """What `jax.jit(..., compiler_options=...)` should be given for a network.

    Returns:
        Options of the CPU compiler where that is the default backend and knows them; nothing elsewhere.

    Examples:
        >>> double = jax.jit(lambda x: 2 * x, compiler_options=compiler_options())
        >>> float(double(1.5))
        3.0
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=_CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # the option is experimental; without it everything is slower but right
        return {}
    return _CPU_OPTIONS


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Float[Array, "b h w i"], kernel: Float[Array, "s s i o"], stride: int = 1) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation with a border of `s // 2` zeros on every side.

    Args:
        x: feature maps `[b, h, w, i]`.
        kernel: odd in size, `[s, s, i, o]`, of the type of `x`.
        stride: of both axes.

    Returns:
        `[b, h', w', o]` with `h' = ceil(h / stride)`.

    Examples:
        >>> convolve(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), 2)[0, ..., 0].tolist()
        [[4.0, 4.0], [4.0, 4.0]]
    """
    if kernel.shape[0] > 1:
        return _convolution(x, kernel, stride)
    x = x[:, ::stride, ::stride]
    return jnp.matmul(_rows(x), kernel[0, 0]).reshape(*x.shape[:3], -1)


def _rows(x):
    """Pixels of all images as the rows of one matrix: the CPU compiler transposes operands of any other form."""
    return x.reshape(-1, x.shape[-1])


def _convolution(x, kernel, stride):
    # torch pads (1, 1) where "SAME" at stride 2 pads (0, 1), so the padding is written out.
    border = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (border, border), dimension_numbers=_NHWC)


def _forward(x, kernel, stride):
    x = _computed_once(x)
    return convolve(x, kernel, stride), (x, kernel)


def _computed_once(x):
    """Keeps the CPU compiler from computing what made an array again for each of its uses."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def _backward(stride, residuals, gradient):
    x, kernel = residuals
    gradient = _computed_once(gradient)
    if kernel.shape[0] == 1:
        return _product_gradients(stride, x, kernel, gradient)
    default = functools.partial(_default_gradients, stride)
    return jax.lax.platform_dependent(
        x, kernel, gradient, cpu=functools.partial(_cpu_gradients, stride), default=default
    )


def _default_gradients(stride, x, kernel, gradient):
    return jax.vjp(lambda x, kernel: _convolution(x, kernel, stride), x, kernel)[1](gradient)


def _cpu_gradients(stride, x, kernel, gradient):
    by_x, by_kernel = _default_gradients(stride, x, kernel, gradient)
    if stride == 2 and kernel.shape[0] == 3:
        by_x = _strided_gradient(x, kernel, gradient)
    return by_x, by_kernel


def _product_gradients(stride, x, kernel, gradient):
    seen = x[:, ::stride, ::stride]
    by_kernel = jnp.matmul(_rows(seen).T, _rows(gradient))[None, None]
    by_seen = jnp.matmul(_rows(gradient), kernel[0, 0].T).reshape(seen.shape)
    skipped = [(0, (size - 1) % stride, stride - 1) for size in x.shape[1:3]]
    return jax.lax.pad(by_seen, jnp.zeros((), x.dtype), [(0, 0, 0), *skipped, (0, 0, 0)]), by_kernel


def _strided_gradient(x, kernel, gradient):
    """By the input of a 3 x 3 convolution at stride 2: every second row and column sees taps of its own."""
    b, h, w, i = x.shape
    _, h2, w2, _ = gradient.shape
    rows = []
    for row_taps in ((1,), (2, 0)):
        columns = []
        for column_taps in ((1,), (2, 0)):
            part = kernel[jnp.array(row_taps)][:, jnp.array(column_taps)].transpose(0, 1, 3, 2)
            border = ((0, len(row_taps) - 1), (0, len(column_taps) - 1))
            columns.append(jax.lax.conv_general_dilated(gradient, part, (1, 1), border, dimension_numbers=_NHWC))
        rows.append(jnp.stack(columns, 3))
    return jnp.stack(rows, 2).reshape(b, 2 * h2, 2 * w2, i)[:, :h, :w]


convolve.defvjp(_forward, _backward)
