"""From what every network's passes found to figures with intervals, and from these to tables."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from distcam_jax.evaluators.ablation_pass import Scores
from distcam_jax.evaluators.ablation_rows import Ablation, Line
from distcam_jax.evaluators.localize import DEFAULT_THRESHOLD, THRESHOLDS, threshold_index
from distcam_jax.evaluators.tables import figure_cell
from distcam_jax.report import Column, Row, Table

KINDS = ("default", "tuned")
MEASURES = ("gt_known", "top1_error")
_NAMES = {"gt_known": "GT-known", "top1_error": "Top-1 error"}
_FIXED = ("center_box", "whole_image")  # boxes that no threshold changes


class Resamples:
    """Bootstrap intervals of many figures of the same images, as `bootstrap_interval` makes them one by one.

    How often each resample has each image is counted once for all figures.

    Args:
        n: images.
        seed: of the resamples.
        resamples: how many.

    Examples:
        >>> Resamples(4, seed=0, resamples=50).figure(np.ones(4))
        {'value': 1.0, 'low': 1.0, 'high': 1.0}
    """

    def __init__(self, n: int, *, seed: int, resamples: int):
        generator = np.random.default_rng(seed)
        self._counts = np.stack([np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(resamples)])
        self._counts = self._counts.astype(np.float64)

    def figure(self, values: Float[np.ndarray, " n"]) -> dict[str, float]:
        """Mean of one figure an image, with its 95 % percentile interval."""
        means = self._counts @ values / len(values)
        low, high = np.quantile(means, [0.025, 0.975])
        return {"value": float(np.mean(values)), "low": float(low), "high": float(high)}


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """One view of a network: its scores on the images that tune thresholds, and on those that are reported."""

    tune: Scores
    eval: Scores


@dataclasses.dataclass(frozen=True, eq=False)
class _Values:
    """A row's values image by image `[n]`, and the means of what it is the mean of."""

    gt_known: np.ndarray
    top1_error: np.ndarray
    members: dict[str, list[float]]


def summarize(ablations: Mapping[str, Ablation], measured: Mapping[str, Measured], **bootstrap) -> dict:
    """All figures of all tables.

    Args:
        ablations: of `make_ablations`.
        measured: view to what was measured of it.
        **bootstrap: `seed` and `resamples`.

    Returns:
        Table to its title, note and rows, as JSON takes them.

    Raises:
        ValueError: when views were measured on different images.
    """
    index = [one.eval.index for one in measured.values()]
    if any(not np.array_equal(other, index[0]) for other in index[1:]):
        raise ValueError("the networks were measured on different images, so nothing can be compared; check their data")
    resamples = Resamples(len(index[0]), **bootstrap)
    return {
        name: {
            "title": table.title,
            "note": table.note,
            "decides": table.decides,
            "repeats": table.repeats,
            "rows": [_row(line, measured, resamples) for line in table.lines],
        }
        for name, table in ablations.items()
    }


def tuned_threshold(measured: Measured, keys: Sequence[str]) -> float:
    """The threshold of best GT-known accuracy on the tuning images, over all variants; the lowest on ties."""
    return THRESHOLDS[int(np.mean([measured.tune.hits[key].mean(axis=0) for key in keys], axis=0).argmax())]


def _row(line: Line, measured: Mapping[str, Measured], resamples: Resamples) -> dict:
    fixed = line.keys[0] in _FIXED
    thresholds = {view: None if fixed else tuned_threshold(measured[view], line.keys) for view in line.views}
    row: dict[str, Any] = {"label": line.label, "muted": line.muted, "networks": line.views, "variants": line.keys}
    row["thresholds"] = None if fixed else list(thresholds.values())
    for kind in KINDS:
        own = _values(measured, line.views, line.keys, kind)
        base = None if line.base is None else _values(measured, *line.base, kind)
        row[kind] = {}
        for measure in MEASURES:
            values, members = getattr(own, measure), own.members[measure]
            row[kind][measure] = resamples.figure(values)
            row[kind][measure] |= {"spread": float(np.std(members, ddof=1)) if len(members) > 1 else None}
            difference = None if base is None else resamples.figure(values - getattr(base, measure))
            row[kind][f"{measure}_difference"] = difference
    right = [measured[view].eval.class_right[key] for view in line.views for key in line.keys]
    row["class_right"] = resamples.figure(np.mean(right, axis=0))
    return row


