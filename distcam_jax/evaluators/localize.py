"""Weakly-supervised localisation: heatmaps of a whole split, scored by the `ilsvrc` protocol.

A class is right only where the class decision is right, and there the predicted class's map is the true class's map. So
the maps of the true class (and, as a control, of a random wrong class) are all that Top-1, Top-5 and GT-known need.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distcam_jax.cam import (
    channel_distances,
    contrastive_weights,
    global_average_pool,
    reciprocal_weights,
    weighted_channel_sum,
)
from distcam_jax.evaluators.classify import concatenate_rows
from distcam_jax.evaluators.network import Network, rank_classes
from distcam_jax.localization import PROTOCOLS, Protocol, best_iou, center_box, evaluate_boxes, whole_image_box
from distcam_jax.prototypes import Prototypes

METHODS = {
    "cam": "CAM",
    "dist_cam": "Dist-CAM",
    "dist_cam_literal": "Dist-CAM, literal Eq. 5",
    "contrastive": "contrastive Dist-CAM",
    "uniform": "uniform weights",
}
LITERAL_EPS = 1e-6  # as near to Eq. 5 as floating point allows
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
DEFAULT_THRESHOLD = 0.2


def ilsvrc_protocol(image_size: int) -> Protocol:
    """The `ilsvrc` protocol at the network's input size, with every threshold of `THRESHOLDS`."""
    return dataclasses.replace(PROTOCOLS["ilsvrc"], thresholds=THRESHOLDS, input_size=image_size)


@functools.partial(jax.jit, static_argnames=("norm", "eps"))
def class_maps(
    features: Float[Array, "b h w k"],
    classes: Int[Array | np.ndarray, "b m"],
    prototypes: Float[Array | np.ndarray, "c k"],
    linear: Float[Array, "c k"] | None = None,
    *,
    norm: str = "sum",
    eps: float = 0.1,
) -> dict[str, Float[Array, "b m h w"]]:
    """Heatmaps of chosen classes by every method that is defined.

    Args:
        features: pre-pool feature maps `[b, h, w, k]`.
        classes: which classes' maps to make, for each image `[b, m]`.
        prototypes: class prototypes `[c, k]`.
        linear: a linear layer's class weights `[c, k]`; None leaves CAM out.
        norm: normalisation of the reciprocal weights.
        eps: of the reciprocal weights.

    Returns:
        Method to maps `[b, m, h, w]`; the names are those of `METHODS`.
    """

    def weights_of_one(embedding, chosen):
        distances = channel_distances(embedding, prototypes)
        weights = {
            "dist_cam": reciprocal_weights(distances[chosen], norm=norm, eps=eps),
            "dist_cam_literal": reciprocal_weights(distances[chosen], norm=norm, eps=LITERAL_EPS),
            "contrastive": contrastive_weights(distances)[chosen],
            "uniform": jnp.ones((len(chosen), embedding.shape[-1]), embedding.dtype),
        }
        return weights if linear is None else {"cam": linear[chosen], **weights}

    weights = jax.vmap(weights_of_one)(global_average_pool(features), classes)
    return {name: jax.vmap(weighted_channel_sum, (None, 1), 1)(features, value) for name, value in weights.items()}


def _present_classes(prototypes: Prototypes) -> tuple[np.ndarray, np.ndarray]:
    """The classes that have training samples `[p]`, and the position of each class among them `[c]`."""
    present = np.flatnonzero(prototypes.counts)
    position = np.zeros(len(prototypes.counts), np.int32)
    position[present] = np.arange(len(present))
    return present, position


def network_maps(
    network: Network, prototypes: Prototypes, features, classes: np.ndarray, *, norm: str, eps: float
) -> dict[str, np.ndarray]:
    """Maps `[b, m, h, w]` on the host, of classes `[b, m]` that have training samples; the others play no part.

    Args:
        network: from `load_network`.
        prototypes: its class prototypes.
        features: pre-pool feature maps `[b, h, w, k]`.
        classes: which classes' maps to make; those of a class without samples are another's.
        norm: normalisation of the reciprocal weights.
        eps: of the reciprocal weights.

    Returns:
        Method to maps, in the order of `METHODS`.
    """
    present, position = _present_classes(prototypes)
    linear = None if network.class_weights is None else network.class_weights[present]
    maps = class_maps(features, position[classes], prototypes.prototypes[present], linear, norm=norm, eps=eps)
    return {name: np.asarray(maps[name]) for name in METHODS if name in maps}  # jit sorts a dict by name


