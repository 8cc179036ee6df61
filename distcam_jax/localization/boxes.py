"""Overlap of boxes, and the boxes that need no model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Num


def box_iou(
    boxes_a: Num[Array | np.ndarray, "*a 4"], boxes_b: Num[Array | np.ndarray, "*b 4"], *, inclusive: bool = False
) -> Float[np.ndarray, "*c"]:
    """Intersection over union of boxes; leading axes broadcast. Host function.

    Args:
        boxes_a: `[..., 4]` of `x0, y0, x1, y1`.
        boxes_b: `[..., 4]`, likewise.
        inclusive: adds 1 to every side length, for boxes whose end is their last pixel.

    Returns:
        `[...]` in [0, 1]; 0 where neither box has an area.

    Raises:
        ValueError: where the last axis is not 4.

    Examples:
        >>> box_iou(np.array([[0, 0, 4, 4], [9, 9, 10, 10]]), np.array([0, 0, 2, 4]))
        array([0.5, 0. ])
        >>> box_iou(np.array([0, 0, 3, 3]), np.array([0, 0, 1, 3]), inclusive=True).item()
        0.5
    """
    boxes_a, boxes_b = np.asarray(boxes_a, np.float64), np.asarray(boxes_b, np.float64)
    for name, boxes in (("boxes_a", boxes_a), ("boxes_b", boxes_b)):
        if boxes.ndim == 0 or boxes.shape[-1] != 4:
            raise ValueError(f"{name} must have shape [..., 4], got {boxes.shape}")
    low = np.maximum(boxes_a[..., :2], boxes_b[..., :2])
    high = np.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    intersection, area_a, area_b = (
        np.maximum(stop - start + inclusive, 0).prod(axis=-1)
        for start, stop in ((low, high), (boxes_a[..., :2], boxes_a[..., 2:]), (boxes_b[..., :2], boxes_b[..., 2:]))
    )
    union = area_a + area_b - intersection
    return np.asarray(intersection / np.where(union > 0, union, 1))


def best_iou(
    box: Num[Array | np.ndarray, "4"], true_boxes: Num[Array | np.ndarray, "m 4"], *, inclusive: bool = False
) -> float:
    """The largest IoU of one box with any true box of its image. Host function.

    Args:
        box: `x0, y0, x1, y1`.
        true_boxes: `[m, 4]`, at least one.
        inclusive: as in `box_iou`.

    Returns:
        The IoU in [0, 1].

    Raises:
        ValueError: for wrong shapes or no true box.

    Examples:
        >>> best_iou(np.array([0, 0, 4, 4]), np.array([[8, 8, 9, 9], [0, 0, 4, 3]]))
        0.75
    """
    true_boxes = np.asarray(true_boxes)
    if true_boxes.ndim != 2 or len(true_boxes) == 0:
        raise ValueError(f"true_boxes must have shape [m, 4] with at least one box, got {true_boxes.shape}")
    return float(box_iou(np.asarray(box), true_boxes, inclusive=inclusive).max())


def center_box(
    image_size: Sequence[Any] | Num[Array | np.ndarray, "*b 2"], fraction: float = 0.8
) -> Float[np.ndarray, "*b 4"]:
    """Baseline: a box in the middle of the image with `fraction` of each of its sides. Host function.

    Args:
        image_size: `[..., 2]`, width and height in pixels.
        fraction: share of each side, in (0, 1].

    Returns:
        `[..., 4]` of `x0, y0, x1, y1`, exclusive end, not rounded.

    Raises:
        ValueError: for a size that is not positive or a fraction outside (0, 1].

    Examples:
        >>> center_box((100, 50)).round(6).tolist()
        [10.0, 5.0, 90.0, 45.0]
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    sizes = check_sizes("image_size", image_size)
    return np.concatenate([sizes * ((1 - fraction) / 2), sizes * ((1 + fraction) / 2)], axis=-1)


def whole_image_box(image_size: Sequence[Any] | Num[Array | np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b 4"]:
    """Baseline: the whole image as the box. Host function.

    Args:
        image_size: `[..., 2]`, width and height in pixels.

    Returns:
        `[..., 4]`: 0, 0, width, height.

    Raises:
        ValueError: for a size that is not positive.

    Examples:
        >>> whole_image_box((100, 50)).tolist()
        [0.0, 0.0, 100.0, 50.0]
    """
    return center_box(image_size, 1.0)


def scale_boxes(
    boxes: Num[Array | np.ndarray, "*b 4"],
    from_size: Sequence[Any] | Num[Array | np.ndarray, "2"],
    to_size: Sequence[Any] | Num[Array | np.ndarray, "2"],
) -> Float[np.ndarray, "*b 4"]:
    """Boxes of an image that is resized straight to another size, aspect not kept. Host function.

    Args:
        boxes: `[..., 4]` of `x0, y0, x1, y1`, exclusive end.
        from_size: width and height in pixels of the image that the boxes belong to, such as the network's input.
        to_size: those of the other image, such as the original.

    Returns:
        `[..., 4]`, not rounded.

    Raises:
        ValueError: where the boxes' last axis is not 4, or for a size that is not positive.

    Examples:
        >>> scale_boxes(np.array([56, 0, 112, 224]), (224, 224), (400, 300)).tolist()
        [100.0, 0.0, 200.0, 300.0]
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have shape [..., 4], got {boxes.shape}")
    from_size, to_size = check_sizes("from_size", from_size, 1), check_sizes("to_size", to_size, 1)
    return boxes * np.tile(to_size, 2) / np.tile(from_size, 2)


def check_sizes(name: str, sizes, ndim: int | None = None) -> np.ndarray:
    """Image sizes as float64 `[..., 2]` with `ndim` axes; a ValueError names the first that is not positive."""
    sizes = np.asarray(sizes)
    shape = {None: "[..., 2]", 1: "[2]", 2: "[n, 2]"}[ndim]
    if sizes.ndim == 0 or sizes.shape[-1] != 2 or ndim not in (None, sizes.ndim) or sizes.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be numbers of shape {shape}, got {sizes.dtype} {sizes.shape}")
    wrong = np.argwhere(~(sizes > 0).all(axis=-1))
    if len(wrong):
        index = tuple(wrong[0].tolist())
        where = name if sizes.ndim == 1 else f"{name}[{', '.join(map(str, index))}]"
        raise ValueError(f"{where} must be a positive width and height, got {sizes[index].tolist()}")
    return sizes.astype(np.float64)
