"""The paper's Table 1: CAM and Dist-CAM of several backbones, measured network by network and compared."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_collections

from distcam_jax import runs, training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.explain import bind_methods, choose_methods
from distcam_jax.evaluators.localize import DEFAULT_THRESHOLD, THRESHOLDS, localize_source, tune_thresholds
from distcam_jax.evaluators.network import Network, network_prototypes
from distcam_jax.evaluators.provenance import portable, provenance, write_text
from distcam_jax.evaluators.rows import check_boxes
from distcam_jax.evaluators.table1_figures import Measured, compare_networks, network_figures
from distcam_jax.evaluators.table1_hits import TOP, Hits, kept_hits, make_hits
from distcam_jax.evaluators.table1_networks import KINDS, Given, find_networks
from distcam_jax.evaluators.table1_splits import check_splits
from distcam_jax.evaluators.table1_tables import backbone_table, make_tables
from distcam_jax.evaluators.whitening import measure_whitening, whitening_options
from distcam_jax.files import check_writable
from distcam_jax.prototypes import hash_weights
from distcam_jax.report import format_table


def table1(config: ml_collections.ConfigDict, output: str | Path) -> dict:
    """Measures every network that is given, prints the tables and writes `metrics.json` and `tables.md`.

    What each network got right is kept in `hits/<backbone>_<kind>.npz`, so that a command that was stopped goes on with
    the next network; both files are written again after each network, with what is there.

    Args:
        config: see `configs/table1.py`.
        output: folder of the results.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: when no network is given, or what is given does not belong together; see `find_networks` and
            `check_splits`. A weights file that does not read or fit is refused before any network is measured.
        FileNotFoundError: when a named weights file is missing.
        OSError: when a result cannot be written; found out before the work.
    """
    output, given, measured, metrics = Path(output), find_networks(config), {}, {}
    tune, data = (training.load_split(config, split) for split in ("tune", "eval"))
    _check_all(config, given, tune, data, output)
    for number, one in enumerate(given, start=1):
        network = one.load(data.num_classes)
        hits, is_new = measure_network(config, one, network, tune, data, output)
        name = Path(one.source).name if network.source is None else network.source
        measured[one.backbone, one.kind] = Measured(name, network.step, network.weights_hash, hits)
        if not is_new and number < len(given):
            continue
        metrics = summarize(config, data, given, measured)
        tables = make_tables(metrics)
        write_text(output / "tables.md", "\n\n".join(format_table(table, markdown=True) for table in tables))
        write_text(output / "metrics.json", json.dumps(metrics, indent=2))
        if number < len(given):
            print(format_table(backbone_table(metrics, one.backbone)))
            print(f"{one.name} is measured, {number} of {len(given)} networks; {output}/tables.md has all so far\n")
        else:
            print("\n\n".join(format_table(table) for table in tables))
    return metrics


def _check_all(config, given: list[Given], tune: Dataset, data: Dataset, output: Path) -> None:
    """Refuses before the work of days what would end it: images, weights files and folders that will not do."""
    check_splits(config, given)
    for split in (tune, data):
        check_boxes(split)
    for one in given:
        one.check(data.num_classes)
    for path in (output / "metrics.json", *(one.prototypes_path(output) for one in given)):
        if path.name == "metrics.json" or not path.is_file():  # prototypes that are there need not be written
            check_writable(path)


def measure_network(
    config: ml_collections.ConfigDict,
    one: Given,
    network: Network,
    tune: Dataset,
    data: Dataset,
    output: Path,
) -> tuple[Hits, bool]:
    """What one network gets right, from its file or measured now; see `kept_hits`.

    Args:
        config: see `configs/table1.py`.
        one: of `find_networks`.
        network: that of `one`.
        tune: the images that thresholds are tuned on.
        data: the reported split.
        output: folder of the results.

    Returns:
        The hits, and whether they were measured now.
    """
    options = config.evaluate
    train, inputs = training.load_split(network.config, "train"), network.config.input
    made_from = {
        # The network's own hash leaves its classifier out, and CAM is made of that.
        "weights_hash": hash_weights({"all": network.state}),
        "model": network.config.model.to_dict(),
        "input": {name: inputs[name] for name in ("image_size", "mean", "std")},
        "data": runs.data_options(config),
        "splits": {split.split: len(split.source) for split in (train, tune, data)},
        "methods": list(options.methods),
        "norm": options.norm,
        "eps": options.eps,
        **whitening_options(options),
        "seed": config.seed,
        "thresholds": THRESHOLDS,
        "top": TOP,
    }

    def measure() -> Hits:
        path = one.prototypes_path(output)
        prototypes = network_prototypes(network, path, data.class_names, batch=options.batch)
        methods = choose_methods(options.methods, network, norm=options.norm, eps=options.eps, whitened=True)
        whitening = measure_whitening(network, prototypes, methods, options, seed=config.seed)
        maps, passes = bind_methods(methods, network, prototypes, whitening=whitening), {}
        for title, split in (("thresholds", tune), ("figures", data)):
            bar = f"{title} of {one.name}"
            passes[title] = localize_source(
                network, prototypes, split.source, maps, title=bar, batch=options.batch, seed=config.seed
            )
        return make_hits(passes["figures"], tune_thresholds(passes["thresholds"]))

    return kept_hits(output / "hits" / f"{one.name}.npz", made_from, measure)


def summarize(
    config: ml_collections.ConfigDict,
    data: Dataset,
    given: list[Given],
    measured: Mapping[tuple[str, str], Measured],
) -> dict:
    """What `metrics.json` holds, of the networks that have been measured so far.

    Args:
        config: see `configs/table1.py`.
        data: the reported split.
        given: of `find_networks`.
        measured: backbone and kind to what was measured.

    Returns:
        Provenance and, for each backbone, the paper's figures, networks, differences and their parts.
    """
    bootstrap = {"seed": config.seed, "resamples": config.evaluate.resamples}
    there = {(one.backbone, one.kind) for one in given}
    backbones = {}
    for backbone in config.backbones:
        own = {kind: measured[backbone, kind] for kind in KINDS if (backbone, kind) in measured}
        states = {kind: "not yet measured" if (backbone, kind) in there else "not given" for kind in KINDS}
        networks = {kind: {"state": states[kind]} for kind in KINDS}
        networks |= {kind: {"state": "measured"} | network_figures(one, **bootstrap) for kind, one in own.items()}
        paper = config.paper[backbone].to_dict() if data.name == "ilsvrc2012" else {"cam": None, "dist_cam": None}
        backbones[backbone] = {"paper": paper, "networks": networks, **compare_networks(own, **bootstrap)}
    return provenance(config) | {
        "config": _without_paths(config),
        "data": data.name,
        "split": data.split,
        "images": len(data.source),
        "classes": data.num_classes,
        "default_threshold": DEFAULT_THRESHOLD,
        "complete": len(measured) == len(given),
        "backbones": backbones,
    }


def _without_paths(config) -> dict:
    """The configuration with the last part of each path: where this machine keeps its files is nobody's business."""
    values = portable(config)
    for network in values["networks"].values():
        network |= {kind: Path(network[kind]).name for kind in KINDS}
    return values
