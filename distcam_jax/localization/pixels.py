"""Localisation against masks: every pixel of every image is a sample, its heatmap value is its score."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from distcam_jax.localization.heatmaps import scaled_map
from distcam_jax.localization.protocols import Protocol, find_protocol
from distcam_jax.localization.upsampling import as_heatmaps


@dataclasses.dataclass(frozen=True, eq=False)
class PixelCounts:
    """Pixels of the object and of the background by their score; `+` adds the counts of batches up.

    Attributes:
        thresholds: rising from 0, below 1.
        object_pixels: `[thresholds + 1]`, how many pixels of the object score from a threshold up to the next, the last
            threshold up to 1, and exactly 1 or more.
        background_pixels: the same of the pixels outside the object. Those to ignore are in neither.
    """

    thresholds: Float[np.ndarray, " thresholds"]
    object_pixels: Int[np.ndarray, " bins"]
    background_pixels: Int[np.ndarray, " bins"]

    def __add__(self, other: "PixelCounts") -> "PixelCounts":
        """Counts over the images of both; a ValueError where their thresholds differ."""
        if not isinstance(other, PixelCounts):
            return NotImplemented
        if not np.array_equal(self.thresholds, other.thresholds):
            raise ValueError("thresholds must be the same in counts that are added up")
        object_pixels = self.object_pixels + other.object_pixels
        return PixelCounts(self.thresholds, object_pixels, self.background_pixels + other.background_pixels)

    @functools.cached_property
    def precision(self) -> Float[np.ndarray, " bins"]:
        """Share of object among pixels that score at least 1, at least the last threshold, ..., at least the first.

        0 where no pixel does.
        """
        found, wrong = self.object_pixels[::-1].cumsum(), self.background_pixels[::-1].cumsum()
        return found / np.maximum(found + wrong, 1)

    @functools.cached_property
    def recall(self) -> Float[np.ndarray, " bins"]:
        """Share of the object's pixels that score so much, in the order of `precision`."""
        if self.object_pixels.sum() == 0:
            raise ValueError("masks must hold at least one pixel of an object, got none")
        return self.object_pixels[::-1].cumsum() / self.object_pixels.sum()

    @property
    def average_precision(self) -> float:
        """Area under the curve of precision over recall, a step a threshold, in [0, 1]: PxAP."""
        return float((self.precision * np.diff(self.recall, prepend=0)).sum())


def pixel_average_precision(
    heatmaps: Float[Array | np.ndarray, "n h w"],
    masks: Sequence[Any] | Shaped[Array | np.ndarray, "n height width"],
    ignore_masks: Sequence[Any] | Shaped[Array | np.ndarray, "n height width"] | None = None,
    *,
    protocol: str | Protocol = "wsol-v1",
) -> float:
    """PxAP: the average precision of all pixels of all images, object against background. Host function.

    `PxAP = Σ_i Precision(τ_i) (Recall(τ_i) − Recall(τ_{i−1}))` over falling thresholds. Where images come in batches,
    add the `count_pixels` of each.

    Args:
        heatmaps: as in `count_pixels`.
        masks: as in `count_pixels`.
        ignore_masks: as in `count_pixels`.
        protocol: as in `count_pixels`.

    Returns:
        The area in [0, 1]; its source prints 100 times that.

    Raises:
        ValueError: as `count_pixels`, and where no image has a pixel of an object.

    References:
        Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020.

    Examples:
        >>> from distcam_jax.localization import PROTOCOLS
        >>> protocol = dataclasses.replace(PROTOCOLS["wsol-v1"], input_size=2)
        >>> heatmap = np.array([[[0.0, 0.2], [0.9, 1.0]]])
        >>> masks = np.array([[[False, True], [False, True]]])
        >>> round(pixel_average_precision(heatmap, masks, protocol=protocol), 6)  # 1 / 1 · 1 / 2 + 2 / 3 · 1 / 2
        0.833333
    """
    return count_pixels(heatmaps, masks, ignore_masks, protocol=protocol).average_precision


