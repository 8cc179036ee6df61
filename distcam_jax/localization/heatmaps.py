"""From one heatmap to its boxes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Num

from distcam_jax.localization.boxes import check_sizes
from distcam_jax.localization.protocols import Protocol, find_protocol

_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


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
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, got {interpolation!r}")
    width, height = (size, size) if isinstance(size, int | np.integer) else size
    if min(width, height) < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    return cv2.resize(as_heatmaps("heatmap", heatmap, 2), (width, height), None, 0, 0, _INTERPOLATIONS[interpolation])


def heatmap_to_box(
    heatmap: Float[Array | np.ndarray, "h w"],
    image_size: Sequence[Any] | Num[Array | np.ndarray, "2"],
    *,
    threshold: float | None = None,
    protocol: str | Protocol = "ilsvrc",
) -> Float[np.ndarray, "4"]:
    """The one box of a heatmap, in pixels of the original image. Host function.

    Args:
        heatmap: `[h, w]`, of any scale.
        image_size: width and height of the original image in pixels.
        threshold: fraction of the map's maximum; the protocol's own by default, which must then have only one.
        protocol: `"ilsvrc"` or a `Protocol` with `components="largest_region"` and `inclusive=False`.

    Returns:
        `x0, y0, x1, y1`, exclusive end, not rounded; zeros (the empty box) where the map has no positive value.

    Raises:
        ValueError: for a map that is not `[h, w]` floats, a size that is not positive, a protocol that gives several or
            inclusive boxes, or one with several thresholds where none is chosen.

    Examples:
        >>> heatmap_to_box(np.eye(2, dtype=np.float32)[:, :1], (200, 100), threshold=0.5).tolist()
        [0.0, 0.0, 200.0, 50.0]
    """
    protocol = find_protocol(protocol)
    if protocol.inclusive or protocol.components != "largest_region":
        raise ValueError("protocol must have components='largest_region' and inclusive=False to give one exclusive box")
    if threshold is not None:
        protocol = dataclasses.replace(protocol, thresholds=(threshold,))
    if len(protocol.thresholds) != 1:
        raise ValueError(f"threshold must be chosen: the protocol has {len(protocol.thresholds)} of them")
    frame_to_image = check_sizes("image_size", image_size, 1) / protocol.input_size
    boxes, _ = boxes_per_level(as_heatmaps("heatmap", heatmap, 2), protocol)
    return boxes[0][0] * np.tile(frame_to_image, 2)


def boxes_per_level(heatmap, protocol: Protocol):
    """Boxes `[m, 4]` in pixels of the input for each distinct cutoff, and the index of each threshold's cutoff."""
    thresholds = np.array(protocol.thresholds)
    levels = _scaled_map(heatmap, protocol)
    if levels is None:
        return [np.zeros((1, 4))], np.zeros(len(thresholds), int)
    cutoffs = (thresholds * float(levels.max())).astype(levels.dtype)  # truncates where the levels are whole numbers
    cutoffs, level_of_threshold = np.unique(cutoffs, return_inverse=True)
    masks = ((levels > cutoff if protocol.strict else levels >= cutoff).view(np.uint8) for cutoff in cutoffs)
    return [_mask_to_boxes(mask, protocol) for mask in masks], level_of_threshold


def _scaled_map(heatmap, protocol: Protocol):
    """The upsampled map with maximum 1 (or 255 as uint8); None where nothing stands out or a value is not finite."""
    if protocol.eight_bit:
        heatmap = heatmap.astype(np.float64)  # float32 moves some pixels across a level
    scaled = upsample_heatmap(heatmap, protocol.input_size, interpolation=protocol.interpolation)
    if not np.isfinite(scaled).all():
        return None
    if protocol.scaling == "minmax":
        if heatmap.min() == heatmap.max():
            return None  # upsampling leaves rounding errors in a constant map, which must not become a picture
        scaled = scaled - scaled.min()
    maximum = scaled.max()
    if not 0 < maximum < np.inf:
        return None
    with np.errstate(over="ignore"):  # very negative values over a very small maximum: -inf stays below any threshold
        scaled = scaled / maximum
    return (scaled * 255).astype(np.uint8) if protocol.eight_bit else scaled


def _mask_to_boxes(mask, protocol: Protocol) -> Float[np.ndarray, "m 4"]:
    """Boxes of a uint8 mask as the protocol chooses them; the box of zeros where the mask is empty."""
    if protocol.components == "largest_region":
        rectangles = _largest_region(mask)
    else:
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        if protocol.components == "largest_contour" and contours:
            contours = [max(contours, key=cv2.contourArea)]
        rectangles = [cv2.boundingRect(contour) for contour in contours]
    if not rectangles:
        return np.zeros((1, 4))
    boxes = np.array(rectangles, np.float64)
    boxes[:, 2:] += boxes[:, :2]
    # The reference takes x + width as the inclusive end, one pixel too far, and only keeps it inside the map.
    return np.minimum(boxes, protocol.input_size - 1) if protocol.inclusive else boxes


def _largest_region(mask) -> list:
    """Left, top, width, height of the region with most pixels, in a list; the list is empty where the mask is."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:
        return []
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = np.flatnonzero(areas == areas.max()) + 1

    def first_pixel(label):
        top = stats[label, cv2.CC_STAT_TOP]
        return top, np.argmax(labels[top] == label)

    return [stats[min(largest, key=first_pixel), : cv2.CC_STAT_AREA]]  # OpenCV's labels are not in raster order


def as_heatmaps(name: str, heatmaps, ndim: int) -> np.ndarray:
    """Heatmaps on the host, float64 where they were and else float32; ValueError for another rank or dtype."""
    heatmaps = np.asarray(heatmaps)
    if heatmaps.ndim != ndim or heatmaps.size == 0:
        wanted = {2: "[h, w]", 3: "[n, h, w]"}[ndim]
        raise ValueError(f"{name} must have shape {wanted} and not be empty, got {heatmaps.shape}")
    if not jnp.issubdtype(heatmaps.dtype, jnp.floating):  # NumPy's own check does not know bfloat16
        raise ValueError(f"{name} must be floats, got {heatmaps.dtype}")
    return heatmaps if heatmaps.dtype == np.float64 else heatmaps.astype(np.float32, copy=False)
