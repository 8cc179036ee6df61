"""Heatmap methods behind one signature, `(features, context) -> heatmaps`, to compare them on one model.

* `catalogue`: `METHODS`, all of them by name.
* `maps`: their functions, with their options.
* `context`: what is asked about each image, and what stands for a class.
* `gradients`: Grad-CAM and Grad-CAM++ of any score, of any layer.
* `transfer`: gradient weights of training samples, for Grad-CAM of embedding models.
* `margins`: what speaks for a class less what speaks for its rivals.
* `decomposition`: similarities as exact sums over places, or pairs of places.
* `similarities`: what the others compare with.

Computation and results are float32 whatever floating type comes in; float64 stays where JAX's 64-bit mode is on.
Heatmaps are not scaled. Shapes and types are checked; values inside `jit` cannot be.

Dist-CAM is not the first heatmap for embedding models. Before it, similarities were decomposed exactly (Stylianou et
al., WACV 2019; Zhu et al., TIP 2021) and Grad-CAM adapted (Chen et al., WACV 2020); see the modules. It is compared
with these here.
"""

from distcam_jax.methods.catalogue import METHODS, Method, run_methods
from distcam_jax.methods.context import Context, nearest_samples
from distcam_jax.methods.decomposition import similarity_decomposition, similarity_map
from distcam_jax.methods.gradients import grad_cam, grad_cam_pp, similarity_score
from distcam_jax.methods.maps import (
    cam_maps,
    contrastive_maps,
    decomposition_maps,
    dist_cam_maps,
    energy_maps,
    grad_cam_maps,
    grad_cam_pp_maps,
    transfer_maps,
    uniform_maps,
)
from distcam_jax.methods.margins import margin_maps
from distcam_jax.methods.similarities import similarity
from distcam_jax.methods.transfer import transferred_weights, triplet_gradient_weights

__all__ = [
    "METHODS",
    "Context",
    "Method",
    "cam_maps",
    "contrastive_maps",
    "decomposition_maps",
    "dist_cam_maps",
    "energy_maps",
    "grad_cam",
    "grad_cam_maps",
    "grad_cam_pp",
    "grad_cam_pp_maps",
    "margin_maps",
    "nearest_samples",
    "run_methods",
    "similarity",
    "similarity_decomposition",
    "similarity_map",
    "similarity_score",
    "transfer_maps",
    "transferred_weights",
    "triplet_gradient_weights",
    "uniform_maps",
]
