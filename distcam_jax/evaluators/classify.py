"""Classification of a whole split, without heatmaps."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from distcam_jax.evaluators.network import Network, rank_classes
from distcam_jax.evaluators.rows import concatenate_rows, real_rows
from distcam_jax.prototypes import Prototypes


@dataclasses.dataclass(frozen=True)
class Classification:
    """The decisions of one pass over a split, one row an image.

    Attributes:
        labels: true classes `[n]`.
        index: positions in the source `[n]`.
        decisions: best classes first `[n, top]`, by "softmax" (with a linear layer only) and by "nearest" prototype.
    """

    labels: np.ndarray
    index: np.ndarray
    decisions: dict[str, np.ndarray]


def classify(network: Network, prototypes: Prototypes, batches: Iterable[dict[str, np.ndarray]]) -> Classification:
    """Runs a network over a split.

    Args:
        network: from `load_network`.
        prototypes: its class prototypes.
        batches: of `Network.batches`.

    Returns:
        One row an image. Padding, classes without training samples and their images are left out, as in `localize`.

    Raises:
        ValueError: when no image is left.
    """
    rows = []
    for batch in batches:
        real = real_rows(batch, prototypes.counts)
        if not len(real):
            continue
        output, features = network(batch["image"])
        decisions, _ = rank_classes(network, prototypes, output, features["embedding"])
        row = {
            "labels": batch["label"][real],
            "index": batch["index"][real],
            "decisions": {name: ranked[real] for name, ranked in decisions.items()},
        }
        rows.append(row)
    if not rows:
        raise ValueError("no image to classify: the split is empty, or none of its classes has training samples")
    return Classification(**concatenate_rows(rows))
