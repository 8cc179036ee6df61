"""Weakly-supervised localisation: from heatmaps to boxes, and how many of the boxes are right.

Everything here runs on the host with NumPy and OpenCV; JAX arrays are copied there once. Boxes are `x0, y0, x1, y1` in
pixels with an exclusive end (`x1 - x0` is the width) unless a name says inclusive. Image sizes are `width, height`.
Three protocols are given in `PROTOCOLS`; `dataclasses.replace` makes others from them:

* `ilsvrc`: bilinear map divided by its maximum, threshold 0.2, largest 8-connected region, IoU 0.5.
* `wsol-v1`: MaxBoxAcc of Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
* `wsol-v2`: MaxBoxAccV2 of the same authors (arXiv:2007.04178): all contours, three IoU thresholds.
"""

from distcam_jax.localization.boxes import best_iou, box_iou, center_box, whole_image_box
from distcam_jax.localization.heatmaps import heatmap_to_box, upsample_heatmap
from distcam_jax.localization.protocols import PROTOCOLS, Protocol
from distcam_jax.localization.scores import LocalizationScores, evaluate_boxes

__all__ = [
    "PROTOCOLS",
    "LocalizationScores",
    "Protocol",
    "best_iou",
    "box_iou",
    "center_box",
    "evaluate_boxes",
    "heatmap_to_box",
    "upsample_heatmap",
    "whole_image_box",
]
