"""What the array functions check and convert at their boundary."""

import jax
import jax.numpy as jnp
import numpy as np


def one_line(error: BaseException) -> str:
    """The text of an error, whatever its line breaks."""
    return " ".join(str(error).split())


def integer_labels(labels, size: int, *, name: str = "labels") -> jax.Array:
    """Class labels, one for each of `size` samples, as an array; a ValueError where they are not."""
    labels = jnp.asarray(labels)
    if labels.shape != (size,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name}: want {size} integers, one a sample, got {labels.dtype} of shape {labels.shape}")
    return labels


def check_positive_integers(**arguments) -> None:
    """Refuses arguments `name=value` that are no integers of at least 1."""
    for name, value in arguments.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: want a positive integer, got {value!r}")


def working_arrays(**arguments) -> list[jax.Array]:
    """Checks each `name=(array, axes)` and returns the arrays in their common type, float32 or float64.

    `axes` is text such as `"... h w k"`. Axes of one name have one size; none but n is empty.
    """
    arrays, sizes, leading = [], {}, {}
    for name, (value, axes) in arguments.items():
        array, names = jnp.asarray(value), axes.removeprefix("... ").split()
        want, got = f"{name}: want axes [{axes}]", f"got shape {array.shape}"
        leading[name], shape = array.shape[: -len(names)], array.shape[-len(names) :]
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: want a floating type, got {array.dtype}")
        if len(shape) < len(names) or (leading[name] and not axes.startswith("...")):
            raise ValueError(f"{want}, {got}")
        for axis, size in zip(names, shape, strict=True):
            if size == 0 and axis != "n":
                raise ValueError(f"{want} with {axis} not empty, {got}")
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"{want} with {axis} = {sizes[axis]} as in {next(iter(arguments))}, {got}")
        arrays.append(array)
    try:
        np.broadcast_shapes(*leading.values())
    except ValueError:
        raise ValueError(f"{', '.join(arguments)}: want leading axes that broadcast, got {leading}") from None
    dtype = jnp.float64 if any(array.dtype == jnp.float64 for array in arrays) else jnp.float32
    return [array.astype(dtype) for array in arrays]
