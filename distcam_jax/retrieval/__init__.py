"""Image retrieval and re-identification: neighbours, the field's metrics, re-ranking. Host functions.

* `neighbors`: exact nearest neighbours in L1, L2 and cosine; on devices by `search`, with the sums of `distances`, or
  by faiss (`faiss_search`).
* `metrics`: Recall@K, R-precision and MAP@R, of a query set against a gallery or of a set against itself.
* `reidentification`: CMC and mAP with the camera rule of Market-1501.
* `reranking`: k-reciprocal encoding.
"""

from distcam_jax.retrieval.metrics import map_at_r, r_precision, recall_at_k
from distcam_jax.retrieval.neighbors import METRICS, nearest_neighbors
from distcam_jax.retrieval.reidentification import ReidScores, market1501_metrics
from distcam_jax.retrieval.reranking import k_reciprocal_rerank

__all__ = [
    "METRICS",
    "ReidScores",
    "k_reciprocal_rerank",
    "map_at_r",
    "market1501_metrics",
    "nearest_neighbors",
    "r_precision",
    "recall_at_k",
]
