"""Convolution, and what the CPU compiler must be told to do it at speed; benchmarks/RESULTS.md has the gains.

Nothing here changes what a GPU or TPU is given: XLA's own convolution and its derivatives.
"""

import jax
from jaxtyping import Array, Float

from distcam_jax.compiler import known_options

_CPU_OPTIONS = {
    # Reductions by YNNPACK, convolutions and products by Eigen: each is the faster one at its own.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    # By default this pass drops every optimization barrier, those of `convolve` and of recomputation (`remat`) alike.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


def compiler_options() -> dict[str, str]:
    """What `jax.jit(..., compiler_options=...)` should be given for a network.

    Returns:
        Options of the CPU compiler where that is the default backend and knows them; nothing elsewhere. JAX takes
        them for an outermost `jax.jit` only.

    Examples:
        >>> double = jax.jit(lambda x: 2 * x, compiler_options=compiler_options())
        >>> float(double(1.5))
        3.0
    """
    return known_options(**_CPU_OPTIONS)


def convolve(x: Float[Array, "b h w i"], kernel: Float[Array, "s s i o"], stride: int = 1) -> Float[Array, "b h2 w2 o"]:
    """Cross-correlation with a border of `s // 2` zeros on every side.

    Args:
        x: feature maps `[b, h, w, i]`.
        kernel: odd in size, `[s, s, i, o]`, of the type of `x`.
        stride: of both axes.

    Returns:
        `[b, h', w', o]` with `h' = ceil(h / stride)`.

    Examples:
        >>> jnp = jax.numpy
        >>> convolve(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), 2)[0, ..., 0].tolist()
        [[4.0, 4.0], [4.0, 4.0]]
    """
    if jax.default_backend() == "cpu":
        # The CPU compiler would compute x again, transposed, for the kernel's gradient, and the gradient likewise.
        x = jax.lax.optimization_barrier(x)
    # torch pads (1, 1) where "SAME" at stride 2 pads (0, 1), so the padding is written out.
    border = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (border, border), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