def _values(measured, views: Sequence[str], keys: Sequence[str], kind: str) -> _Values:
    """Means over views and keys; at the protocol's threshold, or each view's tuned one."""
    hits, errors = [], []
    for view in views:
        scores = measured[view].eval
        at = threshold_index(DEFAULT_THRESHOLD if kind == "default" else tuned_threshold(measured[view], keys))
        hits += [scores.hits[key][:, at] for key in keys]
        errors += [~(scores.hits[key][:, at] & scores.class_right[key]) for key in keys]
    members = {"gt_known": [float(x.mean()) for x in hits], "top1_error": [float(x.mean()) for x in errors]}
    return _Values(np.mean(hits, axis=0), np.mean(errors, axis=0), members)


def threshold_curves(views: Sequence[str], keys: Sequence[str], measured: Mapping[str, Measured], **bootstrap) -> dict:
    """GT-known at every threshold.

    Args:
        views: names of networks.
        keys: names of variants.
        measured: view to what was measured of it.
        **bootstrap: `seed` and `resamples`.

    Returns:
        View to variant to figures, one a threshold of `THRESHOLDS`.
    """
    if not views:
        return {}
    resamples = Resamples(len(measured[views[0]].eval.index), **bootstrap)
    return {
        view: {
            key: [resamples.figure(values.astype(np.float64)) for values in measured[view].eval.hits[key].T]
            for key in keys
        }
        for view in views
    }


def make_tables(metrics: dict) -> list[Table]:
    """One table an ablation, and one of Top-1 figures where the class decision changes.

    Args:
        metrics: of `ablations`.

    Returns:
        The tables.
    """
    tables = []
    for ablation in metrics["ablations"].values():
        tables.append(_table(ablation, "gt_known", metrics))
        if ablation["decides"]:
            tables.append(_table(ablation, "top1_error", metrics))
    return tables


def _table(ablation: dict, measure: str, metrics: dict) -> Table:
    percent, name = {"percent": True, "decimals": 1}, _NAMES[measure]
    best = {"gt_known": "max", "top1_error": "min"}[measure]
    columns, cells = [], [[] for _ in ablation["rows"]]

    def add(column: Column, values: Sequence) -> None:
        columns.append(column)
        for row, value in zip(cells, values, strict=True):
            row.append(value)

    for kind, suffix in (("default", f" at {metrics['default_threshold']}"), ("tuned", ", tuned")):
        found = [row[kind] for row in ablation["rows"]]
        add(Column(name + suffix, best=best, **percent), [figure_cell(one[measure]) for one in found])
        if ablation["repeats"]:
            spread = Column(f"spread over {ablation['repeats']}{suffix}", **percent)
            add(spread, [one[measure]["spread"] for one in found])
        add(Column(f"difference{suffix}", **percent), [figure_cell(one[f"{measure}_difference"]) for one in found])
    if measure == "gt_known":
        add(Column("tuned threshold"), [_threshold_text(row["thresholds"]) for row in ablation["rows"]])
    else:
        add(Column("class right", best="max", **percent), [figure_cell(row["class_right"]) for row in ablation["rows"]])
    rows = [Row(row["label"], values, muted=row["muted"]) for row, values in zip(ablation["rows"], cells, strict=True)]
    title = ablation["title"] if measure == "gt_known" else f"{ablation['title']}: Top-1 localisation error"
    return Table(title, columns, rows, note=_note(ablation, metrics))


def _note(ablation: dict, metrics: dict) -> str:
    general = (
        f"Protocol ilsvrc, IoU 0.5, {metrics['images']} images, {metrics['classes']} classes, in percent; differences, "
        "in points, are paired, on the same images: from the default Dist-CAM of the same network where nothing else "
        f"is said. Intervals: {metrics['intervals']}. Thresholds are tuned on {metrics['tuning_images']} other images."
    )
    return f"{ablation['note']} {general}".strip()


def _threshold_text(thresholds: Sequence[float] | None) -> str | None:
    if thresholds is None:
        return None
    low, high = f"{min(thresholds):.2f}", f"{max(thresholds):.2f}"
    return low if low == high else f"{low} to {high}"
