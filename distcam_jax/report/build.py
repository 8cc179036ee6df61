"""One call from features of any framework to the report page."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distcam_jax.cam import (
    channel_distances,
    contrastive_dist_cam,
    contrastive_weights,
    dist_cam,
    dist_cam_pairs,
    global_average_pool,
    nearest_prototype,
    weighted_channel_sum,
)
from distcam_jax.files import check_writable
from distcam_jax.localization import best_iou, center_box, heatmap_to_box, whole_image_box
from distcam_jax.report.build_explorer import make_explorer
from distcam_jax.report.inputs import ReportInputs, check_inputs
from distcam_jax.report.page import save_report
from distcam_jax.report.parts import Case, Comparison, ComparisonRow, Panel, Report, Section
from distcam_jax.report.tables import Column, Measure, Row, Table, wilson_interval
from distcam_jax.statistics import bootstrap_interval

_BLOCK_ENTRIES = 2**24  # images × classes × channels worked on at once: 64 MiB of floats
_COMPARED = 4  # rows and columns of the comparison with prototypes
_RIGHT_IOU = 0.5


@dataclass(frozen=True, eq=False)
class _Options:
    """How maps become weights and boxes."""

    norm: str
    eps: float
    threshold: float


@dataclass(frozen=True, eq=False)
class _Explained:
    """Maps `[n, h, w]` of each image for one class each, their boxes and the best IoU of these (NaN: no true box)."""

    maps: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray]
    ious: dict[str, np.ndarray]


def write_report(
    images: Any,
    features: Any,
    prototypes: Any,
    class_names: Sequence[Any],
    *,
    output: str | os.PathLike = "report.html",
    labels: Any = None,
    boxes: Sequence[Any] | None = None,
    class_weights: Any = None,
    file_names: Sequence[Any] | None = None,
    title: str = "Dist-CAM report",
    data_format: str = "NHWC",
    norm: str = "sum",
    eps: float = 0.1,
    threshold: float = 0.2,
    max_images: int = 24,
    seed: int = 0,
    max_explorer_images: int = 1000,
) -> Path:
    """Explains images by their nearest class prototypes and writes one self-contained HTML page.

    The features may come from any framework. The prediction is the class whose prototype is nearest (L1 distance of
    pooled features); the maps explain this prediction. With true boxes the page says how well the maps localise.

    Args:
        images: `[n, H, W, 3]`, uint8 or floats in [0, 1], not normalised. A tensor of another framework must be one
            that `numpy.asarray` takes: on the CPU, detached.
        features: `[n, h, w, k]`, the maps before global pooling, that cover the whole image.
        prototypes: `[c, k]`, mean pooled feature of each class (see `class_prototypes`).
        class_names: c names.
        output: path of the page. Its folder is made where it does not exist.
        labels: `[n]` true classes, if known.
        boxes: n arrays `[m, 4]` of `x0, y0, x1, y1` in pixels, exclusive end; an entry may be empty or None.
        class_weights: `[c, k]` weights of a softmax classifier on the same features; adds CAM.
        file_names: n names to show.
        title: the page's heading.
        data_format: "NCHW" where images are `[n, 3, H, W]` and features `[n, k, h, w]`, as in PyTorch.
        norm: of the weights, as in `reciprocal_weights`.
        eps: of the weights, as in `reciprocal_weights`.
        threshold: fraction of a map's maximum at which its box is cut, in [0, 1].
        max_images: how many images the sections show at most; all count in the figures. Each adds about 0.2 MB.
        seed: of the random cases.
        max_explorer_images: how many images the page's explorer holds at most, drawn at random from more; there class,
            method and threshold can be chosen. Each adds about 0.02 MB; 0 leaves the explorer out.

    Returns:
        The path of the page.

    Raises:
        ValueError: for shapes, lengths or values that do not fit, naming the argument.
        OSError: where the page cannot be written.

    Example:
        >>> import tempfile
        >>> features = np.random.default_rng(0).random((4, 7, 7, 8), np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(np.zeros((4, 64, 64, 3)), features, features.mean((1, 2))[:2], ["cat", "dog"],
        ...                         output=f"{folder}/report.html")
        ...     "Dist-CAM" in page.read_text()
        True
    """
    if max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}")
    if max_explorer_images < 0:
        raise ValueError(f"max_explorer_images must be at least 0, got {max_explorer_images}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    inputs = check_inputs(
        images, features, prototypes, class_names, labels, boxes, class_weights, file_names, data_format
    )
    check_writable(output)
    options = _Options(norm, eps, threshold)
    distances = _distances(inputs)
    predictions = distances.argmin(axis=1)
    explained = _explain(inputs, predictions, options)
    report = Report(
        title=title,
        subtitle=_subtitle(inputs),
        tables=_tables(inputs, predictions, explained, options),
        settings=_settings(inputs, options, seed),
        comparisons=_comparisons(inputs, distances, options, seed),
        sections=_sections(inputs, distances, explained, max_images, seed),
        explorer=make_explorer(
            inputs,
            distances,
            functools.partial(_class_maps, options=options),
            threshold=threshold,
            limit=max_explorer_images,
            seed=seed,
        ),
    )
    return save_report(report, output)


def _blocks(inputs: ReportInputs) -> list[slice]:
    """Returns slices over the images that keep `[images, c, k]` small."""
    step = max(1, _BLOCK_ENTRIES // inputs.prototypes.size)
    return [slice(start, start + step) for start in range(0, len(inputs.images), step)]


def _distances(inputs: ReportInputs) -> np.ndarray:
    """Returns the distance `[n, c]` of every image to every prototype."""
    return np.concatenate(
        [
            np.asarray(nearest_prototype(global_average_pool(inputs.features[block]), inputs.prototypes)[1])
            for block in _blocks(inputs)
        ]
    )


def _class_maps(inputs: ReportInputs, classes: np.ndarray, options: _Options) -> dict[str, np.ndarray]:
    """Returns the maps `[n, h, w]` of every method, each image explained for its own one of the classes `[n]`."""
    maps: dict[str, list] = {}
    for block in _blocks(inputs):
        features, chosen = inputs.features[block], classes[block]
        if inputs.class_weights is not None:
            maps.setdefault("CAM", []).append(weighted_channel_sum(features, inputs.class_weights[chosen]))
        plain = dist_cam_pairs(features, inputs.prototypes[chosen], norm=options.norm, eps=options.eps)
        maps.setdefault("Dist-CAM", []).append(plain)
        pooled = global_average_pool(features)
        weights = contrastive_weights(channel_distances(pooled[:, None], inputs.prototypes))
        weights = weights[np.arange(len(chosen)), chosen]
        maps.setdefault("Contrastive Dist-CAM", []).append(weighted_channel_sum(features, weights))
    return {name: np.concatenate([np.asarray(part) for part in parts]) for name, parts in maps.items()}


def _explain(inputs: ReportInputs, classes: np.ndarray, options: _Options) -> _Explained:
    """Explains every image for its class and compares the boxes with the true ones."""
    maps = _class_maps(inputs, classes, options)
    size = (inputs.images.shape[2], inputs.images.shape[1])
    boxes = {
        name: np.stack([heatmap_to_box(heatmap, size, threshold=options.threshold) for heatmap in heatmaps])
        for name, heatmaps in maps.items()
    }
    return _Explained(maps, boxes, {name: _best_ious(inputs, found) for name, found in boxes.items()})


def _best_ious(inputs: ReportInputs, found: np.ndarray) -> np.ndarray:
    """Returns each image's best IoU; NaN where it has no true box."""
    if inputs.boxes is None:
        return np.full(len(found), np.nan)
    return np.array(
        [best_iou(box, true) if len(true) else np.nan for box, true in zip(found, inputs.boxes, strict=True)]
    )


def _subtitle(inputs: ReportInputs) -> str:
    count, classes = len(inputs.images), len(inputs.class_names)
    return (
        f"{count:,} image{'s' * (count > 1)}, {classes:,} class{'es' * (classes > 1)}, each explained by its prototype"
    )


def _settings(inputs: ReportInputs, options: _Options, seed: int) -> dict[str, Any]:
    _, height, width, _ = inputs.images.shape
    _, h, w, k = inputs.features.shape
    return {
        "images": f"{len(inputs.images):,}",
        "image size": f"{width} by {height} px",
        "feature map": f"{w} by {h}, {k:,} channels",
        "classes": f"{len(inputs.class_names):,}",
        "decision": "nearest prototype, L1",
        "weights": f"{options.norm}, eps {options.eps:g}",
        "box threshold": f"{options.threshold:g} of the maximum",
        "seed": seed,
    }


def _tables(inputs: ReportInputs, predictions: np.ndarray, explained: _Explained, options: _Options) -> list[Table]:
    """Returns the tables that the labels and boxes allow."""
    tables = []
    if inputs.labels is not None:
        right = int((predictions == inputs.labels).sum())
        columns = [Column("Images"), Column("Top-1 accuracy, %", percent=True)]
        row = Row("Nearest prototype", [len(predictions), wilson_interval(right, len(predictions))])
        tables.append(Table("Classification", columns, [row], "" if inputs.boxes else "95 % interval: Wilson score."))
    if inputs.boxes is not None and any(map(len, inputs.boxes)):
        tables.append(_localization_table(inputs, predictions, explained, options))
    return tables


def _localization_table(inputs: ReportInputs, predictions, explained: _Explained, options: _Options) -> Table:
    """Compares the methods and the baselines on the images that have true boxes."""
    ious = dict(explained.ious)
    known = ious if inputs.labels is None else dict(_explain(inputs, inputs.labels, options).ious)
    n, size = len(inputs.images), (inputs.images.shape[2], inputs.images.shape[1])
    uniform = [heatmap_to_box(heatmap, size, threshold=options.threshold) for heatmap in inputs.features.sum(axis=-1)]
    baselines = {
        "Uniform weights": np.stack(uniform),
        "Centre box, 80 %": np.tile(center_box(size), (n, 1)),
        "Whole image": np.tile(whole_image_box(size), (n, 1)),
    }
    for name, found in baselines.items():
        ious[name] = known[name] = _best_ious(inputs, found)
    columns = [Column("IoU ≥ 0.5, %", "max", percent=True), Column("Mean IoU", "max", decimals=3)]
    if inputs.labels is not None:
        columns = [Column("Top-1, %", "max", percent=True), Column("GT-known, %", "max", percent=True), columns[1]]
    rows = []
    for name in ious:
        boxed = ~np.isnan(ious[name])
        predicted, true = ious[name][boxed], known[name][boxed]
        cells = [_share(true >= _RIGHT_IOU)]
        if inputs.labels is not None:
            cells.insert(0, _share((predicted >= _RIGHT_IOU) & (predictions == inputs.labels)[boxed]))
        cells.append(Measure(float(true.mean()), *bootstrap_interval(true)))
        rows.append(Row(name, cells, muted=name in baselines))
    note = "95 % intervals: Wilson score for shares, bootstrap over images for the mean."
    if inputs.labels is not None:
        note = (
            "Top-1: class right and IoU ≥ 0.5 with the map of the predicted class. GT-known and mean IoU: with the map "
            "of the true class. " + note
        )
    return Table("Localisation", columns, rows, note)


def _share(right: np.ndarray) -> Measure:
    return wilson_interval(int(right.sum()), len(right))


def _sections(inputs: ReportInputs, distances, explained: _Explained, max_images: int, seed: int) -> list[Section]:
    """Returns the best, the worst and random cases, each image once."""
    scores, best_text, worst_text = _ranking(inputs, distances, explained)
    ranked = np.flatnonzero(~np.isnan(scores))
    ranked = ranked[np.argsort(-scores[ranked], kind="stable")]
    each = min(max_images // 3, len(ranked) // 3)
    best, worst = ranked[:each], ranked[::-1][:each]
    rest = np.setdiff1d(np.arange(len(scores)), [*best, *worst])
    drawn = np.random.default_rng(seed).permutation(rest)[: max_images - 2 * each]
    explains = "The maps explain the predicted class."
    cases = {index: _case(inputs, distances, explained, index) for index in map(int, [*best, *worst, *drawn])}
    return [
        Section("Best cases", f"{best_text} {explains}", [cases[index] for index in best]),
        Section("Worst cases", f"{worst_text} {explains}", [cases[index] for index in worst]),
        Section(
            "Random cases" if each else "Images",
            f"Drawn with seed {seed}. {explains}",
            [cases[index] for index in drawn],
        ),
    ]


def _ranking(inputs: ReportInputs, distances, explained: _Explained) -> tuple[np.ndarray, str, str]:
    """Returns a score an image, high is good, and what the best and the worst are."""
    if inputs.boxes is not None and any(map(len, inputs.boxes)):
        overlap = "overlap (IoU) of the Dist-CAM box with a true box"
        return explained.ious["Dist-CAM"], f"Largest {overlap}.", f"Smallest {overlap}."
    of_class = distances.argmin(axis=1) if inputs.labels is None else inputs.labels
    rows = np.arange(len(distances))
    own = distances[rows, of_class]
    others = distances.copy()
    others[rows, of_class] = np.inf
    if distances.shape[1] == 1:
        return -own, "The images nearest to the prototype.", "The images farthest from the prototype."
    which = "predicted" if inputs.labels is None else "true"
    best = f"The {which} class is nearer than any other by the largest margin."
    worst = f"The {which} class has the smallest margin over the others" + (
        "." if inputs.labels is None else ", or none."
    )
    return others.min(axis=1) - own, best, worst


def _case(inputs: ReportInputs, distances, explained: _Explained, index: int) -> Case:
    """Returns one image with its maps."""
    prediction = int(distances[index].argmin())
    ious = {name: None if np.isnan(values[index]) else float(values[index]) for name, values in explained.ious.items()}
    return Case(
        image=inputs.images[index],
        panels=[
            Panel(name, heatmaps[index], explained.boxes[name][index], ious[name])
            for name, heatmaps in explained.maps.items()
        ],
        file_name=inputs.file_names[index],
        predicted_class=inputs.class_names[prediction],
        true_class=None if inputs.labels is None else inputs.class_names[inputs.labels[index]],
        distance=float(distances[index, prediction]),
        iou=ious["Dist-CAM"],
        true_boxes=None if inputs.boxes is None else inputs.boxes[index],
    )


def _comparisons(inputs: ReportInputs, distances, options: _Options, seed: int) -> list[Comparison]:
    """Returns images of different classes against the prototypes of these classes, for both kinds of Dist-CAM."""
    if len(inputs.class_names) < 2:
        return []
    predictions = distances.argmin(axis=1)
    order = np.random.default_rng(seed).permutation(len(predictions))
    if inputs.labels is not None:  # the right ones first
        order = order[np.argsort(predictions[order] != inputs.labels[order], kind="stable")]
    rows = {int(predictions[index]): int(index) for index in order[::-1]}  # the last one written is the first in order
    rows = dict(sorted(rows.items(), key=lambda item: int(np.flatnonzero(order == item[1])[0]))[:_COMPARED])
    # with few predicted classes, the next nearest fill the columns
    near = sorted(range(distances.shape[1]), key=lambda c: distances[list(rows.values()), c].min())
    classes = list(dict.fromkeys([*rows, *near]))[:_COMPARED]
    plain, contrastive = [], []
    for index in rows.values():
        features = inputs.features[index]
        common = (
            inputs.images[index],
            distances[index, classes].tolist(),
            inputs.file_names[index],
            _true(inputs, index),
        )
        for target, maps in (
            (plain, dist_cam(features, inputs.prototypes[classes], norm=options.norm, eps=options.eps)),
            (contrastive, contrastive_dist_cam(features, inputs.prototypes)[np.array(classes)]),
        ):
            target.append(ComparisonRow(common[0], list(np.asarray(maps)), *common[1:]))
    names = [inputs.class_names[index] for index in classes]
    under = "Under each map stands the distance to the class's prototype."
    return [
        Comparison("Dist-CAM", f"What each image has in common with each prototype. {under}", names, plain),
        Comparison(
            "Contrastive Dist-CAM", f"What speaks for this class rather than the others. {under}", names, contrastive
        ),
    ]


def _true(inputs: ReportInputs, index: int) -> str | None:
    return None if inputs.labels is None else inputs.class_names[inputs.labels[index]]
