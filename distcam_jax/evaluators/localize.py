"""Weakly-supervised localisation: heatmaps of a whole split, scored by the `ilsvrc` protocol.

A class is right only where the class decision is right, and there the predicted class's map is the true class's map. So
the maps of the true class (and, as a control, of a random wrong class) are all that Top-1, Top-5 and GT-known need.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from tqdm import tqdm

from distcam_jax.decoding import Source
from distcam_jax.evaluators.explain import MapFunction, present_classes
from distcam_jax.evaluators.network import Network, rank_classes
from distcam_jax.evaluators.rows import boxed_rows, concatenate_rows, true_boxes
from distcam_jax.localization import PROTOCOLS, BoxPool, Protocol, best_iou, center_box, whole_image_box
from distcam_jax.methods import METHODS
from distcam_jax.prototypes import Prototypes

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
DEFAULT_THRESHOLD = 0.2
SCALINGS = ("max", "minmax")  # of a map before the threshold: by its maximum as `ilsvrc` has it, and from its minimum
_PENDING = 64  # batches of one method's maps that may wait for their boxes; a map of 14 x 14 has 784 bytes


def ilsvrc_protocol(image_size: int | Sequence, *, scaling: str = "max") -> Protocol:
    """The `ilsvrc` protocol at the network's input size, with every threshold of `THRESHOLDS`.

    The protocol's map is a square: of an input that is none, its side is the longer one; boxes are the image's anyway.
    """
    side = image_size if isinstance(image_size, int) else max(image_size)
    return dataclasses.replace(PROTOCOLS["ilsvrc"], thresholds=THRESHOLDS, input_size=side, scaling=scaling)


def scaled_name(method: str, scaling: str) -> str:
    """The name in `Localization` of a method whose maps were scaled otherwise than the protocol does.

    Examples:
        >>> scaled_name("cam", "max"), scaled_name("cam", "minmax")
        ('cam', 'cam, scaling=minmax')
    """
    return method if scaling == PROTOCOLS["ilsvrc"].scaling else f"{method}, scaling={scaling}"


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
        correct: further protocol to method to whether the true class's boxes are right, `[n, bytes]`, the bits of
            `[thresholds, ious]` packed; see `unpack_correct`.
    """

    labels: np.ndarray
    index: np.ndarray
    wrong: np.ndarray
    decisions: dict[str, np.ndarray]
    distances: np.ndarray
    right_iou: dict[str, np.ndarray]
    wrong_iou: dict[str, np.ndarray]
    box_iou: dict[str, np.ndarray]
    correct: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def rows(self, kept: np.ndarray) -> "Localization":
        """Some of the images: those whose row of `kept` `[n]` is True."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Localization(**jax.tree.map(lambda value: value[kept], values))

    def decision(self, method: str) -> np.ndarray:
        """The best classes `[n, top]` of the decision that a method explains."""
        return self.decisions[decision_of(method)]


def decision_of(method: str) -> str:
    """The class decision that a method or baseline goes with: "softmax", or "nearest" prototype."""
    return "softmax" if method in METHODS and "class_weights" in METHODS[method].needs else "nearest"


def localize_source(
    network: Network,
    prototypes: Prototypes,
    source: Source,
    maps: MapFunction,
    *,
    title: str,
    batch: int,
    protocols: Sequence[str] = (),
    scalings: Sequence[str] = ("max",),
    seed: int = 0,
) -> Localization:
    """`localize` over a whole source, with a progress bar.

    Args:
        network: as there.
        prototypes: as there.
        source: of examples with boxes.
        maps: as there.
        title: of the bar.
        batch: images a step.
        protocols: as there.
        scalings: as there.
        seed: as there.

    Returns:
        One row an image.
    """
    batches = network.batches(source, batch=batch)
    batches = tqdm(batches, title, len(batches), unit="batch", leave=False)
    return localize(network, prototypes, batches, maps, protocols=protocols, scalings=scalings, seed=seed)


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
    maps: MapFunction,
    *,
    protocols: Sequence[str] = (),
    scalings: Sequence[str] = ("max",),
    seed: int = 0,
) -> Localization:
    """Runs a network over a split and scores the heatmaps of every method.

    Threads find the boxes of one batch while the devices compute the next.

    Args:
        network: from `load_network`.
        prototypes: its class prototypes.
        batches: of `Network.batches`, with boxes.
        maps: of `bind_methods`.
        protocols: of `distcam_jax.localization.PROTOCOLS`, scored beside `ilsvrc` for the map of the true class.
        scalings: of a map before the threshold of `ilsvrc`: "max" as the protocol has it, "minmax" from its minimum;
            the boxes of each stand under `scaled_name`.
        seed: of the wrong classes.

    Returns:
        One row an image. Padding, classes without training samples and their images, and images without a true box
        are left out.

    Raises:
        ValueError: when no image is left.
    """
    rules = {scaling: ilsvrc_protocol(network.config.input.image_size, scaling=scaling) for scaling in scalings}
    present, position = present_classes(prototypes)
    rows = []

    def launch(batch):
        wrong = present[wrong_classes(position[batch["label"]], batch["index"], len(present), seed)]
        output, features = network(batch["image"])
        heatmaps = maps(features["pre_pool"], np.stack([batch["label"], wrong], axis=1))
        return batch, wrong, output, features["embedding"], heatmaps

    with BoxPool(pending=_PENDING) as pool:
        for batch, wrong, output, embedding, heatmaps in ahead(map(launch, batches)):
            real = boxed_rows(batch, prototypes.counts)
            if not len(real):
                continue
            decisions, distances = rank_classes(network, prototypes, output, embedding)
            truth, sizes = true_boxes(batch, real), batch["image_size"][real]
            heatmaps = {name: np.asarray(value)[real] for name, value in heatmaps.items()}
            row = {
                "labels": batch["label"][real],
                "index": batch["index"][real],
                "wrong": wrong[real],
                "decisions": {name: ranked[real] for name, ranked in decisions.items()},
                "distances": distances.min(axis=1)[real],
                **{
                    kind: {
                        scaled_name(n, scaling): pool.submit(m[:, asked], truth, sizes, rule)
                        for scaling, rule in rules.items()
                        for n, m in heatmaps.items()
                    }
                    for asked, kind in enumerate(("right_iou", "wrong_iou"))
                },
                "box_iou": {
                    "center_box": baseline_iou(center_box(sizes), truth),
                    "whole_image": baseline_iou(whole_image_box(sizes), truth),
                },
                "correct": {
                    protocol: {n: pool.submit(m[:, 0], truth, sizes, protocol) for n, m in heatmaps.items()}
                    for protocol in protocols
                },
            }
            rows.append(row)
        rows = [_finished(row) for row in rows]
    if not rows:
        raise ValueError(
            "no image to localise: the split is empty, no image has a box, or none of its classes has training samples"
        )
    return Localization(**concatenate_rows(rows))


def ahead(items: Iterator) -> Iterator:
    """The items, each handed out after the next has been made: the devices are never without work."""
    before = next(items, None)
    while before is not None:
        after = next(items, None)
        yield before
        before = after


def _finished(row: dict) -> dict:
    """A row with its boxes found."""
    done = {
        kind: {name: one.result().best_iou for name, one in row[kind].items()} for kind in ("right_iou", "wrong_iou")
    }
    done["correct"] = {
        protocol: {name: pack_correct(one.result().correct) for name, one in by_method.items()}
        for protocol, by_method in row["correct"].items()
    }
    return row | done


def pack_correct(correct: np.ndarray) -> np.ndarray:
    """Bits `[n, thresholds, ious]` in an eighth of the memory `[n, bytes]`."""
    return np.packbits(correct.reshape(len(correct), -1), axis=1)


def unpack_correct(packed: np.ndarray, protocol: str) -> np.ndarray:
    """What `pack_correct` packed, `[n, thresholds, ious]`, as booleans."""
    shape = len(PROTOCOLS[protocol].thresholds), len(PROTOCOLS[protocol].ious)
    return np.unpackbits(packed, axis=1, count=shape[0] * shape[1]).reshape(-1, *shape).astype(bool)


def baseline_iou(predicted: np.ndarray, boxes: Sequence[np.ndarray]) -> np.ndarray:
    """IoU `[n]` of one box an image `[n, 4]` with the best of the image's true boxes `[m, 4]`."""
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
    return best_thresholds(tuning.right_iou, iou)


def best_thresholds(ious: Mapping[str, np.ndarray], iou: float = 0.5) -> dict[str, float]:
    """The threshold at which most boxes are right; the lowest on ties.

    Args:
        ious: method to IoU of each image's box at every threshold `[n, thresholds]`.
        iou: from which a box is right.

    Returns:
        Method to threshold.
    """
    return {name: THRESHOLDS[int((values >= iou).mean(axis=0).argmax())] for name, values in ious.items()}
