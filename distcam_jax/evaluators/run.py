"""One evaluation from run folders to `metrics.json`, tables and `report.html`."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from distcam_jax import runs, training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators import figures
from distcam_jax.evaluators.cases import choose_cases, make_cases, make_comparisons
from distcam_jax.evaluators.classify import Classification, classify
from distcam_jax.evaluators.localize import DEFAULT_THRESHOLD, METHODS, Localization, localize, tune_thresholds
from distcam_jax.evaluators.network import Network, import_network, load_network, network_prototypes
from distcam_jax.files import write_atomically
from distcam_jax.prototypes import Prototypes
from distcam_jax.report import Column, Measure, Report, Row, Section, Table, format_table, save_figure, save_report

_PACKAGES = (
    "jax",
    "flax",
    "optax",
    "grain",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "numpy",
    "opencv-python-headless",
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Result:
    network: Network
    prototypes: Prototypes
    measured: Localization
    tuned: dict[str, float]
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
        output: where the results go; the run's folder by default.
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
    folder = workdir if output is None else output
    if folder is None:
        raise ValueError("weights come without a folder; say where the output goes")
    output = Path(folder)
    runs.check_config(config)
    if workdir is not None:
        runs.check_workdir(config, workdir)
    entries = [(config, output if workdir is None else Path(workdir), prototypes, weights)]
    entries += [(runs.load_run_config(folder), Path(folder), None, None) for folder in compare]
    data = training.load_split(config, "eval")
    results = []
    for name, (run_config, folder, file, imported) in zip(_names(entries), entries, strict=True):
        try:
            runs.check_config(run_config)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        run_config.evaluate.checkpoint = config.evaluate.checkpoint
        if runs.data_options(run_config) != runs.data_options(config):
            raise ValueError(
                f"{folder} was trained on other data than this configuration's; only runs on the same data compare"
            )
        results.append(_measure(run_config, config.evaluate, folder, file, imported, name, data))
    metrics = _metrics(config, results, data)
    tables = make_tables(metrics)
    print("\n\n".join(format_table(table) for table in tables))
    _write(output / "tables.md", "\n\n".join(format_table(table, markdown=True) for table in tables))
    _write(output / "metrics.json", json.dumps(metrics, indent=2))
    report, cases = _report(config, results, data, tables)
    save_report(report, output / "report.html")
    save_figure(cases["random"][:4], output / "examples.png", dpi=100)
    return metrics


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n"))


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
    measured = {}
    # Every network is measured on the same images; which ones it has not been trained on, its own configuration says.
    sources = {"tune": training.load_split(config, "tune").source, "eval": data.source}
    for split, title in (("tune", "thresholds"), ("eval", "figures")):
        source = sources[split]
        batches = network.batches(source, batch=options.batch)
        batches = tqdm(batches, f"{title} of the {name} network", len(batches), unit="batch", leave=False)
        measured[split] = localize(network, prototypes, batches, norm=options.norm, eps=options.eps, seed=config.seed)
    cropped = None
    if options.center_crop:
        batches = network.batches(data.source, batch=options.batch, resize="center_crop")
        title = f"centre crops of the {name} network"
        cropped = classify(network, prototypes, tqdm(batches, title, len(batches), unit="batch", leave=False))
    return _Result(network, prototypes, measured["eval"], tune_thresholds(measured["tune"]), cropped)


def _metrics(config, results: list[_Result], data: Dataset) -> dict:
    bootstrap = {"seed": config.seed, "resamples": config.evaluate.resamples}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _PACKAGES},
        "seed": config.seed,
        "config": _portable(config),
        "images": len(data.source),
        "classes": data.num_classes,
        "intervals": f"95 %, percentile bootstrap over images, {config.evaluate.resamples} resamples",
        "default_threshold": DEFAULT_THRESHOLD,
        "networks": {result.network.name: _figures(result, data, bootstrap) for result in results},
        "differences": [
            {"a": a, "b": b, "gt_known": dataclasses.asdict(figure)}
            for a, b, figure in _differences(results, bootstrap)
        ],
    }


def _figures(result: _Result, data: Dataset, bootstrap: dict) -> dict:
    """All figures of one network."""

    def both(measured: Localization) -> dict:
        return {
            "images": len(measured.labels),
            "classification": _as_dict(figures.classification_figures(measured, **bootstrap)),
            "localization": _as_dict(figures.localization_figures(measured, result.tuned, **bootstrap)),
        }

    values = {
        "objective": result.network.config.objective,
        "steps": result.network.step,
        "weights": result.network.source,
        "weights_hash": result.network.weights_hash,
        **both(result.measured),
    }
    if result.cropped is not None:
        values["center_crop"] = _as_dict(figures.classification_figures(result.cropped, **bootstrap))
    if data.blacklist_known:
        kept = np.array([not data.source[int(i)]["blacklisted"] for i in result.measured.index])
        values["without_blacklist"] = both(result.measured.rows(kept))
    return values


def _machine() -> str:
    """The processor's name, its cores, and the devices that JAX computes on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores; {jax.device_count()} x {jax.devices()[0].device_kind}"


def _portable(config) -> dict:
    """The configuration without where this machine keeps its data."""
    return config.to_dict() | {"data": runs.data_options(config)}


def _as_dict(value):
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return {key: _as_dict(item) for key, item in value.items()} if isinstance(value, dict) else value


_PAIRS = (
    ("dist_cam", "uniform"),
    ("dist_cam", "center_box"),
    ("dist_cam", "dist_cam_literal"),
    ("dist_cam", "wrong_dist_cam"),
    ("cam", "wrong_cam"),
    ("contrastive", "wrong_contrastive"),
    ("contrastive", "dist_cam"),
)


