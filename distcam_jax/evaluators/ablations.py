"""What Dist-CAM's localisation depends on: networks trained where they are missing, measured, compared and drawn."""

import dataclasses
import functools
import json
from pathlib import Path

import ml_collections
import numpy as np
from tqdm import tqdm

from distcam_jax import checkpoints, runs, training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.ablation_figures import save_figures
from distcam_jax.evaluators.ablation_pass import ALL, Scores, Variant, drawn_prototypes, drawn_rows, score_split
from distcam_jax.evaluators.ablation_rows import (
    DEFAULT,
    PRE_POOL_TITLES,
    check_ablations,
    make_ablations,
    make_variants,
    minmax_key,
    view_name,
)
from distcam_jax.evaluators.ablation_tables import Measured, make_tables, summarize, threshold_curves
from distcam_jax.evaluators.explain import collect_samples
from distcam_jax.evaluators.localize import DEFAULT_THRESHOLD, THRESHOLDS
from distcam_jax.evaluators.network import Network, load_network, network_prototypes
from distcam_jax.evaluators.pieces import Pieces
from distcam_jax.evaluators.provenance import provenance, write_text
from distcam_jax.evaluators.rows import read_labels
from distcam_jax.input_pipeline import Rows
from distcam_jax.report import format_table


def ablations(config: ml_collections.ConfigDict, output: str | Path) -> dict:
    """Measures what Dist-CAM's localisation depends on, prints the tables and writes them with figures.

    Networks that are missing are trained first. What was measured is kept network by network in `pieces`, so that a
    command that was stopped goes on.

    Args:
        config: see `configs/ablations.py`.
        output: folder of `metrics.json`, `tables.md`, and the figures `eps.png`, `samples.png` and `thresholds.png`.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: when an option is out of range, a folder holds another run than its name says, or no network is
            there and none may be trained.
    """
    check_ablations(config)
    configs = {name: network_config(config, name) for name in config.networks}
    for name, one in configs.items():
        _check_folder(config, name, one)
    data = training.load_split(next(iter(configs.values())), "eval")
    missing = [name for name, one in configs.items() if not is_trained(one, Path(config.runs) / name)]
    if config.train_missing:
        _train(config, {name: configs[name] for name in missing})
        missing = []
    elif missing:
        print(f"not there, or not trained to the end, and so left out: {', '.join(missing)}", flush=True)
    measured, networks = {}, {}
    for view, name, one in _views(config, configs, missing):
        measured[view], networks[view] = _measure_view(config, view, name, one, data, Pieces(Path(output) / "pieces"))
    if not measured:
        raise ValueError(f"{config.runs} holds none of the networks; let them be trained: --config.train_missing=True")
    metrics = _metrics(config, data, measured, networks, missing)
    tables = make_tables(metrics)
    print("\n\n".join(format_table(table) for table in tables))
    head = f"Left out, because not trained: {', '.join(missing)}.\n\n" if missing else ""
    write_text(Path(output) / "tables.md", head + "\n\n".join(format_table(table, markdown=True) for table in tables))
    write_text(Path(output) / "metrics.json", json.dumps(metrics, indent=2))
    save_figures(metrics, output)
    return metrics


