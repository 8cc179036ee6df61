"""Scores over a set of images."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Num

from distcam_jax.localization.boxes import box_iou, check_sizes
from distcam_jax.localization.heatmaps import boxes_per_level
from distcam_jax.localization.protocols import Protocol, find_protocol
from distcam_jax.localization.upsampling import as_heatmaps


@dataclasses.dataclass(frozen=True, eq=False)
class LocalizationScores:
    """Which images are localised at which threshold and IoU.

    Attributes:
        best_iou: `[n, thresholds]`, the largest IoU between a box of the map and a true box of the image.
        thresholds: `[thresholds]`, as in the protocol.
        ious: `[ious]`, as in the protocol.
    """

    best_iou: Float[np.ndarray, "n thresholds"]
    thresholds: Float[np.ndarray, " thresholds"]
    ious: Float[np.ndarray, " ious"]

    @functools.cached_property
    def correct(self) -> Bool[np.ndarray, "n thresholds ious"]:
        """Whether the image's best IoU reaches the wanted one."""
        return self.best_iou[:, :, None] >= self.ious

    @functools.cached_property
    def accuracy(self) -> Float[np.ndarray, "thresholds ious"]:
        """Share of images that are right, in [0, 1]."""
        return self.correct.mean(axis=0)

    @property
    def max_box_acc(self) -> float:
        """Mean over the IoUs of the best accuracy over the thresholds, which may differ from IoU to IoU."""
        return float(self.accuracy.max(axis=0).mean())

    @property
    def best_threshold(self) -> float:
        """The one threshold with the highest accuracy averaged over the IoUs; the lowest-placed one on ties."""
        return float(self.thresholds[self.accuracy.mean(axis=1).argmax()])


def evaluate_boxes(
    heatmaps: Float[Array | np.ndarray, "n h w"],
    boxes: Sequence[Any] | Num[Array | np.ndarray, "n m 4"],
    image_sizes: Num[Array | np.ndarray, "n 2"],
    protocol: str | Protocol = "ilsvrc",
) -> LocalizationScores:
    """Localises each image by its heatmap and compares with its true boxes. Host function.

    Args:
        heatmaps: `[n, h, w]`, one map an image, of any scale. The map covers the whole image (resized straight to the
            network's input, no crop). A map with NaN or infinite values gives the empty box.
        boxes: n arrays `[m, 4]` of `x0, y0, x1, y1` in pixels of the original image, exclusive end, at least one box
            each. Boxes may reach outside the image.
        image_sizes: `[n, 2]`, width and height of the original images in pixels.
        protocol: a name in `PROTOCOLS` or a `Protocol`.

    Returns:
        The scores; `.max_box_acc` is the figure to report.

    Raises:
        ValueError: for an unknown protocol, wrong shapes or dtypes, lengths that differ, an image without true boxes, a
            box with `x1 <= x0` or `y1 <= y0`, or an image size that is not positive.

    Examples:
        >>> heatmap = np.zeros((1, 4, 4), np.float32)
        >>> heatmap[0, 1:3, 1:3] = 1
        >>> scores = evaluate_boxes(heatmap, [np.array([[20, 10, 60, 30]])], np.array([[80, 40]]))
        >>> scores.best_iou.round(3), scores.max_box_acc
        (array([[0.588]]), 1.0)
    """
    protocol = find_protocol(protocol)
    heatmaps, boxes, image_sizes = _check_images(heatmaps, boxes, image_sizes)
    best = np.stack([_best_ious(*image, protocol) for image in zip(heatmaps, boxes, image_sizes, strict=True)])
    return LocalizationScores(best, np.array(protocol.thresholds), np.array(protocol.ious))


def _best_ious(heatmap, true_boxes, image_size, protocol: Protocol) -> Float[np.ndarray, " thresholds"]:
    """One image's best IoU at every threshold; each distinct mask is looked at once."""
    boxes, starts, mask_of_threshold = boxes_per_level(heatmap, protocol)
    image_size = np.tile(image_size, 2)
    if protocol.inclusive:  # multiplied before divided, as the reference does: the other order truncates differently
        true_boxes = np.trunc((true_boxes - [0, 0, 1, 1]) * protocol.input_size / image_size)
    else:
        boxes = boxes * image_size / protocol.input_size
    best = box_iou(boxes[:, None], true_boxes, inclusive=protocol.inclusive).max(axis=1)
    return np.maximum.reduceat(best, starts)[mask_of_threshold]


def _check_images(heatmaps, boxes, image_sizes):
    """The arguments as arrays on the host: maps `[n, h, w]`, n float64 arrays `[m, 4]`, sizes `[n, 2]`."""
    heatmaps = as_heatmaps("heatmaps", heatmaps, 3)
    image_sizes = check_sizes("image_sizes", image_sizes, 2)
    if not len(heatmaps) == len(boxes) == len(image_sizes):
        lengths = f"{len(heatmaps)} heatmaps, {len(boxes)} boxes, {len(image_sizes)} image_sizes"
        raise ValueError(f"heatmaps, boxes and image_sizes must have one entry an image, got {lengths}")
    return heatmaps, [_check_boxes(index, image_boxes) for index, image_boxes in enumerate(boxes)], image_sizes


def _check_boxes(index: int, boxes) -> np.ndarray:
    """The true boxes of one image as float64 `[m, 4]`."""
    boxes = np.asarray(boxes)
    if boxes.ndim and len(boxes) == 0:
        raise ValueError(f"boxes[{index}] has no true box: leave the image out")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        raise ValueError(f"boxes[{index}] must be numbers of shape [m, 4], got {boxes.dtype} {boxes.shape}")
    boxes = boxes.astype(np.float64)
    wrong = ~(boxes[:, 2:] > boxes[:, :2]).all(axis=1) | ~np.isfinite(boxes).all(axis=1)
    if wrong.any():
        raise ValueError(
            f"boxes[{index}] must have x1 > x0 and y1 > y0 (exclusive end), got {boxes[wrong][0].tolist()}"
        )
    return boxes
