"""Dist-CAM: class activation maps for networks without a classifier layer, in JAX.

The functions here take pooled features and feature maps of any model. Models, data sets, training, evaluation and
reports are modules of their own, imported by name.
"""

from distcam_jax.cam import (
    cam,
    channel_distances,
    class_prototypes,
    contrastive_dist_cam,
    contrastive_weights,
    dist_cam,
    dist_cam_pairs,
    global_average_pool,
    nearest_prototype,
    reciprocal_weights,
    weighted_channel_sum,
)

__version__ = "0.1.0"

__all__ = [
    "cam",
    "channel_distances",
    "class_prototypes",
    "contrastive_dist_cam",
    "contrastive_weights",
    "dist_cam",
    "dist_cam_pairs",
    "global_average_pool",
    "nearest_prototype",
    "reciprocal_weights",
    "weighted_channel_sum",
]