def network_config(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The configuration that a network's name stands for.

    Args:
        config: see `configs/ablations.py`.
        name: of `config.networks`.

    Returns:
        That of its objective with its changes, on the data of `config`.
    """
    entry = config.networks[name]
    made = ml_collections.ConfigDict(config.base[entry.objective].to_dict())
    made.update(entry.changes.to_dict())
    made.data = config.data.to_dict()
    return made


def _check_folder(config, name: str, made: ml_collections.ConfigDict) -> None:
    """Refuses a configuration that does not work, and a folder that holds another run."""
    try:
        runs.check_config(made)
        runs.check_workdir(made, Path(config.runs) / name)
    except ValueError as error:
        raise ValueError(f"the network {name}: {error}, here with --config.runs") from error


def is_trained(config: ml_collections.ConfigDict, workdir: Path) -> bool:
    """Whether a folder's run has been trained to its last step."""
    if not (workdir / "checkpoints").is_dir():
        return False
    examples = len(training.load_split(config, "train").source)
    with checkpoints.checkpoint_manager(workdir, read_only=True) as manager:
        return (manager.latest_step() or 0) >= max(1, round(config.epochs * examples / config.batch))


def _train(config, missing: dict[str, ml_collections.ConfigDict]) -> None:
    left = sum(config.networks[name].minutes for name in missing)
    for number, (name, made) in enumerate(missing.items(), start=1):
        minutes, folder = config.networks[name].minutes, Path(config.runs) / name
        print(
            f"training {name} into {folder}, {number} of {len(missing)}: about {minutes} minutes on two cores, "
            f"{left} minutes for all that are left",
            flush=True,
        )
        training.fit(made, folder)
        left -= minutes


def _views(config, configs, missing):
    """What is measured: the name of the view, of its network, and the configuration to load it with."""
    for name, made in configs.items():
        if name in missing:
            continue
        if name not in config.pre_pool:
            yield view_name(name), name, made
            continue
        for place in PRE_POOL_TITLES:
            view = ml_collections.ConfigDict(made.to_dict())
            view.model.pre_pool = place
            yield view_name(name, place), name, view


def _measure_view(config, view: str, name: str, made, data: Dataset, pieces: Pieces) -> tuple[Measured, dict]:
    """The scores of one view of a network, from its piece or measured now, and what it is."""
    folder = Path(config.runs) / name
    network = load_network(made, folder, data.num_classes, name=view)
    varied = name in config.varied
    variants = make_variants(config, linear=network.class_weights is not None, varied=varied)
    made_from = {
        "weights_hash": network.weights_hash,
        "model": made.model.to_dict(),
        "input": {key: value for key, value in made.input.to_dict().items() if key != "num_workers"},
        "data": runs.data_options(made),
        "seed": config.seed,
        "variants": {key: dataclasses.asdict(variant) for key, variant in variants.items()},
        "thresholds": THRESHOLDS,
    }
    found = pieces.get(
        view.replace(", ", "-"),
        made_from,
        functools.partial(_measure, config, network, _prototypes_file(folder, made), data, variants),
    )
    about = {"objective": made.objective, "steps": network.step, "weights_hash": network.weights_hash}
    return Measured(*(Scores.from_json(found[split]) for split in ("tune", "eval"))), about


def _prototypes_file(folder: Path, made) -> Path:
    before = made.model.get("pre_pool", "relu") == "norm"
    return folder / ("prototypes-norm.safetensors" if before else "prototypes.safetensors")


def _measure(config, network: Network, file: Path, data: Dataset, variants: dict[str, Variant]) -> dict:
    batch = config.evaluate.batch
    prototypes = network_prototypes(network, file, data.class_names, batch=batch)
    few = any(variant.prototypes != ALL for variant in variants.values())
    drawn = _drawn_sets(config, network, data.num_classes) if few else {}
    sources = {"tune": training.load_split(network.config, "tune").source, "eval": data.source}
    found = {}
    for split, source in sources.items():
        batches = network.batches(source, batch=batch)
        title = f"{ {'tune': 'thresholds', 'eval': 'figures'}[split] } of {network.name}"
        batches = tqdm(batches, title, len(batches), unit="batch", leave=False)
        found[split] = score_split(network, prototypes, batches, variants, drawn=drawn, seed=config.seed).to_json()
    return found


def _drawn_sets(config, network: Network, num_classes: int) -> dict[str, np.ndarray]:
    """Prototypes of a few training samples; only images that any draw has are run."""
    train = training.load_split(network.config, "train").source
    rows = drawn_rows(read_labels(train), config.vary.samples, config.vary.draws, config.seed)
    taken = np.unique(np.concatenate(list(rows.values())))
    samples = collect_samples(network, Rows(train, taken), batch=config.evaluate.batch)
    return drawn_prototypes(samples, taken, rows, num_classes)


def _metrics(config, data: Dataset, measured: dict[str, Measured], networks: dict, missing: list[str]) -> dict:
    bootstrap = {"seed": config.seed, "resamples": config.evaluate.resamples}
    first = next(iter(measured.values()))
    curves = (DEFAULT, minmax_key(DEFAULT), "uniform", minmax_key("uniform"))
    varied = [name for name in config.varied if name in measured]
    return provenance(config) | {
        "images": len(first.eval.index),
        "tuning_images": len(first.tune.index),
        "classes": data.num_classes,
        "default_threshold": DEFAULT_THRESHOLD,
        "missing": missing,
        "networks": networks,
        "ablations": summarize(make_ablations(config, measured), measured, **bootstrap),
        "thresholds": list(THRESHOLDS),
        "threshold_curves": threshold_curves(varied, curves, measured, **bootstrap),
    }
