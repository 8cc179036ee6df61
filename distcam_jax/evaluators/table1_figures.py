"""Figures of the paper's table: of one network, and of the differences between maps and between networks."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from distcam_jax.evaluators.table1_hits import THRESHOLD_KINDS, TOP, Hits, common_rows, share_figure

SOFTMAX_KINDS = ("weights", "softmax")  # networks that have a linear layer
MEASURES = ("top1_error", "top5_error", "gt_known")
COMPARED = ("top1_error", "gt_known")  # of which differences are made
PARTS = ("decision", "map", "network", "total")

# Within one network: what Dist-CAM is worth beside CAM, beside no weights at all, and beside no map at all.
_WITHIN = (
    ("dist_cam", "cam"),
    ("dist_cam_literal", "cam"),
    ("contrastive", "cam"),
    ("intersection", "cam"),
    ("mahalanobis", "cam"),
    ("dist_cam", "dist_cam_literal"),
    ("dist_cam", "uniform"),
    ("dist_cam", "center_box"),
    ("dist_cam", "whole_image"),
    ("dist_cam", "wrong_prototype"),
    ("mahalanobis", "dist_cam"),
    ("mahalanobis", "contrastive"),
    ("mahalanobis", "uniform"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A network that has been measured.

    Attributes:
        source: name of the weights' file or of the run's folder.
        steps: training steps behind it; None for published weights.
        weights_hash: of what its embedding depends on.
        hits: what it got right.
    """

    source: str
    steps: int | None
    weights_hash: str
    hits: Hits


def network_figures(one: Measured, **bootstrap) -> dict:
    """All figures of one network, as JSON takes them.

    Args:
        one: what was measured.
        **bootstrap: `seed` and `resamples`.

    Returns:
        "classification_error" and "top5_classification_error" by decision; "methods", each with `MEASURES` at both
        thresholds, and its thresholds.
    """
    hits = one.hits
    return {
        "source": one.source,
        "steps": one.steps,
        "weights_hash": one.weights_hash,
        "images": len(hits.index),
        "classification_error": {name: _figure(~hits.decided(name), bootstrap) for name in hits.places},
        "top5_classification_error": {name: _figure(~hits.decided(name, top=TOP), bootstrap) for name in hits.places},
        "methods": {
            method: {at: _box_figures(hits, method, at, bootstrap) for at in THRESHOLD_KINDS} for method in hits.methods
        },
    }


def compare_networks(own: Mapping[str, Measured], **bootstrap) -> dict:
    """Paired differences between the networks of one backbone and the maps of each.

    Args:
        own: kind of network to what was measured; those that are missing leave their differences out.
        **bootstrap: `seed` and `resamples`.

    Returns:
        "differences", each of two methods "a" and "b" as (kind, method), `COMPARED` of a - b at both thresholds; and
        "parts": for each softmax network what the difference of the metric network's Dist-CAM and its own CAM is made
        of, see `difference_parts`.
    """
    pairs = [((kind, a), (kind, b)) for kind in own for a, b in _WITHIN]
    pairs += [(("metric", a), (kind, "cam")) for kind in SOFTMAX_KINDS for a in ("dist_cam", "dist_cam_literal")]
    differences = []
    for (left, a), (right, b) in pairs:
        if left in own and right in own and a in own[left].hits.methods and b in own[right].hits.methods:
            figures = {at: _difference(own[left].hits, own[right].hits, a, b, at, bootstrap) for at in THRESHOLD_KINDS}
            differences.append({"a": (left, a), "b": (right, b), **figures})
    metric = own["metric"].hits if "metric" in own else None
    parts = {
        kind: {at: difference_parts(own[kind].hits, metric, at, **bootstrap) for at in THRESHOLD_KINDS}
        for kind in SOFTMAX_KINDS
        if kind in own
    }
    return {"differences": differences, "parts": parts}


def difference_parts(softmax: Hits, metric: Hits | None, at: str, **bootstrap) -> dict:
    """What the metric network's Dist-CAM less the softmax network's CAM is made of.

    The paper compares two networks with two maps, which decide about the class in two ways. One thing is changed at a
    time, so the parts add up to the total:

    * "decision": of the softmax network with CAM's box, from its linear layer to the nearest prototype. GT-known, which
      takes the class as given, has no such part.
    * "map": of the softmax network by the nearest prototype, from CAM's box to Dist-CAM's.
    * "network": of Dist-CAM by the nearest prototype, from the softmax network to the metric one.

    Args:
        softmax: what the network with a linear layer got right.
        metric: what the other got right; without it there is neither "network" nor "total".
        at: "default" or "tuned".
        **bootstrap: `seed` and `resamples`.

    Returns:
        Measure to part to its figure, None where it is not defined.
    """
    if metric is not None:
        softmax, metric = common_rows(softmax, metric)
    errors = [softmax.errors("cam", at), softmax.errors("cam", at, decision="nearest"), softmax.errors("dist_cam", at)]
    boxes = [softmax.boxes("cam", at), softmax.boxes("cam", at), softmax.boxes("dist_cam", at)]
    if metric is not None:
        errors.append(metric.errors("dist_cam", at))
        boxes.append(metric.boxes("dist_cam", at))
    found: dict[str, dict] = {}
    for measure, states in zip(COMPARED, (errors, boxes), strict=True):
        changes = [_minus(after, before) for before, after in itertools.pairwise(states)]
        found[measure] = dict.fromkeys(PARTS)
        found[measure] |= {
            name: _figure(values, bootstrap) for name, values in zip(PARTS[: len(changes)], changes, strict=True)
        }
        if metric is not None:
            found[measure]["total"] = _figure(_minus(states[-1], states[0]), bootstrap)
    found["gt_known"]["decision"] = None
    return found


def _box_figures(hits: Hits, method: str, at: str, bootstrap) -> dict:
    figures = {
        "top1_error": _figure(hits.errors(method, at), bootstrap),
        "top5_error": _figure(hits.errors(method, at, top=TOP), bootstrap),
        "gt_known": _figure(hits.boxes(method, at), bootstrap),
    }
    threshold = hits.threshold(method, at)
    return figures if threshold is None else figures | {"threshold": threshold}


def _difference(left: Hits, right: Hits, a: str, b: str, at: str, bootstrap) -> dict:
    if left is not right:
        left, right = common_rows(left, right)
    return {
        "top1_error": _figure(_minus(left.errors(a, at), right.errors(b, at)), bootstrap),
        "gt_known": _figure(_minus(left.boxes(a, at), right.boxes(b, at)), bootstrap),
    }


def _minus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The difference of two rights or wrongs on the same images: -1, 0 or 1."""
    return a.astype(np.int8) - b.astype(np.int8)


def _figure(values: np.ndarray, bootstrap) -> dict:
    return dataclasses.asdict(share_figure(values, **bootstrap))
