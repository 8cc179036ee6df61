"""Figures and tables of the study of explanations, from what was measured on each network."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from distcam_jax.evaluators import figures
from distcam_jax.evaluators.tables import figure_cell
from distcam_jax.report import Column, Row, Table

PAIR_MEASURES = ("pointing", "energy", "swap")
RIGHT, WRONG = ("right", "right_minmax"), ("wrong", "wrong_minmax")
THRESHOLDS = ("threshold", "threshold_minmax")
DIFFERENCES = (*RIGHT, "pointing")
CONTROLS = {"random": "random map", "center": "Gaussian about the centre"}  # of `faithfulness`
_PERCENT = {"percent": True, "decimals": 1}
_COLUMNS = {
    "right": Column("GT-known, tuned", best="max", **_PERCENT),
    "wrong": Column("with a wrong class", **_PERCENT),
    "right_minmax": Column("GT-known, tuned, from the minimum", best="max", **_PERCENT),
    "wrong_minmax": Column("with a wrong class", **_PERCENT),
    "pointing": Column("two-object pointing", best="max", **_PERCENT),
    "energy": Column("energy in the right half", best="max", **_PERCENT),
    "swap": Column("swap test", best="max", **_PERCENT),
    "correlation": Column("correlation between classes", decimals=2),
    "deletion": Column("deletion", decimals=2, best="min"),
    "insertion": Column("insertion", decimals=2, best="max"),
}


def summarize(measured: dict[str, dict], **bootstrap) -> dict:
    """Figures with intervals, and paired differences from CAM, of all that was measured.

    Args:
        measured: network to what `explanations` found.
        **bootstrap: `seed` and `resamples`.

    Returns:
        "networks": network to figures by method, "boxes" and "controls" that are no method, and "randomized", by last
        part that is random and method; "differences": of each method from CAM of its network, and of each method of a
        network without a linear layer from CAM of the others.
    """
    networks = {network: _network_figures(result, bootstrap) for network, result in measured.items()}
    differences = []
    for network, result in measured.items():
        for other, others in measured.items():
            if "cam" not in others["methods"] or (network != other and "cam" in result["methods"]):
                continue
            cam = others["methods"]["cam"]
            kinds = [kind for kind in DIFFERENCES if kind in cam]
            for name, rows in result["methods"].items():
                if name != "cam" and kinds:
                    names = {"a": f"{network}: {rows['title']}", "b": f"{other}: CAM"}
                    differences.append(names | {kind: _difference(rows[kind], cam[kind], bootstrap) for kind in kinds})
    return {"networks": networks, "differences": differences}


def _network_figures(result: dict, bootstrap) -> dict:
    areas, by_method = result.get("faithfulness", {}), {}
    for name, rows in result["methods"].items():
        kinds = (
            (*RIGHT, *WRONG, *PAIR_MEASURES, "correlation") if rows["asks"] else (*RIGHT, *PAIR_MEASURES, "correlation")
        )
        found = {kind: _figure(rows[kind], bootstrap) for kind in kinds if kind in rows}
        found |= {kind: _figure(values[name], bootstrap) for kind, values in areas.items() if name in values}
        by_method[name] = {"title": rows["title"], **{key: rows[key] for key in THRESHOLDS if key in rows}, **found}
    figures_of = {"images": result["images"], "methods": by_method}
    if "top1" in result:
        figures_of["nearest_prototype_top1"] = _figure(result["top1"], bootstrap)
        figures_of["boxes"] = {name: _figure(values, bootstrap) for name, values in result["boxes"].items()}
    if areas:
        figures_of["faithful_images"] = len(areas["deletion"]["center"])
        figures_of["controls"] = {
            name: {kind: _figure(values[name], bootstrap) for kind, values in areas.items()}
            for name in CONTROLS
            if name in areas["deletion"] and name not in by_method
        }
    for part, similarities in result.get("randomized", {}).items():
        found = {name: _figure(values, bootstrap) for name, values in similarities.items()}
        figures_of.setdefault("randomized", {})[part] = found
        figures_of["randomized_images"] = len(next(iter(similarities.values())))
    return figures_of


def _figure(values: Sequence, bootstrap) -> dict | None:
    """Of what is known; None where nothing is."""
    known = np.array([value for value in values if value is not None], np.float64)
    return dataclasses.asdict(figures.mean_figure(known, **bootstrap)) if len(known) else None


def _difference(a, b, bootstrap) -> dict:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return dataclasses.asdict(figures.difference_figure(a, b, **bootstrap))


def make_tables(metrics: dict) -> list[Table]:
    """For each network a table of its maps and one of random parameters, as far as measured; differences from CAM.

    Args:
        metrics: of `explanations`.

    Returns:
        The tables.
    """
    tables = []
    for network, result in metrics["networks"].items():
        kept = [kind for kind in _COLUMNS if any(kind in found for found in result["methods"].values())]
        tables += [_maps_table(network, result, kept, metrics["intervals"])] if kept else []
        tables += [_randomized_table(network, result, metrics)] if "randomized" in result else []
    kinds = [kind for kind in DIFFERENCES if all(kind in row for row in metrics["differences"])]
    rows = [
        Row(f"{row['a']} − {row['b']}", [figure_cell(row[measure]) for measure in kinds])
        for row in metrics["differences"]
    ]
    columns = [Column(_COLUMNS[kind].name, **_PERCENT) for kind in kinds]
    note = "In points, on the same images and pairs; one whose interval holds 0 is none."
    return [*tables, Table("Paired differences from CAM", columns, rows, note=note)] if rows else tables


def _maps_table(network: str, result: dict, kept: Sequence[str], intervals: str) -> Table:
    rows = [
        Row(found["title"], [figure_cell(found.get(kind)) for kind in kept]) for found in result["methods"].values()
    ]
    for name, box in result.get("boxes", {}).items():  # they have no threshold, class or map
        cells = [figure_cell(box if kind in RIGHT else None) for kind in kept]
        rows.append(Row(figures.BASELINES[name], cells, muted=True))
    for name, found in result.get("controls", {}).items():
        rows.append(Row(CONTROLS[name], [figure_cell(found.get(kind)) for kind in kept], muted=True))
    notes = []
    if "nearest_prototype_top1" in result:
        value, low, high = (100 * result["nearest_prototype_top1"][key] for key in ("value", "low", "high"))
        notes.append(f"{result['images']} images; nearest prototype top-1 {value:.1f} [{low:.1f}, {high:.1f}] %.")
    if "pointing" in kept:
        notes.append("Chance is 50 % for pointing, energy and swap.")
    if "deletion" in kept:
        notes.append(
            "Deletion and insertion are areas under the margin's curve in units of the mean absolute margin, of "
            f"{result['faithful_images']} images."
        )
    notes.append(f"Intervals: {intervals}.")
    return Table(network, [_COLUMNS[kind] for kind in kept], rows, note=" ".join(notes))


def _randomized_table(network: str, result: dict, metrics: dict) -> Table:
    """How alike the maps stay: methods by the last part that is random."""
    parts, options = result["randomized"], metrics["config"]["evaluate"]
    rows = [
        Row(found["title"], [figure_cell(similarities[name]) for similarities in parts.values()])
        for name, found in result["methods"].items()
    ]
    return Table(
        f"{network}: maps where parameters are random",
        [Column(part, decimals=2) for part in parts],
        rows,
        note="Spearman's correlation with the maps of the trained network, where the parts from the output to that of "
        f"the column are random; 1 is a map that does not look at them, and where a map is constant it counts as 0. "
        f"{result['randomized_images']} images, "
        f"{options['randomized_samples']} training images a class for the prototypes of each network, also of the "
        f"trained one. A head has no say in maps that are made from prototypes. Intervals: {metrics['intervals']}.",
    )
