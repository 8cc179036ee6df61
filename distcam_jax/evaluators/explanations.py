"""How good explanations are: localisation, dependence on the class asked, and faithfulness, of many methods at once."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from tqdm import tqdm

from distcam_jax import runs, training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators import figures
from distcam_jax.evaluators.explain import bind_methods, choose_methods
from distcam_jax.evaluators.faithfulness import faithfulness
from distcam_jax.evaluators.localize import (
    SCALINGS,
    Localization,
    localize_source,
    scaled_name,
    threshold_index,
    tune_thresholds,
)
from distcam_jax.evaluators.network import Network, load_network, network_prototypes
from distcam_jax.evaluators.pieces import Pieces
from distcam_jax.evaluators.provenance import provenance, write_text
from distcam_jax.evaluators.rows import read_labels
from distcam_jax.evaluators.specificity import specificity
from distcam_jax.evaluators.tables import figure_cell
from distcam_jax.evaluators.whitening import measure_whitening
from distcam_jax.input_pipeline import Rows
from distcam_jax.methods import Method, margin_maps
from distcam_jax.methods.margins import EVIDENCE_NEEDS
from distcam_jax.prototypes import Prototypes
from distcam_jax.report import Column, Row, Table, format_table

IOU = figures.IOU
PAIR_MEASURES = ("pointing", "energy", "swap")
RIGHT, WRONG = ("right", "right_minmax"), ("wrong", "wrong_minmax")
DIFFERENCES = (*RIGHT, "pointing")


def explanations(config: ml_collections.ConfigDict, output: str | Path) -> dict:
    """Measures every method on every network of a configuration, prints the tables and writes them.

    For each network and method: GT-known for the right class and for a wrong one, at the threshold tuned on training
    images of all classes; two-object pointing with each class asked in turn; how alike the maps of several classes are;
    deletion and insertion of the margin. What was measured is kept network by network, so that a second call goes on.

    Args:
        config: see `configs/explanations.py`.
        output: folder of the results.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: when a run is missing or was trained on other data, or names are unknown.
    """
    output, pieces, measured = Path(output), Pieces(Path(output) / "pieces"), {}
    for name in config.networks:
        folder = Path(config.runs) / name
        run_config = runs.load_comparable_run(folder, config)
        run_config.data = config.data.to_dict()
        data = training.load_split(run_config, "eval")
        network = load_network(run_config, folder, data.num_classes, name=name)
        prototypes = network_prototypes(
            network, folder / "prototypes.safetensors", data.class_names, batch=config.evaluate.batch
        )
        made_from = {"weights_hash": network.weights_hash, "data": runs.data_options(config), "seed": config.seed}
        made_from |= {"classes": list(config.classes), "evaluate": config.evaluate.to_dict()}
        measure = functools.partial(_measure, config, network, prototypes, data)
        measured[name] = pieces.get(name, made_from, measure)
    metrics = provenance(config) | summarize(measured, seed=config.seed, resamples=config.evaluate.resamples)
    tables = make_tables(metrics)
    print("\n\n".join(format_table(table) for table in tables))
    write_text(output / "tables.md", "\n\n".join(format_table(table, markdown=True) for table in tables))
    write_text(output / "metrics.json", json.dumps(metrics, indent=2))
    return metrics


def study_methods(options: ml_collections.ConfigDict, network: Network) -> dict[str, Method]:
    """The methods of a network: those of the catalogue that it has all for, and margins with options of their own."""
    chosen = choose_methods(options.methods, network, norm=options.norm, eps=options.eps, whitened=True)
    margins = {}
    for given in options.margins:
        values = dict(given)
        name = values.pop("name")
        needs = EVIDENCE_NEEDS.get(values.get("evidence", ""), ())
        margins[name] = Method(name, functools.partial(margin_maps, **values), needs)
    return chosen | margins


def _measure(config, network: Network, prototypes: Prototypes, data: Dataset) -> dict:
    """One network: for each method, what was found on every image and pair, as JSON takes it."""
    options = config.evaluate
    methods = study_methods(options, network)
    whitening = measure_whitening(network, prototypes, methods, options, seed=config.seed)
    maps = bind_methods(methods, network, prototypes, whitening=whitening)
    chosen = class_rows(data, config.classes)
    tune = training.load_split(network.config, "tune")
    splits = {"tune": tune.source, "eval": Rows(data.source, chosen)}
    passes = {}
    for split, source in splits.items():
        title = f"{split} of {network.name}"
        passes[split] = localize_source(
            network, prototypes, source, maps, title=title, batch=options.batch, scalings=SCALINGS, seed=config.seed
        )
    tuned = tune_thresholds(passes["tune"])
    labels = sorted({int(label) for label in passes["eval"].labels})
    pairs = {"pairs": options.pairs, "seed": config.seed, "classes": labels, "batch": options.pair_batch}
    pointed = specificity(network, prototypes, maps, data.source, **pairs)
    result = {
        "images": len(passes["eval"].labels),
        "boxes": {name: (values >= IOU).astype(int).tolist() for name, values in passes["eval"].box_iou.items()},
        "top1": (passes["eval"].decisions["nearest"][:, 0] == passes["eval"].labels).astype(int).tolist(),
        "methods": {
            name: _method_rows(name, method, passes["eval"], tuned, pointed) for name, method in methods.items()
        },
    }
    if options.faithful_images:
        rows = np.random.default_rng(config.seed).permutation(len(chosen))[: options.faithful_images]
        some = {name: methods[name] for name in options.faithful if name in methods}
        some = bind_methods(some, network, prototypes, whitening=whitening)
        batches = network.batches(Rows(splits["eval"], np.sort(rows)), batch=options.faithful_batch)
        batches = tqdm(batches, f"faithfulness of {network.name}", len(batches), unit="batch", leave=False)
        areas = faithfulness(network, prototypes, some, batches, steps=options.faithful_steps, seed=config.seed).areas()
        result["faithfulness"] = {
            kind: {name: np.round(values, 6).tolist() for name, values in by_method.items()}
            for kind, by_method in areas.items()
        }
    return result


def _method_rows(name: str, method: Method, measured: Localization, tuned: dict[str, float], pointed) -> dict:
    """What one method found: image by image whether its box is right, pair by pair where it points."""
    rows: dict = {"title": method.title, "asks": method.asks}
    for suffix, scaling in zip(("", "_minmax"), SCALINGS, strict=True):
        map_name = scaled_name(name, scaling)
        at = threshold_index(tuned[map_name])
        rows["threshold" + suffix] = tuned[map_name]
        rows["right" + suffix] = (measured.right_iou[map_name][:, at] >= IOU).astype(int).tolist()
        rows["wrong" + suffix] = (measured.wrong_iou[map_name][:, at] >= IOU).astype(int).tolist()
    rows["correlation"] = [None if np.isnan(value) else round(float(value), 6) for value in pointed.correlation[name]]
    for measure in PAIR_MEASURES:
        values = np.asarray(getattr(pointed, measure)[name], np.float64)
        rows[measure] = np.round(values.reshape(len(values), -1).mean(axis=1), 6).tolist()
    return rows


def class_rows(data: Dataset, classes: Sequence[str]) -> np.ndarray:
    """Positions of the images of some classes, by the data set's own names for them; all images where none is named."""
    unknown = [name for name in classes if name not in data.class_ids]
    if unknown:
        raise ValueError(f"config.classes: {data.name} has no class {unknown[0]!r}")
    if not len(classes):
        return np.arange(len(data.source))
    return np.flatnonzero(np.isin(read_labels(data.source), [data.class_ids.index(name) for name in classes]))