def _differences(results: list[_Result], bootstrap: dict):
    """Paired differences of GT-known at the tuned thresholds: within each network, and of Dist-CAM from every CAM."""

    def hits(result, method):
        base = method.removeprefix("wrong_")
        return figures.hits(result.measured, method, result.tuned.get(base, DEFAULT_THRESHOLD))

    def name(result, method):
        base = method.removeprefix("wrong_")
        return f"{result.network.name}: {figures.TITLES[base]}{' of a wrong class' if base != method else ''}"

    first = results[0]
    pairs = [((first, "dist_cam"), (result, "cam")) for result in results]
    pairs += [((result, a), (result, b)) for result in results for a, b in _PAIRS]
    for (left, a), (right, b) in pairs:
        methods = {(left, a.removeprefix("wrong_")), (right, b.removeprefix("wrong_"))}
        if all(method in result.measured.right_iou or method in result.measured.box_iou for result, method in methods):
            yield name(left, a), name(right, b), figures.difference_figure(hits(left, a), hits(right, b), **bootstrap)


def _cell(figure: dict | None) -> Measure | None:
    return None if figure is None else Measure(figure["value"], figure["low"], figure["high"])


def make_tables(metrics: dict) -> list[Table]:
    """The tables of an evaluation, from what `metrics.json` holds.

    Args:
        metrics: of `evaluate`.

    Returns:
        Localisation, classification and paired differences.
    """
    percent = {"percent": True, "decimals": 1}
    networks = metrics["networks"]
    tables = [_localization_table("Localisation", networks, metrics)]
    rest = {name: values["without_blacklist"] for name, values in networks.items() if "without_blacklist" in values}
    if rest:
        tables.append(_localization_table("Localisation without the blacklisted images", rest, metrics))
    passes = {name: values["classification"] for name, values in networks.items()}
    rows = [(f"{name} network", values) for name, values in passes.items()]
    for name, values in networks.items():
        if "center_crop" in values:
            rows.append((f"{name} network, centre crop", values["center_crop"]))
        if name in rest:
            rows.append((f"{name} network, without the blacklisted images", rest[name]["classification"]))
    names = sorted({name for values in passes.values() for name in values})
    classification = Table(
        "Classification",
        [Column(name.replace("_", " "), best="max", **percent) for name in names],
        [Row(label, [_cell(values.get(name)) for name in names]) for label, values in rows],
        note="Accuracy in percent; the nearest prototype is the class mean of Eq. 7 at the smallest L1 distance. "
        "Images are resized straight, and so are those behind the prototypes; a centre crop keeps the aspect.",
    )
    differences = Table(
        "Paired differences of GT-known",
        [Column("difference", **percent)],
        [Row(f"{row['a']} − {row['b']}", [_cell(row["gt_known"])]) for row in metrics["differences"]],
        note="In points, at each method's tuned threshold, on the same images; one whose interval holds 0 is none.",
    )
    return [*tables, classification, differences]


def _localization_table(title: str, networks: dict, metrics: dict) -> Table:
    images = next(iter(networks.values()))["images"]  # those of classes without training images are left out
    percent = {"percent": True, "decimals": 1}
    rows = []
    for network, values in networks.items():
        for method, kinds in values["localization"].items():
            label = f"{figures.TITLES[method]} · {network} network" if len(networks) > 1 else figures.TITLES[method]
            default, tuned = kinds["default"], kinds["tuned"]
            cells = [
                _cell(default["top1_error"]),
                _cell(default["gt_known"]),
                _cell(default.get("wrong_class_gt_known")),
                _cell(tuned["gt_known"]),
                _cell(tuned.get("wrong_class_gt_known")),
                f"{kinds['threshold']:.2f}" if "threshold" in kinds else None,
            ]
            rows.append(Row(label, cells, muted=method not in METHODS or method == "uniform"))
    return Table(
        title,
        [
            Column(f"Top-1 error at {metrics['default_threshold']}", best="min", **percent),
            Column(f"GT-known at {metrics['default_threshold']}", best="max", **percent),
            Column("with a wrong class", **percent),
            Column("GT-known, tuned", best="max", **percent),
            Column("with a wrong class, tuned", **percent),
            Column("tuned threshold"),
        ],
        rows,
        note=f"Protocol ilsvrc, IoU 0.5, {images} images, {metrics['classes']} classes, in percent. "
        f"Intervals: {metrics['intervals']}. Thresholds are tuned on held-out images. "
        "The baselines' class decision is the nearest prototype's.",
    )


def _report(config, results: list[_Result], data: Dataset, tables):
    first = results[0]
    options = {"norm": config.evaluate.norm, "eps": config.evaluate.eps}
    networks = [(result.network, result.prototypes, result.tuned) for result in results]
    threshold = first.tuned["dist_cam"]
    chosen = choose_cases(first.measured, threshold, count=config.evaluate.cases, seed=config.seed)
    cases = {name: make_cases(data, networks, first.measured.index[rows], **options) for name, rows in chosen.items()}
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
        settings=runs.flatten(_portable(config)),
        comparisons=make_comparisons(
            data, first.network, first.prototypes, first.measured, count=min(5, data.num_classes), **options
        ),
        sections=[
            Section(
                f"{name.capitalize()} cases",
                f"{texts[name]} Maps of the true class, boxes at the tuned thresholds.",
                shown,
            )
            for name, shown in cases.items()
        ],
    )
    return report, cases
