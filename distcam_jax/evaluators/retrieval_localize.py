"""Localisation by heatmaps of pairs: each query explained by its nearest image, scored by the `ilsvrc` protocol.

The reference is the pooled feature of the image that the search finds first. As controls, the same maps are made with
the nearest image of the query's own class, whether it was found first or not, and with a random one of another class.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from tqdm import tqdm

from distcam_jax.evaluators.figures import IOU, difference_figure, mean_figure
from distcam_jax.evaluators.localize import (
    DEFAULT_THRESHOLD,
    SCALINGS,
    ahead,
    baseline_iou,
    best_thresholds,
    ilsvrc_protocol,
    scaled_name,
    threshold_index,
)
from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.retrieval_maps import PairMaps
from distcam_jax.evaluators.retrieval_search import Embedded, Ranking, distance_blocks
from distcam_jax.evaluators.retrieval_task import Task
from distcam_jax.evaluators.rows import concatenate_rows, true_boxes
from distcam_jax.input_pipeline import Rows
from distcam_jax.localization import BoxPool, center_box, whole_image_box
from distcam_jax.methods import METHODS

REFERENCES = ("nearest", "same", "wrong")  # image found first, nearest one of the own class, random one of another
_PENDING = 64  # batches of one method's maps that may wait for their boxes


@dataclasses.dataclass(frozen=True, eq=False)
class PairLocalization:
    """What one pass over the queries measured, one row a query that has something to find and a true box.

    Attributes:
        rows: of the queries `[n]`.
        ious: reference to method, as `scaled_name` calls it, to IoU of the box at every threshold `[n, thresholds]`.
        box_iou: baseline to IoU `[n]`: "center_box" and "whole_image".
    """

    rows: np.ndarray
    ious: dict[str, dict[str, np.ndarray]]
    box_iou: dict[str, np.ndarray]

    def hits(self, method: str, reference: str, threshold: float, *, scaling: str = "max") -> np.ndarray:
        """Whether the box of each query is right `[n]`; of a trivial box, whatever the rest."""
        if method in self.box_iou:
            return self.box_iou[method] >= IOU
        return self.ious[reference][scaled_name(method, scaling)][:, threshold_index(threshold)] >= IOU


def boxed_queries(task: Task) -> np.ndarray:
    """Rows of the valid queries that have a true box; no image is decoded."""
    source = task.query.data.source
    return np.array([row for row in task.valid.tolist() if len(source[row]["boxes"])], np.int64)


def choose_references(task: Task, one: Embedded, ranking: Ranking, rows: np.ndarray, *, seed: int) -> dict:
    """The images that queries are explained by.

    Args:
        task: what is searched for.
        one: the features that are searched by.
        ranking: what the search of `one` found.
        rows: of the queries `[n]`.
        seed: of the images of other classes.

    Returns:
        Each of `REFERENCES` to positions in the gallery `[n]`.

    Raises:
        ValueError: the gallery holds nothing but one class.
    """
    targets, own = task.query.targets[rows], task.gallery.targets
    nearest, same = ranking.positions[rows, 0], np.empty(len(rows), np.int64)
    query, gallery = one.features(one.search.space)
    for block, distances in distance_blocks(query[rows], gallery, one.search.distance):
        other = (targets[block, None] != own) | task.is_removed(rows[block])
        same[block] = np.where(other, np.inf, distances).argmin(axis=1)
    same = np.where(own[nearest] == targets, nearest, same)  # two ways to compute a distance may round it differently
    wrong = [
        _other(own, target, np.random.default_rng((seed, int(row)))) for target, row in zip(targets, rows, strict=True)
    ]
    return {"nearest": nearest, "same": same, "wrong": np.array(wrong)}


def _other(targets: np.ndarray, target: int | np.integer, generator: np.random.Generator) -> int:
    """A random position of another target."""
    others = np.flatnonzero(targets != target)
    if not len(others):
        raise ValueError(
            "localisation is compared with an image of another class, and the gallery holds only one class"
        )
    return int(generator.choice(others))


def localize_pairs(
    network: Network, task: Task, one: Embedded, ranking: Ranking, maps: PairMaps, *, title: str, batch: int, seed: int
) -> PairLocalization:
    """Runs a network over the queries once more and scores their maps. Threads find the boxes meanwhile.

    Args:
        network: whose features they are.
        task: what is searched for.
        one: its features.
        ranking: what its search found.
        maps: of `bind_pairs`.
        title: of the progress bar.
        batch: images a step.
        seed: of the images of other classes.

    Returns:
        One row a query.
    """
    rows = boxed_queries(task)
    references = choose_references(task, one, ranking, rows, seed=seed)
    asked = np.stack([references[name] for name in REFERENCES], axis=1)
    rules = {scaling: ilsvrc_protocol(network.config.input.image_size, scaling=scaling) for scaling in SCALINGS}
    batches, gallery = network.batches(Rows(task.query.data.source, rows), batch=batch), jax.device_put(one.gallery)

    def launch(images):
        places = images["index"]
        features = network(images["image"])[1]["pre_pool"]
        references = one.gallery[asked[places]]
        return images, maps(features, references, gallery, rows[places] if task.alone else None)

    measured = []
    with BoxPool(pending=_PENDING) as pool:
        steps = tqdm(batches, title, len(batches), unit="batch", leave=False)
        for images, heatmaps in ahead(map(launch, steps)):
            real = np.flatnonzero(images["mask"])
            truth, sizes = true_boxes(images, real), images["image_size"][real]
            ious = {
                reference: {
                    scaled_name(name, scaling): pool.submit(np.asarray(values)[real, place], truth, sizes, rule)
                    for scaling, rule in rules.items()
                    for name, values in heatmaps.items()
                    if METHODS[name].asks or reference == "nearest"
                }
                for place, reference in enumerate(REFERENCES)
            }
            trivial = {"center_box": center_box(sizes), "whole_image": whole_image_box(sizes)}
            box_iou = {name: baseline_iou(boxes, truth) for name, boxes in trivial.items()}
            measured.append({"rows": rows[images["index"][real]], "ious": ious, "box_iou": box_iou})
        measured = [row | {"ious": _finished(row["ious"])} for row in measured]
    return PairLocalization(**concatenate_rows(measured))


def _finished(ious: dict) -> dict:
    """The best IoUs once the boxes are found."""
    return {
        reference: {method: found.result().best_iou for method, found in by_method.items()}
        for reference, by_method in ious.items()
    }


def pair_figures(measured: PairLocalization, tuned: Mapping[str, float] | None, **bootstrap) -> dict[str, dict]:
    """Shares of right boxes.

    Args:
        measured: one pass over the queries.
        tuned: thresholds of `tuned_thresholds`; None where no images to tune on have boxes.
        **bootstrap: `seed` and `resamples`.

    Returns:
        Method, or trivial box, to reference to figures: at the protocol's threshold ("default"), at the tuned one
        ("tuned", with its "threshold"), and of maps scaled from their minimum ("from_minimum", with
        "threshold_from_minimum").
    """
    names = [name for name in measured.ious["nearest"] if name in METHODS]
    figures = {
        name: {
            reference: _at_thresholds(measured, name, reference, tuned, bootstrap)
            for reference in REFERENCES
            if name in measured.ious[reference]
        }
        for name in names
    }
    for name, values in measured.box_iou.items():
        kinds = ("default",) if tuned is None else ("default", "tuned", "from_minimum")
        figures[name] = {"nearest": dict.fromkeys(kinds, mean_figure(values >= IOU, **bootstrap))}
    return figures


def _at_thresholds(measured, method, reference, tuned, bootstrap) -> dict:
    found = {
        kind: mean_figure(measured.hits(method, reference, threshold, scaling=scaling), **bootstrap)
        for kind, (scaling, threshold) in _kinds(method, tuned).items()
    }
    names = {"tuned": "threshold", "from_minimum": "threshold_from_minimum"}
    return found | {name: _kinds(method, tuned)[kind][1] for kind, name in names.items() if kind in found}


def _kinds(method: str, tuned: Mapping[str, float] | None) -> dict[str, tuple[str, float]]:
    """How boxes are made of a method's maps: kind of figure to scaling and threshold; a trivial box has none."""
    kinds = {"default": ("max", DEFAULT_THRESHOLD)}
    if tuned is None:
        return kinds
    lifted = tuned.get(scaled_name(method, "minmax"), DEFAULT_THRESHOLD)
    return kinds | {"tuned": ("max", tuned.get(method, DEFAULT_THRESHOLD)), "from_minimum": ("minmax", lifted)}


