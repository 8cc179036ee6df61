"""One evaluation from run folders to `metrics.json`, tables and `report.html`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from tqdm import tqdm

from distcam_jax import runs, training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators import figures
from distcam_jax.evaluators.cases import choose_cases, make_cases, make_comparisons
from distcam_jax.evaluators.classify import Classification, classify
from distcam_jax.evaluators.explain import Explained, bind_methods, check_names, choose_methods, collect_samples
from distcam_jax.evaluators.explore import make_explorer
from distcam_jax.evaluators.localize import (
    DEFAULT_THRESHOLD,
    SCALINGS,
    Localization,
    localize_source,
    scaled_name,
    tune_thresholds,
)
from distcam_jax.evaluators.network import import_network, load_network, network_prototypes
from distcam_jax.evaluators.provenance import portable, provenance, write_text
from distcam_jax.evaluators.rows import check_boxes
from distcam_jax.evaluators.tables import make_tables
from distcam_jax.evaluators.whitening import measure_whitening, whitening_options
from distcam_jax.localization import PROTOCOLS
from distcam_jax.report import Report, Section, format_table, save_figure, save_report


@dataclasses.dataclass(frozen=True, eq=False)
class _Result:
    explained: Explained
    measured: Localization
    cropped: Classification | None


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | Path | None,
    *,
    output: str | Path | None = None,
    compare: Sequence[str | Path] = (),
    prototypes: str | Path | None = None,
    weights: str | Path | None = None,
) -> dict:
    """Evaluates a run, or published weights: classification, localisation with baselines.

    Prints the tables and writes `metrics.json`, `tables.md`, `report.html` and `examples.png`, four random images.

    Args:
        config: the configuration of the run, see `configs/`.
        workdir: the run's folder; None for published weights.
        output: where the results go; by default the run's folder, or `runs/` and the name of the weights.
        compare: folders of further runs on the same data, whose rows join the table; CAM of a softmax run stands
            beside Dist-CAM of a metric run.
        prototypes: a prototypes file to use instead of a pass over the training images.
        weights: what `load_torch_weights` takes, instead of a run; with the classifier for the softmax objective,
            without it for the metric one.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: when runs, data and files do not belong together.
    """
    if (workdir is None) == (weights is None):
        raise ValueError("give either the folder of a run or weights")
    output = Path(output or workdir or f"runs/{Path(str(weights)).stem}")
    runs.check_config(config)
    check_options(config.evaluate)
    if workdir is not None:
        runs.check_workdir(config, workdir)
    entries = [(config, output if workdir is None else Path(workdir), prototypes, weights)]
    entries += [(runs.load_comparable_run(folder, config), Path(folder), None, None) for folder in compare]
    data = training.load_split(config, "eval")
    for split in (training.load_split(config, "tune"), data):
        check_boxes(split)
    results = [
        _measure(run_config, config.evaluate, folder, file, imported, name, data)
        for name, (run_config, folder, file, imported) in zip(_names(entries), entries, strict=True)
    ]
    metrics = _metrics(config, results, data)
    tables = make_tables(metrics)
    print("\n\n".join(format_table(table) for table in tables))
    write_text(output / "tables.md", "\n\n".join(format_table(table, markdown=True) for table in tables))
    write_text(output / "metrics.json", json.dumps(metrics, indent=2))
    report, cases = _report(config, results, data, tables)
    save_report(report, output / "report.html")
    save_figure(cases["random"][:4], output / "examples.png", dpi=100)
    print(f"\nfigures: {output}/metrics.json\nreport:  {output}/report.html")
    return metrics


def check_options(options: ml_collections.ConfigDict) -> None:
    """Refuses options of an evaluation that lack a key or name something unknown; a ValueError names the key."""
    for name in ("methods", "protocols", "samples_per_class", "explorer"):
        if name not in options:
            raise ValueError(f"the configuration has no key evaluate.{name}; it was made for another version")
    check_names(options.methods)
    whitening_options(options)
    if "dist_cam" not in options.methods:
        raise ValueError("config.evaluate.methods must hold dist_cam, which the others are compared with")
    further = [name for name in PROTOCOLS if name != "ilsvrc"]  # which is always scored
    for name in options.protocols:
        if name not in further:
            raise ValueError(f"config.evaluate.protocols may name {', '.join(further)}, got {name!r}")
    for name in ("samples_per_class", "explorer"):
        if options[name] < 0:
            raise ValueError(f"config.evaluate.{name} must be 0 or more, got {options[name]}")


def _names(entries) -> list[str]:
    """A run is called by its objective, or by the end of its folder's path where two share one."""
    objectives = [config.objective for config, *_ in entries]
    folders = [folder.absolute().parts for _, folder, *_ in entries]
    shared = max(objectives.count(objective) for objective in objectives) > 1
    parts = next((n for n in range(1, 99) if len({path[-n:] for path in folders}) == len(folders)), None)
    if shared and parts is None:
        raise ValueError(f"the run {entries[0][1]} is to be compared with itself; give every folder once")
    return [
        objective if objectives.count(objective) == 1 else "/".join(path[-parts:])
        for objective, path in zip(objectives, folders, strict=True)
    ]


