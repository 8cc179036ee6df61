"""One pass of a network over a split that scores many variants of Dist-CAM at once.

The network runs once a batch. All else is made of what it gives: the weights of every variant come from the pooled
features, and one product makes all maps. Threads find the boxes of one batch while the devices compute the next.
"""

import base64
import dataclasses
import functools
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Bool, Int

from distcam_jax.cam import reciprocal_weights, weighted_channel_sum
from distcam_jax.evaluators.explain import Samples, present_classes, sample_rows
from distcam_jax.evaluators.figures import IOU
from distcam_jax.evaluators.localize import THRESHOLDS, ahead, baseline_iou, ilsvrc_protocol, wrong_classes
from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.rows import boxed_rows, concatenate_rows, true_boxes
from distcam_jax.localization import BoxPool, center_box, whole_image_box
from distcam_jax.methods import similarity
from distcam_jax.methods.similarities import CHANNEL_DISTANCES
from distcam_jax.prototypes import Prototypes

ALL = "all"  # the set of prototypes that are means of all training samples
KINDS = ("dist_cam", "uniform", "cam")
ASKED = ("true", "predicted", "wrong", "random")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A heatmap and how its box is found: Dist-CAM with one choice changed, or a control.

    Attributes:
        kind: of `KINDS`; "uniform" (Σ_k Q_k) and "cam" look at `scaling` alone, and CAM is of the true class.
        norm: of the weights, see `distcam_jax.reciprocal_weights`.
        eps: share of the mean distance that is added, see there.
        distance: of a channel, see `distcam_jax.methods.dist_cam_maps`; the nearest prototype is found with it too.
        asked: whose prototype: of the true class, of the nearest one ("predicted"), of a wrong class, or of a random
            one that may be the true one.
        prototypes: the set of prototypes, `ALL` or a name of `draw_name`.
        scaling: of the map before its threshold, see `distcam_jax.localization.Protocol`.

    Examples:
        >>> Variant(eps=1.0).decision
        ('l1', 'all')
    """

    kind: str = "dist_cam"
    norm: str = "sum"
    eps: float = 0.1
    distance: str = "l1"
    asked: str = "true"
    prototypes: str = ALL
    scaling: str = "max"

    @property
    def decision(self) -> tuple[str, str]:
        """The class decision that the variant goes with: distance and set of prototypes, or the linear layer's."""
        return ("softmax", "") if self.kind == "cam" else (self.distance, self.prototypes)


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What one pass found, one row an image.

    Attributes:
        index: positions in the source `[n]`.
        hits: variant to whether its box is right at every threshold `[n, thresholds]`; also "center_box" and
            "whole_image".
        class_right: the same names to whether the class decision that goes with them is right `[n]`.
    """

    index: Int[np.ndarray, " n"]
    hits: dict[str, np.ndarray]
    class_right: dict[str, np.ndarray]

    def to_json(self) -> dict:
        """As JSON takes it; a bit a figure."""
        packed = {name: _packed(value) for name, value in self.hits.items()}
        return {
            "index": self.index.tolist(),
            "hits": packed,
            "class_right": {name: _packed(value) for name, value in self.class_right.items()},
        }

    @staticmethod
    def from_json(values: dict) -> "Scores":
        """From what `to_json` gave."""
        n = len(values["index"])
        return Scores(
            np.array(values["index"]),
            {name: _unpacked(text, (n, len(THRESHOLDS))) for name, text in values["hits"].items()},
            {name: _unpacked(text, (n,)) for name, text in values["class_right"].items()},
        )


def _packed(values: Bool[np.ndarray, "..."]) -> str:
    return base64.b64encode(np.packbits(values).tobytes()).decode()


def _unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=int(np.prod(shape)))
    return bits.reshape(shape).astype(bool)


def draw_name(samples: int, draw: int) -> str:
    """Name of the prototypes that are means of a few samples of each class.

    Examples:
        >>> draw_name(5, 0)
        '5 samples, draw 0'
    """
    return f"{samples} samples, draw {draw}"


def drawn_rows(labels: Int[np.ndarray, " n"], counts: Iterable[int], draws: int, seed: int) -> dict[str, np.ndarray]:
    """Which training samples the prototypes of each draw are means of.

    Args:
        labels: of the training samples `[n]`.
        counts: samples of each class; a class with fewer gives all that it has.
        draws: how often each count is drawn; draw d of all counts has one order, so that few are among many.
        seed: of the draws: draw d has the seed `seed + d`.

    Returns:
        `draw_name` to rows, in order.

    Examples:
        >>> {name: rows.tolist() for name, rows in drawn_rows(np.array([0, 1, 1]), [2], 1, seed=0).items()}
        {'2 samples, draw 0': [0, 1, 2]}
    """
    return {
        draw_name(count, draw): sample_rows(labels, count, seed + draw) for count in counts for draw in range(draws)
    }


def drawn_prototypes(
    samples: Samples, taken: Int[np.ndarray, " m"], rows: Mapping[str, np.ndarray], num_classes: int
) -> dict[str, np.ndarray]:
    """Means of a few samples of each class, Eq. (7), added in float64.

    Args:
        samples: pooled features of the training samples that any draw has.
        taken: their rows in the training split `[m]`, rising.
        rows: of `drawn_rows`.
        num_classes: classes c.

    Returns:
        Draw to prototypes `[c, k]`; zero for a class without samples.
    """
    sets = {}
    for name, chosen in rows.items():
        places = np.searchsorted(taken, chosen)
        labels = samples.labels[places]
        sums = np.zeros((num_classes, samples.embeddings.shape[1]))
        np.add.at(sums, labels, samples.embeddings[places].astype(np.float64))
        counts = np.maximum(np.bincount(labels, minlength=num_classes), 1)
        sets[name] = (sums / counts[:, None]).astype(np.float32)
    return sets


def score_split(
    network: Network,
    prototypes: Prototypes,
    batches: Iterable[dict[str, np.ndarray]],
    variants: Mapping[str, Variant],
    *,
    drawn: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Scores:
    """Runs a network over a split and scores the boxes of every variant, by the `ilsvrc` protocol at IoU 0.5.

    Args:
        network: from `load_network`.
        prototypes: its class prototypes.
        batches: of `Network.batches`, with boxes.
        variants: by name.
        drawn: further sets of prototypes `[c, k]` by name, see `drawn_prototypes`.
        seed: of the wrong and the random classes.

    Returns:
        One row an image. Padding, classes without training samples and their images, and images without a true box
        are left out.

    Raises:
        ValueError: when no image is left.
    """
    present, position = present_classes(prototypes)
    sets = {ALL: prototypes.prototypes, **(drawn or {})}
    sets = {name: values[present] for name, values in sets.items()}
    linear = None if network.class_weights is None else network.class_weights[present]
    maps = {name: dataclasses.replace(variant, scaling="max") for name, variant in variants.items()}
    places = {variant: place for place, variant in enumerate(dict.fromkeys(maps.values()))}
    compute = jax.jit(functools.partial(_maps_and_decisions, tuple(places)))
    size = network.config.input.image_size
    protocols = {scaling: ilsvrc_protocol(size, scaling=scaling) for scaling in ("max", "minmax")}

    def launch(batch):
        true, index = position[batch["label"]], batch["index"]
        wrong = wrong_classes(true, index, len(present), seed)
        classes = {"true": true, "wrong": wrong, "random": random_classes(index, len(present), seed)}
        output, features = network(batch["image"])
        return batch, compute(features, classes, sets, linear), output

    rows = []
    with BoxPool(pending=2 * len(variants)) as pool:
        for batch, (heatmaps, decisions), output in ahead(map(launch, batches)):
            real = boxed_rows(batch, prototypes.counts)
            if not len(real):
                continue
            truth, sizes, labels = true_boxes(batch, real), batch["image_size"][real], batch["label"][real]
            heatmaps = np.asarray(heatmaps)[real]
            right = {name: present[np.asarray(value)[real]] == labels for name, value in decisions.items()}
            if linear is not None:
                right["softmax", ""] = np.asarray(output).argmax(axis=1)[real] == labels
            found = {
                name: pool.submit(heatmaps[:, places[maps[name]]], truth, sizes, protocols[variant.scaling])
                for name, variant in variants.items()
            }
            controls = {"center_box": center_box(sizes), "whole_image": whole_image_box(sizes)}
            found |= {name: baseline_iou(boxes, truth) >= IOU for name, boxes in controls.items()}
            own = {name: right[variant.decision] for name, variant in variants.items()}
            own |= {name: right[Variant().decision] for name in controls}
            rows.append({"index": batch["index"][real], "hits": found, "class_right": own})
        rows = [row | {"hits": {name: _hits(value) for name, value in row["hits"].items()}} for row in rows]
    if not rows:
        raise ValueError(
            "no image to localise: the split is empty, no image has a box, or none of its classes has training samples"
        )
    return Scores(**concatenate_rows(rows))


def random_classes(index: Int[np.ndarray, " n"], num_classes: int, seed: int) -> Int[np.ndarray, " n"]:
    """A random class for every image, which may be its own; the same for an image whatever the batch.

    Examples:
        >>> random_classes(np.array([7, 3]), 4, seed=0)[1] == random_classes(np.array([3]), 4, seed=0)[0]
        np.True_
    """
    return np.array([np.random.default_rng((seed, int(i), 1)).integers(num_classes) for i in index], np.int32)


def _hits(found) -> Bool[np.ndarray, "n thresholds"]:
    """Of the scores that a thread found, or of a box that no threshold changes `[n]`."""
    if isinstance(found, np.ndarray):
        return np.repeat(found[:, None], len(THRESHOLDS), axis=1)
    return found.result().best_iou >= IOU


def _maps_and_decisions(variants: tuple[Variant, ...], features, classes, sets, linear):
    """Maps `[b, variants, h, w]`, and by decision the position of the nearest prototype's class `[b]`."""
    pooled = features["embedding"]
    decided = {variant.decision for variant in variants if variant.kind != "cam"} | {Variant().decision}
    nearest = {
        (distance, name): jnp.argmax(similarity(pooled[:, None], sets[name], metric=distance), axis=-1)
        for distance, name in sorted(decided)
    }

    def weights(variant: Variant):
        if variant.kind == "uniform":
            return jnp.ones_like(pooled)
        if variant.kind == "cam":
            return linear[classes["true"]].astype(pooled.dtype)
        asked = nearest[variant.decision] if variant.asked == "predicted" else classes[variant.asked]
        distances = CHANNEL_DISTANCES[variant.distance](pooled, sets[variant.prototypes][asked])
        return reciprocal_weights(distances, norm=variant.norm, eps=variant.eps)

    stacked = jnp.stack([weights(variant) for variant in variants], axis=1)
    return weighted_channel_sum(features["pre_pool"][:, None], stacked), nearest