@dataclasses.dataclass(frozen=True)
class Localization:
    """What one pass over a split measured, one row an image.

    Attributes:
        labels: true classes `[n]`.
        index: positions in the source `[n]`.
        wrong: the wrong class asked for as a control `[n]`.
        decisions: best classes first `[n, top]`, by "softmax" (with a linear layer only) and by "nearest" prototype.
        distances: to the nearest prototype `[n]`.
        right_iou: method to IoU of the true class's box at every threshold `[n, thresholds]`.
        wrong_iou: the same of the wrong class's box.
        box_iou: baseline to IoU `[n]`: "center_box" and "whole_image".
    """

    labels: np.ndarray
    index: np.ndarray
    wrong: np.ndarray
    decisions: dict[str, np.ndarray]
    distances: np.ndarray
    right_iou: dict[str, np.ndarray]
    wrong_iou: dict[str, np.ndarray]
    box_iou: dict[str, np.ndarray]

    def rows(self, kept: np.ndarray) -> "Localization":
        """Some of the images: those whose row of `kept` `[n]` is True."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Localization(**jax.tree.map(lambda value: value[kept], values))

    def decision(self, method: str) -> np.ndarray:
        """The best classes `[n, top]` of the decision that a method explains."""
        return self.decisions["softmax" if method == "cam" else "nearest"]


def wrong_classes(labels: np.ndarray, index: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """A random other class for every image, the same for an image whatever the batch.

    Args:
        labels: true classes `[n]`.
        index: positions in the source `[n]`.
        num_classes: classes c, at least 2.
        seed: of the choice.

    Returns:
        Classes `[n]`, none of them the image's own.

    Raises:
        ValueError: for a single class.
    """
    if num_classes < 2:
        raise ValueError("localisation is compared with a wrong class, so it needs at least 2 classes, got 1")
    shifts = [np.random.default_rng((seed, int(i))).integers(1, num_classes) for i in index]
    return ((labels + np.asarray(shifts)) % num_classes).astype(np.int32)


def localize(
    network: Network,
    prototypes: Prototypes,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    norm: str = "sum",
    eps: float = 0.1,
    seed: int = 0,
) -> Localization:
    """Runs a network over a split and scores the heatmaps of every method.

    Args:
        network: from `load_network`.
        prototypes: its class prototypes.
        batches: of `Network.batches`, with boxes.
        norm: normalisation of the reciprocal weights.
        eps: of the reciprocal weights.
        seed: of the wrong classes.

    Returns:
        One row an image. Padding, classes without training samples and their images are left out.

    Raises:
        ValueError: when an image has no box, or no image is left.
    """
    protocol = ilsvrc_protocol(network.config.input.image_size)
    present, position = _present_classes(prototypes)
    rows = []
    for batch in batches:
        real = np.flatnonzero(batch["mask"] & (prototypes.counts[batch["label"]] > 0))
        if not len(real):
            continue
        wrong = present[wrong_classes(position[batch["label"]], batch["index"], len(present), seed)]
        output, features = network(batch["image"])
        decisions, distances = rank_classes(network, prototypes, output, features["embedding"])
        classes = np.stack([batch["label"], wrong], axis=1)
        maps = network_maps(network, prototypes, features["pre_pool"], classes, norm=norm, eps=eps)
        boxes = [row[:count] for row, count in zip(batch["boxes"], batch["num_boxes"], strict=True)]
        boxes, sizes = [boxes[i] for i in real], batch["image_size"][real]
        maps = {name: value[real] for name, value in maps.items()}
        row = {
            "labels": batch["label"][real],
            "index": batch["index"][real],
            "wrong": wrong[real],
            "decisions": {name: ranked[real] for name, ranked in decisions.items()},
            "distances": distances.min(axis=1)[real],
            "right_iou": {n: evaluate_boxes(m[:, 0], boxes, sizes, protocol).best_iou for n, m in maps.items()},
            "wrong_iou": {n: evaluate_boxes(m[:, 1], boxes, sizes, protocol).best_iou for n, m in maps.items()},
            "box_iou": {
                "center_box": _baseline_iou(center_box(sizes), boxes),
                "whole_image": _baseline_iou(whole_image_box(sizes), boxes),
            },
        }
        rows.append(row)
    if not rows:
        raise ValueError("no image to localise: the split is empty, or none of its classes has training samples")
    return Localization(**concatenate_rows(rows))


def _baseline_iou(predicted, boxes) -> np.ndarray:
    return np.array([best_iou(box, true) for box, true in zip(predicted, boxes, strict=True)])


def threshold_index(value: float) -> int:
    """The place of a threshold in `THRESHOLDS`."""
    return int(np.abs(np.asarray(THRESHOLDS) - value).argmin())


def tune_thresholds(tuning: Localization, iou: float = 0.5) -> dict[str, float]:
    """Each method's threshold of best GT-known accuracy on a held-out split; the lowest on ties.

    Args:
        tuning: measured on images that the reported figures do not use.
        iou: from which a box is right.

    Returns:
        Method to threshold.
    """
    return {name: THRESHOLDS[int((values >= iou).mean(axis=0).argmax())] for name, values in tuning.right_iou.items()}
