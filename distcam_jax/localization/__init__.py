"""Weakly-supervised localisation: from heatmaps to boxes, and how many of the boxes are right.

Everything but `upsample_heatmaps` runs on the host with NumPy and OpenCV; JAX arrays are copied there once. Boxes are
`x0, y0, x1, y1` in pixels with an exclusive end (`x1 - x0` is the width) unless a name says inclusive. Image sizes are
`width, height`. Three protocols are given in `PROTOCOLS`; `dataclasses.replace` makes others from them:

* `ilsvrc`: bilinear map divided by its maximum, threshold 0.2, largest 8-connected region, IoU 0.5.
* `wsol-v1`: MaxBoxAcc of Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
* `wsol-v2`: MaxBoxAccV2 of the same authors (arXiv:2007.04178): all contours, three IoU thresholds.

For data with masks there is the first authors' PxAP, `pixel_average_precision`.
"""

from distcam_jax.localization.boxes import best_iou, box_iou, center_box, scale_boxes, whole_image_box
from distcam_jax.localization.heatmaps import heatmap_to_box, heatmap_to_boxes
from distcam_jax.localization.pixels import PixelCounts, count_pixels, pixel_average_precision
from distcam_jax.localization.pool import BoxPool
from distcam_jax.localization.protocols import PROTOCOLS, Protocol
from distcam_jax.localization.scores import LocalizationScores, evaluate_boxes
from distcam_jax.localization.upsampling import upsample_heatmap, upsample_heatmaps

__all__ = [
    "PROTOCOLS",
    "BoxPool",
    "LocalizationScores",
    "PixelCounts",
    "Protocol",
    "best_iou",
    "box_iou",
    "center_box",
    "count_pixels",
    "evaluate_boxes",
    "heatmap_to_box",
    "heatmap_to_boxes",
    "pixel_average_precision",
    "scale_boxes",
    "upsample_heatmap",
    "upsample_heatmaps",
    "whole_image_box",
]
