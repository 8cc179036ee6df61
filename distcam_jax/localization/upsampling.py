"""Heatmaps at the size of the image: on the host as OpenCV does it, and on the device for display."""

import functools

import cv2
import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from distcam_jax.checks import working_arrays

_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_CUBIC = -0.75  # OpenCV's sharpness of the bicubic; jax.image.resize takes -0.5


def upsample_heatmap(
    heatmap: Float[Array | np.ndarray, "h w"], size: int | tuple[int, int], *, interpolation: str = "bilinear"
) -> Float[np.ndarray, "height width"]:
    """Resizes a heatmap with half-pixel centres and clamped edges, as OpenCV does. Host function.

    Args:
        heatmap: `[h, w]`; float64 stays float64, every other float becomes float32.
        size: side of the square result, or its width and height, in pixels.
        interpolation: `"bilinear"` or `"bicubic"`; neither smooths before it shrinks.

    Returns:
        `[height, width]`.

    Raises:
        ValueError: for a map that is not `[h, w]` floats, a size below 1, or an unknown interpolation.

    Examples:
        >>> upsample_heatmap(np.array([[0.0, 1.0]]), (4, 1))
        array([[0.  , 0.25, 0.75, 1.  ]])
    """
    target = _check_target(size, interpolation)
    return cv2.resize(as_heatmaps("heatmap", heatmap, 2), target, None, 0, 0, _INTERPOLATIONS[interpolation])


@functools.partial(jax.jit, static_argnames=("size", "interpolation"))
def upsample_heatmaps(
    heatmaps: Float[Array | np.ndarray, "*b h w"], size: int | tuple[int, int], *, interpolation: str = "bilinear"
) -> Float[Array, "*b height width"]:
    """Resizes heatmaps on the device as `upsample_heatmap` does, to about 1e-6 of their range. Jitted.

    For display: boxes are found on the host's maps, as the last digit moves pixels across a threshold. A bilinear pixel
    is `low + share · (high − low)` of its neighbours, so that pixels between equal cells are exactly equal: a constant
    map stays constant to the last bit and its ties stay ties. The bicubic is `R M Cᵀ`, with a small matrix of weights
    for the rows and one for the columns.

    Args:
        heatmaps: `[..., h, w]`.
        size: side of the square results, or their width and height, in pixels.
        interpolation: `"bilinear"` or `"bicubic"`; neither smooths before it shrinks.

    Returns:
        `[..., height, width]`.

    Raises:
        ValueError: for maps that are not `[..., h, w]` floats, a size below 1, or an unknown interpolation.

    Examples:
        >>> upsample_heatmaps(np.array([[0.0, 1.0]]), (4, 1)).tolist()
        [[0.0, 0.25, 0.75, 1.0]]
    """
    width, height = _check_target(size, interpolation)
    (heatmaps,) = working_arrays(heatmaps=(heatmaps, "... h w"))
    if interpolation == "bilinear":
        return _interpolate(_interpolate(heatmaps, height, -2), width, -1)
    rows, columns = (
        jnp.asarray(_cubic_weights(source, target), heatmaps.dtype)
        for source, target in zip(heatmaps.shape[-2:], (height, width), strict=True)
    )
    return jnp.einsum("ph,...hw,qw->...pq", rows, heatmaps, columns, precision=lax.Precision.HIGHEST)


def _interpolate(maps, size: int, axis: int):
    cells = maps.shape[axis]
    places = np.clip((np.arange(size) + 0.5) * (cells / size) - 0.5, 0, cells - 1)
    low = np.floor(places).astype(np.int32)
    high = np.minimum(low + 1, cells - 1)
    share = (places - low).astype(maps.dtype).reshape(-1, *(1,) * (-1 - axis))
    start = jnp.take(maps, low, axis)
    return start + share * (jnp.take(maps, high, axis) - start)


def _cubic_weights(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """How much each source pixel counts in each target pixel of one axis; Keys, Cubic Convolution, 1981."""
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    base = np.floor(position).astype(int)
    matrix = np.zeros((target, source))
    for offset in (-1, 0, 1, 2):
        weight = _cubic_kernel(np.abs(position - base - offset))
        np.add.at(matrix, (np.arange(target), np.clip(base + offset, 0, source - 1)), weight)
    return matrix


def _cubic_kernel(distance):
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def _check_target(size, interpolation: str) -> tuple[int, int]:
    """Width and height of the result; a ValueError for a wrong size or an unknown interpolation."""
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, got {interpolation!r}")
    width, height = (size, size) if isinstance(size, int | np.integer) else size
    if min(width, height) < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    return int(width), int(height)


def as_heatmaps(name: str, heatmaps, ndim: int) -> np.ndarray:
    """Heatmaps on the host, float64 where they were and else float32; ValueError for another rank or dtype."""
    heatmaps = np.asarray(heatmaps)
    if heatmaps.ndim != ndim or heatmaps.size == 0:
        wanted = {2: "[h, w]", 3: "[n, h, w]"}[ndim]
        raise ValueError(f"{name} must have shape {wanted} and not be empty, got {heatmaps.shape}")
    if not jnp.issubdtype(heatmaps.dtype, jnp.floating):  # NumPy's own check does not know bfloat16
        raise ValueError(f"{name} must be floats, got {heatmaps.dtype}")
    return heatmaps if heatmaps.dtype == np.float64 else heatmaps.astype(np.float32, copy=False)
