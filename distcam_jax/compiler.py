"""What the CPU's compiler may be told, as long as it knows it."""

import functools

import jax
import jax.numpy as jnp


def known_options(**options: str) -> dict[str, str]:
    """Options for `jax.jit(..., compiler_options=...)`, which takes them for an outermost `jax.jit` only.

    Args:
        **options: experimental options of the CPU's compiler, without which all is slower but right.

    Returns:
        The options where the CPU is the default back end and its compiler knows all of them; nothing elsewhere.

    Examples:
        >>> options = known_options(xla_disable_hlo_passes="cpu-parallel-task-assigner")
        >>> float(jax.jit(lambda x: 2 * x, compiler_options=options)(1.5))
        3.0
        >>> known_options(xla_that_nobody_knows="1")
        {}
    """
    return options if jax.default_backend() == "cpu" and _are_known(tuple(sorted(options.items()))) else {}


@functools.cache
def _are_known(options: tuple[tuple[str, str], ...]) -> bool:
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
