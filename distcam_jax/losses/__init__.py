"""Training losses: arrays in, a scalar (the mean over the batch) out.

* `prototypes`: softmax over negative L1 distances to running class means, Dist-CAM's own objective.
* `proxies`: Proxy-NCA and the centre loss, which hold one learnt vector a class.
* `pairs`: contrastive and triplet losses over the distances within a batch.
* `similarities`: N-pair, NT-Xent and multi-similarity losses over the inner products within a batch.
* `episodes`: the prototypical loss of few-shot episodes.
* `margins`: SphereFace, CosFace and ArcFace, which change the true class's score before the softmax.
* `distances`: what the others measure with.

Computation and results are float32 whatever floating type comes in; float64 stays where JAX's 64-bit mode is on.
Shapes, types and hyper-parameters are checked; values inside `jit` cannot be. Values and gradients are finite for
zeros, for equal embeddings and for one class alone too. Terms which a batch holds no pair for are 0, with gradients
of 0.

Under `jit` with a batch sharded over the devices of a mesh, every loss is that of the global batch, value and gradient:
each device gathers the embeddings of all, so pairs reach across devices and one sample a device is enough. (Inside
`shard_map` a function sees its own device's samples alone.) The work and memory of a loss over pairs grow with the
square of the global batch.
"""

from distcam_jax.losses.distances import METRICS, cosine_similarities, l1_distances, pairwise_distances
from distcam_jax.losses.episodes import EPISODE_METRICS, prototypical, prototypical_logits
from distcam_jax.losses.margins import arcface_logits, cosface_logits, sphereface_logits
from distcam_jax.losses.pairs import batch_hard_triplet, contrastive, semi_hard_triplet
from distcam_jax.losses.prototypes import (
    class_mean_logits,
    prototype_logits,
    softmax_cross_entropy,
    update_class_means,
)
from distcam_jax.losses.proxies import center_loss, proxy_nca, update_centers
from distcam_jax.losses.similarities import multi_similarity, n_pair, nt_xent

__all__ = [
    "EPISODE_METRICS",
    "METRICS",
    "arcface_logits",
    "batch_hard_triplet",
    "center_loss",
    "class_mean_logits",
    "contrastive",
    "cosface_logits",
    "cosine_similarities",
    "l1_distances",
    "multi_similarity",
    "n_pair",
    "nt_xent",
    "pairwise_distances",
    "prototype_logits",
    "prototypical",
    "prototypical_logits",
    "proxy_nca",
    "semi_hard_triplet",
    "softmax_cross_entropy",
    "sphereface_logits",
    "update_centers",
    "update_class_means",
]