def count_pixels(
    heatmaps: Float[Array | np.ndarray, "n h w"],
    masks: Sequence[Any] | Shaped[Array | np.ndarray, "n height width"],
    ignore_masks: Sequence[Any] | Shaped[Array | np.ndarray, "n height width"] | None = None,
    *,
    protocol: str | Protocol = "wsol-v1",
) -> PixelCounts:
    """Counts the pixels of a batch by their score. Host function.

    Maps are upsampled to the input's size and scaled to [0, 1] as for the boxes, but not cut to 8 bits. Masks are
    resized to it by taking nearest pixels.

    Args:
        heatmaps: `[n, h, w]`, one map an image, of any scale. A constant map, or one with NaN or infinite values,
            scores 0 everywhere.
        masks: n arrays `[height, width]` of bool or whole numbers, of any size; what is not 0 is the object: the union
            of all instances.
        ignore_masks: likewise, pixels that are not counted unless they are of the object; None ignores none.
        protocol: a name in `PROTOCOLS` or a `Protocol` that scales by "minmax": its interpolation, input size and
            thresholds, rising from 0, are used.

    Returns:
        Counts that add up over batches; `.average_precision` is the figure to report.

    Raises:
        ValueError: for an unknown or unfit protocol, wrong shapes or dtypes, or lengths that differ.

    Examples:
        >>> counts = count_pixels(np.array([[[0.0, 1.0]]]), [np.array([[False, True]])])
        >>> (counts + counts).average_precision
        1.0
    """
    protocol = dataclasses.replace(find_protocol(protocol), eight_bit=True)  # for float64 and one scaling
    edges = np.array([*protocol.thresholds, 1.0])
    if protocol.scaling != "minmax" or edges[0] != 0 or (np.diff(edges) <= 0).any():
        raise ValueError("protocol must have scaling='minmax' and thresholds that rise from 0, all below 1")
    heatmaps = as_heatmaps("heatmaps", heatmaps, 3)
    masks = _check_masks("masks", masks, len(heatmaps))
    ignored = [None] * len(masks) if ignore_masks is None else _check_masks("ignore_masks", ignore_masks, len(heatmaps))
    counts = np.zeros((3, len(edges)), np.int64)  # of background, object and ignored
    for heatmap, mask, ignore in zip(heatmaps, masks, ignored, strict=True):
        kinds = _kinds(mask, ignore, protocol.input_size)
        scores = scaled_map(heatmap, protocol)
        scores = np.zeros(kinds.shape) if scores is None else scores
        bins = kinds * len(edges) + np.searchsorted(edges, scores, "right") - 1
        counts += np.bincount(bins.ravel(), minlength=counts.size).reshape(counts.shape)
    return PixelCounts(edges[:-1], counts[1], counts[0])


def _kinds(mask, ignore, size: int) -> Int[np.ndarray, "size size"]:
    """0 for the background, 1 for the object, 2 for what is ignored, at the size of the network's input."""
    kinds = _resized(mask, size).astype(np.int64)
    if ignore is not None:
        kinds[_resized(ignore, size) & (kinds == 0)] = 2
    return kinds


def _resized(mask, size: int):
    return cv2.resize((mask != 0).view(np.uint8), (size, size), None, 0, 0, cv2.INTER_NEAREST).astype(bool)


def _check_masks(name: str, masks, count: int) -> list[np.ndarray]:
    """Masks on the host; a ValueError for a wrong number, shape or dtype."""
    if len(masks) != count:
        raise ValueError(f"{name} must have one entry an image, got {len(masks)} for {count} heatmaps")
    masks = [np.asarray(mask) for mask in masks]
    for index, mask in enumerate(masks):
        if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "biu":
            raise ValueError(
                f"{name}[{index}] must be bool or whole numbers of shape [height, width], got {mask.dtype} {mask.shape}"
            )
    return masks