def tuned_thresholds(measured: PairLocalization) -> dict[str, float]:
    """Each method's best threshold for the nearest image, on images that the reported figures do not use."""
    return best_thresholds(measured.ious["nearest"])


def pair_differences(measured: PairLocalization, tuned: Mapping[str, float] | None, **bootstrap) -> list[dict]:
    """Paired differences of `pair_figures` over the same queries.

    Args:
        measured: one pass over the queries.
        tuned: as there.
        **bootstrap: `seed` and `resamples`.

    Returns:
        Of each pair "a" and "b", both method and reference, and figures by kind: Dist-CAM of the nearest image less the
        trivial boxes, and every other method less Dist-CAM; each method less itself with a wrong image; and Dist-CAM of
        the nearest image of the own class less that of the nearest one.
    """
    names = [name for name in measured.ious["nearest"] if name in METHODS]
    nearest = ("dist_cam", "nearest")
    pairs = [(nearest, (name, "nearest")) for name in measured.box_iou]
    pairs += [((name, "nearest"), nearest) for name in names if name != "dist_cam"]
    pairs += [((name, "nearest"), (name, "wrong")) for name in names if name in measured.ious["wrong"]]
    pairs.append((("dist_cam", "same"), nearest))
    kinds = _kinds("dist_cam", tuned)

    def hits(side, kind):
        scaling, threshold = _kinds(side[0], tuned)[kind]
        return measured.hits(side[0], side[1], threshold, scaling=scaling)

    return [
        {
            "a": list(a),
            "b": list(b),
            "figures": {kind: difference_figure(hits(a, kind), hits(b, kind), **bootstrap) for kind in kinds},
        }
        for a, b in pairs
    ]