def summarize(measured: dict[str, dict], **bootstrap) -> dict:
    """Figures with intervals, and paired differences from CAM.

    Args:
        measured: network to what `_measure` found.
        **bootstrap: `seed` and `resamples`.

    Returns:
        "networks": network to figures by method; "differences": of each method from CAM of its network, and of each
        method of a network without a linear layer from CAM of the others.
    """
    networks = {}
    for network, result in measured.items():
        by_method = {}
        for name, rows in result["methods"].items():
            kinds = (*RIGHT, *WRONG, *PAIR_MEASURES) if rows["asks"] else (*RIGHT, *PAIR_MEASURES)
            found: dict[str, dict | None] = {kind: _figure(rows[kind], **bootstrap) for kind in kinds}
            known = [value for value in rows["correlation"] if value is not None]
            found["correlation"] = _figure(known, **bootstrap) if known else None
            for kind, areas in result.get("faithfulness", {}).items():
                if name in areas:
                    found[kind] = _figure(areas[name], **bootstrap)
            thresholds = {key: rows[key] for key in ("threshold", "threshold_minmax")}
            by_method[name] = {"title": rows["title"], **thresholds, **found}
        networks[network] = {
            "images": result["images"],
            "nearest_prototype_top1": _figure(result["top1"], **bootstrap),
            "boxes": {name: _figure(values, **bootstrap) for name, values in result["boxes"].items()},
            "methods": by_method,
        }
    differences = []
    for network, result in measured.items():
        for other, others in measured.items():
            if "cam" not in others["methods"] or (network != other and "cam" in result["methods"]):
                continue
            for name, rows in result["methods"].items():
                if name != "cam":
                    cam = others["methods"]["cam"]
                    differences.append(
                        {
                            "a": f"{network}: {rows['title']}",
                            "b": f"{other}: CAM",
                            **{kind: _difference(rows[kind], cam[kind], **bootstrap) for kind in DIFFERENCES},
                        }
                    )
    return {"networks": networks, "differences": differences}


