"""From one heatmap to its boxes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Array, Float, Num

from distcam_jax.localization.boxes import check_sizes, scale_boxes
from distcam_jax.localization.levels import boxes_of_masks
from distcam_jax.localization.protocols import Protocol, find_protocol
from distcam_jax.localization.upsampling import as_heatmaps, upsample_heatmap


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
    boxes = heatmap_to_boxes(heatmap, image_size, threshold=threshold, protocol=protocol)
    return boxes[0] if len(boxes) else np.zeros(4)


def heatmap_to_boxes(
    heatmap: Float[Array | np.ndarray, "h w"],
    image_size: Sequence[Any] | Num[Array | np.ndarray, "2"],
    *,
    threshold: float | None = None,
    protocol: str | Protocol = "ilsvrc",
) -> Float[np.ndarray, "m 4"]:
    """Every box that a protocol takes from a heatmap, in pixels of the original image. Host function.

    For display, and for other data than the protocol's: the `wsol` protocols compare boxes at the size of the network's
    input with their end one pixel too far, as their source does; these boxes end where the region does.

    Args:
        heatmap: `[h, w]`, of any scale.
        image_size: width and height of the original image in pixels.
        threshold: fraction of the map's maximum; the protocol's own by default, which must then have only one.
        protocol: a name in `PROTOCOLS` or a `Protocol`. With `components="all_contours"` there is a box for every
            region and for every hole.

    Returns:
        `[m, 4]` of `x0, y0, x1, y1`, exclusive end, not rounded; m is 0 where nothing stands out, and at most 1 unless
        the protocol takes all contours.

    Raises:
        ValueError: for a map that is not `[h, w]` floats, a size that is not positive, or a protocol with several
            thresholds where none is chosen.

    Examples:
        >>> from distcam_jax.localization import PROTOCOLS
        >>> heatmap = np.array([[1.0, 0.0, 0.0, 0.0, 1.0]])
        >>> protocol = dataclasses.replace(PROTOCOLS["ilsvrc"], components="all_contours", input_size=5)
        >>> sorted(heatmap_to_boxes(heatmap, (50, 10), protocol=protocol).tolist())
        [[0.0, 0.0, 10.0, 10.0], [40.0, 0.0, 50.0, 10.0]]
    """
    protocol = dataclasses.replace(find_protocol(protocol), inclusive=False)
    if threshold is not None:
        protocol = dataclasses.replace(protocol, thresholds=(threshold,))
    if len(protocol.thresholds) != 1:
        raise ValueError(f"threshold must be chosen: the protocol has {len(protocol.thresholds)} of them")
    image_size = check_sizes("image_size", image_size, 1)
    boxes, _, _ = boxes_per_level(as_heatmaps("heatmap", heatmap, 2), protocol)
    return scale_boxes(boxes[boxes[:, 2] > 0], (protocol.input_size, protocol.input_size), image_size)


def boxes_per_level(heatmap, protocol: Protocol):
    """Boxes `[r, 4]` in pixels of the input, each distinct mask's first, and which mask each threshold has."""
    thresholds = np.array(protocol.thresholds)
    surface = scaled_map(heatmap, protocol)
    if surface is None:
        return np.zeros((1, 4)), np.zeros(1, int), np.zeros(len(thresholds), int)
    levels = (surface * 255).astype(np.uint8) if protocol.eight_bit else surface
    cutoffs = (thresholds * float(levels.max())).astype(levels.dtype)  # truncates where the levels are whole numbers
    if protocol.eight_bit:  # cutoffs with no pixel between them have the same mask
        occurring = np.flatnonzero(cv2.calcHist([levels], [0], None, [256], [0, 256])).astype(np.uint8)
        if protocol.strict:
            below = np.searchsorted(occurring, cutoffs, "right")
            cutoffs = np.where(below > 0, occurring[below - 1], cutoffs)
        else:
            cutoffs = occurring[np.searchsorted(occurring, cutoffs)]
    cutoffs, mask_of_threshold = np.unique(cutoffs, return_inverse=True)
    boxes, starts = boxes_of_masks(surface, levels, cutoffs, protocol)
    if protocol.inclusive:
        # The reference takes x + width as the inclusive end, one pixel too far, and only keeps it inside the map.
        boxes = np.minimum(boxes, protocol.input_size - 1)
    return boxes, starts, mask_of_threshold


def scaled_map(heatmap, protocol: Protocol):
    """The upsampled map with maximum 1, of 8 bits float64; None where nothing stands out or it is not finite."""
    if protocol.eight_bit:
        heatmap = heatmap.astype(np.float64)  # float32 moves some pixels across a level
    scaled = upsample_heatmap(heatmap, protocol.input_size, interpolation=protocol.interpolation)
    minimum, maximum = scaled.min(), scaled.max()
    if not (np.isfinite(minimum) and np.isfinite(maximum)):  # both are NaN where any value is
        return None
    with np.errstate(over="ignore"):  # very negative values over a very small maximum: -inf stays below any threshold
        if protocol.scaling == "minmax":
            if heatmap.min() == heatmap.max():
                return None  # upsampling leaves rounding errors in a constant map, which must not become a picture
            scaled -= minimum
            maximum = scaled.max()
        if not 0 < maximum < np.inf:
            return None
        scaled /= maximum
    return np.maximum(scaled, 0, out=scaled) if protocol.eight_bit else scaled