def _measure(config, options, folder, file, weights, name, data: Dataset) -> _Result:
    if weights is None:
        network = load_network(config, folder, data.num_classes, name=name)
    else:
        network = import_network(config, weights, data.num_classes, name=name)
    path = Path(file) if file else folder / "prototypes.safetensors"
    prototypes = network_prototypes(network, path, data.class_names, batch=options.batch, given=file is not None)
    samples = None
    if options.samples_per_class:
        train, count = training.load_split(config, "train").source, options.samples_per_class
        samples = collect_samples(network, train, batch=options.batch, per_class=count, seed=config.seed)
    chosen = {"samples": samples, "norm": options.norm, "eps": options.eps, "whitened": True}
    methods = choose_methods(options.methods, network, **chosen)
    whitening = measure_whitening(network, prototypes, methods, options, seed=config.seed)
    maps = bind_methods(methods, network, prototypes, samples=samples, whitening=whitening)
    measured = {}
    # Every network is measured on the same images; which ones it has not been trained on, its own configuration says.
    sources = {"tune": training.load_split(config, "tune").source, "eval": data.source}
    for split, title in (("tune", "thresholds"), ("eval", "figures")):
        measured[split] = localize_source(
            network,
            prototypes,
            sources[split],
            maps,
            title=f"{title} of the {name} network",
            batch=options.batch,
            protocols=options.protocols if split == "eval" else (),
            scalings=SCALINGS,
            seed=config.seed,
        )
    cropped = None
    if options.center_crop:
        batches = network.batches(data.source, batch=options.batch, resize="center_crop")
        title = f"centre crops of the {name} network"
        cropped = classify(network, prototypes, tqdm(batches, title, len(batches), unit="batch", leave=False))
    tuned = tune_thresholds(measured["tune"])
    return _Result(Explained(network, prototypes, methods, maps, tuned), measured["eval"], cropped)


def _metrics(config, results: list[_Result], data: Dataset) -> dict:
    bootstrap = {"seed": config.seed, "resamples": config.evaluate.resamples}
    return {
        **provenance(config),
        "images": len(data.source),
        "classes": data.num_classes,
        "default_threshold": DEFAULT_THRESHOLD,
        "networks": {result.explained.network.name: _figures(result, data, bootstrap) for result in results},
        "differences": [{"a": a, "b": b, **figures.as_dict(found)} for a, b, found in _differences(results, bootstrap)],
    }