def _figure(values, **bootstrap) -> dict:
    return dataclasses.asdict(figures.mean_figure(np.asarray(values, np.float64), **bootstrap))


def _difference(a, b, **bootstrap) -> dict:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return dataclasses.asdict(figures.difference_figure(a, b, **bootstrap))


def make_tables(metrics: dict) -> list[Table]:
    """One table a network, and the differences from CAM.

    Args:
        metrics: of `explanations`.

    Returns:
        The tables.
    """
    percent = {"percent": True, "decimals": 1}
    tables = []
    for network, result in metrics["networks"].items():
        columns = {
            "right": Column("GT-known, tuned", best="max", **percent),
            "wrong": Column("with a wrong class", **percent),
            "right_minmax": Column("GT-known, tuned, from the minimum", best="max", **percent),
            "wrong_minmax": Column("with a wrong class", **percent),
            "pointing": Column("two-object pointing", best="max", **percent),
            "energy": Column("energy in the right half", best="max", **percent),
            "swap": Column("swap test", best="max", **percent),
            "correlation": Column("correlation between classes", decimals=2),
            "deletion": Column("deletion", decimals=2, best="min"),
            "insertion": Column("insertion", decimals=2, best="max"),
        }
        methods = result["methods"]
        kept = [kind for kind in columns if any(kind in found for found in methods.values())]
        top1 = result["nearest_prototype_top1"]
        rows = [Row(found["title"], [figure_cell(found.get(kind)) for kind in kept]) for found in methods.values()]
        for name, box in result["boxes"].items():  # they have no threshold, class or map
            cells = [figure_cell(box if kind in RIGHT else None) for kind in kept]
            rows.append(Row(figures.BASELINES[name], cells, muted=True))
        tables.append(
            Table(
                network,
                [columns[kind] for kind in kept],
                rows,
                note=f"{result['images']} images; nearest prototype top-1 {100 * top1['value']:.1f} "
                f"[{100 * top1['low']:.1f}, {100 * top1['high']:.1f}] %. Chance is 50 % for pointing, energy and swap. "
                "Deletion and insertion are areas under the margin's curve in units of the mean absolute margin. "
                f"Intervals: {metrics['intervals']}.",
            )
        )
    rows = [
        Row(f"{row['a']} − {row['b']}", [figure_cell(row[measure]) for measure in DIFFERENCES])
        for row in metrics["differences"]
    ]
    titles = ("GT-known, tuned", "GT-known, tuned, from the minimum", "two-object pointing")
    columns = [Column(title, **percent) for title in titles]
    note = "In points, on the same images and pairs; one whose interval holds 0 is none."
    return [*tables, Table("Paired differences from CAM", columns, rows, note=note)] if rows else tables
