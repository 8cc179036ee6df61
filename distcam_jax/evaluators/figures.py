"""From per-image measurements to figures with 95 % intervals."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from distcam_jax.evaluators.classify import Classification
from distcam_jax.evaluators.localize import (
    DEFAULT_THRESHOLD,
    Localization,
    scaled_name,
    threshold_index,
    unpack_correct,
)
from distcam_jax.methods import METHODS
from distcam_jax.statistics import bootstrap_interval, paired_bootstrap_interval

IOU = 0.5


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean over images with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def as_dict(value):
    """Figures anywhere in dicts and lists, as JSON takes them."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: as_dict(item) for key, item in value.items()}
    return [as_dict(item) for item in value] if isinstance(value, list) else value


def mean_figure(values: np.ndarray, *, seed: int, resamples: int) -> Figure:
    """Mean of one figure an image, with its bootstrap interval."""
    low, high = bootstrap_interval(values, seed=seed, resamples=resamples)
    return Figure(float(np.mean(values)), low, high)


def difference_figure(a: np.ndarray, b: np.ndarray, *, seed: int, resamples: int) -> Figure:
    """Mean of `a - b` over the same images, with its paired bootstrap interval."""
    low, high = paired_bootstrap_interval(a, b, seed=seed, resamples=resamples)
    return Figure(float(np.mean(a) - np.mean(b)), low, high)


def classification_figures(measured: Localization | Classification, **bootstrap) -> dict[str, Figure]:
    """Top-1 and top-5 accuracy of each decision of a network.

    Args:
        measured: one pass over a split.
        **bootstrap: `seed` and `resamples`.

    Returns:
        "softmax_top1", "nearest_prototype_top1" and so on.
    """
    figures = {}
    for name, ranked in measured.decisions.items():
        hits = ranked == measured.labels[:, None]
        title = {"softmax": "softmax", "nearest": "nearest_prototype"}[name]
        figures[f"{title}_top1"] = mean_figure(hits[:, 0], **bootstrap)
        figures[f"{title}_top5"] = mean_figure(hits.any(axis=1), **bootstrap)
    return figures


def box_figures(correct: np.ndarray, measured: Localization, method: str, **bootstrap) -> dict[str, Figure]:
    """Localisation figures of one kind of box.

    Args:
        correct: whether each image's box is right `[n]`.
        measured: the pass that it comes from.
        method: whose class decision counts.
        **bootstrap: `seed` and `resamples`.

    Returns:
        "top1_error", "top5_error" (class and box right) and "gt_known" (box right).
    """
    hits = measured.decision(method) == measured.labels[:, None]
    return {
        "top1_error": mean_figure(~(hits[:, 0] & correct), **bootstrap),
        "top5_error": mean_figure(~(hits.any(axis=1) & correct), **bootstrap),
        "gt_known": mean_figure(correct, **bootstrap),
    }


def localization_figures(measured: Localization, tuned: Mapping[str, float], **bootstrap) -> dict[str, dict]:
    """Every method's and baseline's figures.

    Args:
        measured: one pass over the reported split.
        tuned: thresholds from `tune_thresholds`.
        **bootstrap: `seed` and `resamples`.

    Returns:
        Method to its figures: at the protocol's threshold ("default"), at the tuned one ("tuned", with its
        "threshold"), at that of maps scaled from their minimum ("from_minimum", with "threshold_from_minimum"; where
        they were measured), and GT-known when a wrong class's map is used ("wrong_class_gt_known") at all of them. The
        baselines "center_box", "whole_image" and "wrong_prototype" (Dist-CAM asked for a wrong class) likewise. Of
        further protocols, MaxBoxAcc by the protocol's name.
    """
    rows = {}
    for name in (name for name in measured.right_iou if name in METHODS):
        rows[name] = _at_thresholds("", measured, name, tuned, bootstrap)
        if METHODS[name].asks:
            for kind, (scaling, threshold) in _kinds(measured, name, tuned).items():
                wrong = hits(measured, f"wrong_{name}", threshold, scaling=scaling)
                rows[name][kind]["wrong_class_gt_known"] = mean_figure(wrong, **bootstrap)
    for protocol, by_method in measured.correct.items():
        for name, packed in by_method.items():
            rows[name][protocol] = max_box_figure(unpack_correct(packed, protocol), **bootstrap)
    for name, values in measured.box_iou.items():
        figures = box_figures(values >= IOU, measured, name, **bootstrap)
        rows[name] = dict.fromkeys(_kinds(measured, "dist_cam", tuned), figures)
    rows["wrong_prototype"] = _at_thresholds("wrong_", measured, "dist_cam", tuned, bootstrap)
    return rows


def max_box_figure(correct: np.ndarray, **bootstrap) -> Figure:
    """Mean over the IoUs of the best accuracy over the thresholds; the interval is that at these thresholds.

    Args:
        correct: whether each image is right `[n, thresholds, ious]`.
        **bootstrap: `seed` and `resamples`.

    Returns:
        MaxBoxAcc (one IoU) or MaxBoxAccV2 (three), see `distcam_jax.localization`.
    """
    best = correct.mean(axis=0).argmax(axis=0)
    return mean_figure(correct[:, best, np.arange(len(best))].mean(axis=1), **bootstrap)


def _kinds(measured: Localization, method: str, tuned: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    """How boxes are made of a method's maps: kind of figure to scaling and threshold."""
    kinds = {"default": ("max", DEFAULT_THRESHOLD), "tuned": ("max", tuned[method])}
    scaled = scaled_name(method, "minmax")
    return kinds | ({"from_minimum": ("minmax", tuned[scaled])} if scaled in measured.right_iou else {})


def _at_thresholds(asked: str, measured, method, tuned, bootstrap) -> dict:
    """Figures of the maps of the true class, or of a wrong one where asked is "wrong_"."""
    kinds = _kinds(measured, method, tuned)
    figures: dict = {
        kind: box_figures(hits(measured, asked + method, threshold, scaling=scaling), measured, method, **bootstrap)
        for kind, (scaling, threshold) in kinds.items()
    }
    names = {"tuned": "threshold", "from_minimum": "threshold_from_minimum"}
    return figures | {name: kinds[kind][1] for kind, name in names.items() if kind in kinds}


def hits(measured: Localization, method: str, threshold: float, *, scaling: str = "max") -> np.ndarray:
    """Whether each image's box is right.

    Args:
        measured: one pass over a split.
        method: of `METHODS`, "wrong_" and one, or a trivial box.
        threshold: one of `THRESHOLDS`.
        scaling: of the maps, one that was measured; see `localize`.

    Returns:
        `[n]`.
    """
    if method in measured.box_iou:
        return measured.box_iou[method] >= IOU
    ious = measured.wrong_iou if method.startswith("wrong_") else measured.right_iou
    return ious[scaled_name(method.removeprefix("wrong_"), scaling)][:, threshold_index(threshold)] >= IOU


BASELINES = {
    "center_box": "centre box (80 % a side)",
    "whole_image": "whole image",
    "wrong_prototype": "a wrong class's prototype",
}
TITLES = {name: method.title for name, method in METHODS.items()} | BASELINES