def _figures(result: _Result, data: Dataset, bootstrap: dict) -> dict:
    """All figures of one network."""

    def both(measured: Localization) -> dict:
        found = {
            "classification": figures.classification_figures(measured, **bootstrap),
            "localization": figures.localization_figures(measured, result.explained.tuned, **bootstrap),
        }
        return {"images": len(measured.labels), **figures.as_dict(found)}

    values = {
        "objective": result.explained.network.config.objective,
        "steps": result.explained.network.step,
        "weights": result.explained.network.source,
        "weights_hash": result.explained.network.weights_hash,
        **both(result.measured),
    }
    if result.cropped is not None:
        values["center_crop"] = figures.as_dict(figures.classification_figures(result.cropped, **bootstrap))
    if data.blacklist_known:
        kept = np.array([not data.source[int(i)]["blacklisted"] for i in result.measured.index])
        values["without_blacklist"] = both(result.measured.rows(kept))
    return values


_PAIRS = (
    ("dist_cam", "uniform"),
    ("dist_cam", "center_box"),
    ("dist_cam", "dist_cam_literal"),
    ("dist_cam", "wrong_dist_cam"),
    ("cam", "wrong_cam"),
    ("contrastive", "wrong_contrastive"),
    ("contrastive", "dist_cam"),
    ("intersection", "wrong_intersection"),
    ("intersection", "contrastive"),
    ("intersection", "uniform"),
    ("mahalanobis", "wrong_mahalanobis"),
    ("mahalanobis", "contrastive"),
    ("mahalanobis", "uniform"),
    ("mahalanobis", "dist_cam"),
)
_FROM_CAM = ("dist_cam", "intersection", "mahalanobis")
_KINDS = {"gt_known": "max", "gt_known_from_minimum": "minmax"}  # of a difference, and how maps are scaled


def _differences(results: list[_Result], bootstrap: dict):
    """Paired differences of GT-known at the tuned thresholds: within each network, and from every CAM."""

    def hits(result, method, scaling):
        scaled = scaled_name(method.removeprefix("wrong_"), scaling)
        threshold = result.explained.tuned.get(scaled, DEFAULT_THRESHOLD)  # a trivial box has none
        return figures.hits(result.measured, method, threshold, scaling=scaling)

    def name(result, method):
        base = method.removeprefix("wrong_")
        return f"{result.explained.network.name}: {figures.TITLES[base]}{' of a wrong class' if base != method else ''}"

    first = results[0]
    pairs = [((first, method), (result, "cam")) for method in _FROM_CAM for result in results]
    pairs += [((result, a), (result, b)) for result in results for a, b in _PAIRS]
    for (left, a), (right, b) in pairs:
        methods = {(left, a.removeprefix("wrong_")), (right, b.removeprefix("wrong_"))}
        if all(method in result.measured.right_iou or method in result.measured.box_iou for result, method in methods):
            found = {
                kind: figures.difference_figure(hits(left, a, scaling), hits(right, b, scaling), **bootstrap)
                for kind, scaling in _KINDS.items()
            }
            yield name(left, a), name(right, b), found


def _report(config, results: list[_Result], data: Dataset, tables):
    explained, first = [result.explained for result in results], results[0]
    seed, options = config.seed, config.evaluate
    threshold = first.explained.tuned["dist_cam"]
    chosen = choose_cases(first.measured, threshold, count=options.cases, seed=seed)
    cases = {name: make_cases(data, explained, first.measured.index[rows]) for name, rows in chosen.items()}
    texts = {
        "best": "Largest overlap of the Dist-CAM box with the true box.",
        "worst": "Smallest overlap.",
        "random": f"Drawn at random, seed {config.seed}.",
    }
    report = Report(
        title="Dist-CAM",
        subtitle=f"{config.model.name}, {config.objective} objective · {data.name}, {data.split} split, "
        f"{len(data.source)} images",
        tables=tables,
        settings=runs.flatten(portable(config)),
        comparisons=make_comparisons(data, explained[0], first.measured, count=min(5, data.num_classes)),
        explorer=make_explorer(data, explained, first.measured, count=options.explorer, seed=seed, batch=options.batch),
        sections=[
            Section(
                f"{name.capitalize()} cases",
                f"{texts[name]} Maps of the true class, divided by their maximum for boxes at the tuned thresholds.",
                shown,
            )
            for name, shown in cases.items()
        ],
    )
    return report, cases
