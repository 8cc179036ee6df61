"""Few-shot learning on pooled features: prototypes of a few supports, plain or rectified, and many episodes at once.

An episode of w ways has s supports and q queries of each class. Its prototypes are the means of the supports (Snell et
al., NeurIPS 2017), which Dist-CAM explains; a query belongs to the nearest one. Rectification is transductive: it looks
at all queries of an episode together (Liu et al., ECCV 2020).

* `prototypes`: features, prototypes and scores of one episode; may be jitted and differentiated.
* `decisions`: accuracies and predictions of many episodes. Host functions.
"""

from distcam_jax.fewshot.decisions import episode_accuracies, episode_predictions, mean_confidence_interval
from distcam_jax.fewshot.prototypes import (
    METRICS,
    query_scores,
    rectify_prototypes,
    shift_queries,
    transform_features,
)

__all__ = [
    "METRICS",
    "episode_accuracies",
    "episode_predictions",
    "mean_confidence_interval",
    "query_scores",
    "rectify_prototypes",
    "shift_queries",
    "transform_features",
]
