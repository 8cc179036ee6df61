"""Classification of a whole split, without heatmaps."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from distcam_jax.evaluators.network import Network, rank_classes
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
        real = np.flatnonzero(batch["mask"] & (prototypes.counts[batch["label"]] > 0))
        output, features = network(batch["image"])
        softmax, nearest, _ = rank_classes(network, prototypes, output, features["embedding"])
        decisions = {"nearest": nearest[real]} | ({} if softmax is None else {"softmax": softmax[real]})
        rows.append((batch["label"][real], batch["index"][real], decisions))
    if not sum(len(labels) for labels, _, _ in rows):
        raise ValueError("no image to classify: the split is empty, or none of its classes has training samples")
    labels, index, decisions = zip(*rows, strict=True)
    joined = {name: np.concatenate([row[name] for row in decisions]) for name in decisions[0]}
    return Classification(np.concatenate(labels), np.concatenate(index), joined)
