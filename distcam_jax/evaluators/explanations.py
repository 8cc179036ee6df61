"""How good explanations are: localisation, dependence on the class asked, faithfulness, of many methods at once.

And the sanity check: how much they change where a network's parameters are random.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from tqdm import tqdm

from distcam_jax import runs, training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.explain import MapFunction, Samples, bind_methods, choose_methods, find_rows
from distcam_jax.evaluators.explanation_figures import PAIR_MEASURES, make_tables, summarize
from distcam_jax.evaluators.faithfulness import faithfulness
from distcam_jax.evaluators.figures import hits
from distcam_jax.evaluators.localize import SCALINGS, Localization, localize_source, scaled_name, tune_thresholds
from distcam_jax.evaluators.network import Network, load_network, network_prototypes
from distcam_jax.evaluators.pieces import Pieces
from distcam_jax.evaluators.provenance import provenance, write_text
from distcam_jax.evaluators.randomization import randomization_similarity
from distcam_jax.evaluators.rows import read_labels
from distcam_jax.evaluators.specificity import Specificity, specificity
from distcam_jax.evaluators.whitening import measure_whitening, needs_whitening, sample_whitening, whitening_options
from distcam_jax.input_pipeline import Rows
from distcam_jax.methods import Method, margin_maps
from distcam_jax.methods.margins import EVIDENCE_NEEDS
from distcam_jax.prototypes import Prototypes, hash_weights
from distcam_jax.report import format_table

_COUNTS = ("pairs", "faithful_images", "randomized_images")  # of what is measured; 0 leaves it out
_RANDOMIZED = (
    "batch",
    "methods",
    "margins",
    "norm",
    "eps",
    "whitening_ridge",
    "randomized_images",
    "randomized_samples",
)


def explanations(config: ml_collections.ConfigDict, output: str | Path) -> dict:
    """Measures every method on every network of a configuration, prints the tables and writes them.

    For each network and method, as far as the configuration asks for it: GT-known for the right class and for a wrong
    one, at the threshold tuned on training images of all classes; two-object pointing with each class asked in turn,
    and how alike the maps of several classes are; deletion and insertion of the margin; how alike the maps stay where
    parameters are random. What was measured is kept network by network, the last of these in a file of its own, so that
    a second call goes on.

    Args:
        config: see `configs/explanations.py`.
        output: folder of the results.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: when a run is missing or was trained on other data, names are unknown, or options out of range.
    """
    check_options(config.evaluate)
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
        measured[name] = _measure_kept(pieces, config, network, prototypes, data)
    metrics = provenance(config) | summarize(measured, seed=config.seed, resamples=config.evaluate.resamples)
    tables = make_tables(metrics)
    print("\n\n".join(format_table(table) for table in tables))
    write_text(output / "tables.md", "\n\n".join(format_table(table, markdown=True) for table in tables))
    write_text(output / "metrics.json", json.dumps(metrics, indent=2))
    return metrics


def check_options(options: ml_collections.ConfigDict) -> None:
    """Refuses options of the study that lack a key or are out of range; a ValueError names the key."""
    for name in ("localize", *_COUNTS, "randomized_samples"):
        if name not in options:
            raise ValueError(f"the configuration has no key evaluate.{name}; it was made for another version")
    for name in _COUNTS:
        if options[name] < 0:
            raise ValueError(f"config.evaluate.{name} must be 0 or more, got {options[name]}")
    if options.randomized_images and options.randomized_samples < 1:
        raise ValueError(f"config.evaluate.randomized_samples must be at least 1, got {options.randomized_samples}")
    if not options.localize and not any(options[name] for name in _COUNTS):
        raise ValueError(f"config.evaluate leaves nothing to measure: set localize or one of {', '.join(_COUNTS)}")
    whitening_options(options)


def _measure_kept(pieces: Pieces, config, network: Network, prototypes: Prototypes, data: Dataset) -> dict:
    """What was found on one network, from its files or measured now."""
    options = config.evaluate.to_dict()
    made_from = {
        "weights_hash": hash_weights({"all": network.state}),  # the network's own leaves its classifier out
        "data": runs.data_options(config),
        "seed": config.seed,
        "classes": list(config.classes),
    }
    first = {name: value for name, value in options.items() if not name.startswith("randomized")}
    measure = functools.partial(_measure, config, network, prototypes, data)
    result = pieces.get(network.name, made_from | {"evaluate": first}, measure)
    if options["randomized_images"]:
        second = {name: options[name] for name in _RANDOMIZED}
        measure = functools.partial(_measure_randomized, config, network, prototypes, data)
        result |= {"randomized": pieces.get(f"{network.name}_randomized", made_from | {"evaluate": second}, measure)}
    return result


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
    source = Rows(data.source, class_rows(data, config.classes))
    rows: dict[str, dict] = {name: {"title": method.title, "asks": method.asks} for name, method in methods.items()}
    result = {"images": len(source), "methods": rows}
    if options.localize:
        measured, tuned = _localize(config, network, prototypes, source, maps)
        result["images"] = len(measured.labels)
        result["boxes"] = {name: hits(measured, name, 0).astype(int).tolist() for name in measured.box_iou}
        result["top1"] = (measured.decisions["nearest"][:, 0] == measured.labels).astype(int).tolist()
        for name in methods:
            rows[name] |= _box_rows(name, measured, tuned)
    if options.pairs:
        classes = [data.class_ids.index(name) for name in config.classes] or None
        pairs = {"pairs": options.pairs, "seed": config.seed, "classes": classes, "batch": options.pair_batch}
        pointed = specificity(network, prototypes, maps, data.source, **pairs)
        for name in methods:
            rows[name] |= _pair_rows(name, pointed)
    if options.faithful_images:
        some = {name: methods[name] for name in options.faithful if name in methods}
        some = bind_methods(some, network, prototypes, whitening=whitening)
        result["faithfulness"] = _faithful_areas(config, network, prototypes, source, some)
    return result


def _localize(config, network: Network, prototypes: Prototypes, source: Rows, maps: MapFunction):
    """Boxes by both scalings, and the thresholds that were tuned on training images of all classes."""
    passes = {}
    for split, images in (("tune", training.load_split(network.config, "tune").source), ("eval", source)):
        options = {"title": f"{split} of {network.name}", "batch": config.evaluate.batch, "seed": config.seed}
        passes[split] = localize_source(network, prototypes, images, maps, scalings=SCALINGS, **options)
    return passes["eval"], tune_thresholds(passes["tune"])


def _faithful_areas(config, network: Network, prototypes: Prototypes, source: Rows, maps: MapFunction) -> dict:
    """Areas under the curves by kind and method, of the methods and of the controls."""
    options = config.evaluate
    images = _drawn(source, options.faithful_images, config.seed)
    batches = network.batches(images, batch=options.faithful_batch)
    batches = tqdm(batches, f"faithfulness of {network.name}", len(batches), unit="batch", leave=False)
    found = faithfulness(network, prototypes, maps, batches, steps=options.faithful_steps, seed=config.seed)
    return {
        kind: {name: _rounded(values) for name, values in by_method.items()}
        for kind, by_method in found.areas().items()
    }


def _measure_randomized(config, network: Network, prototypes: Prototypes, data: Dataset) -> dict:
    """One network: how alike every method's maps stay where parameters are random, as JSON takes it."""
    options = config.evaluate
    methods = study_methods(options, network)

    def bind(one: Network, own: Prototypes, samples: Samples):
        whitened = needs_whitening(methods)
        whitening = sample_whitening(samples, own, ridge=options.whitening_ridge) if whitened else None
        return bind_methods(methods, one, own, whitening=whitening)

    train = training.load_split(network.config, "train").source
    train = Rows(train, find_rows(train, np.minimum(prototypes.counts, options.randomized_samples), config.seed))
    source = Rows(data.source, class_rows(data, config.classes))
    batches = [
        network.batches(images, batch=options.batch)
        for images in (train, _drawn(source, options.randomized_images, config.seed))
    ]
    found = randomization_similarity(network, bind, data.class_names, *batches, seed=config.seed)
    return {
        part: {name: _rounded(values) for name, values in similarities.items()}
        for part, similarities in found.similarity.items()
    }


def _drawn(source: Rows, count: int, seed: int) -> Rows:
    """Some images of a source, drawn at random, in its order; all where there are fewer."""
    return Rows(source, np.sort(np.random.default_rng(seed).permutation(len(source))[:count]))


def _rounded(values) -> list:
    """Numbers as JSON takes them; None for NaN."""
    return [None if np.isnan(value) else round(float(value), 6) for value in values]


def _box_rows(name: str, measured: Localization, tuned: dict[str, float]) -> dict:
    """Image by image whether one method's box is right, for the right class and for a wrong one, by both scalings."""
    rows: dict = {}
    for suffix, scaling in zip(("", "_minmax"), SCALINGS, strict=True):
        threshold = rows["threshold" + suffix] = tuned[scaled_name(name, scaling)]
        for kind, asked in (("right", name), ("wrong", f"wrong_{name}")):
            rows[kind + suffix] = hits(measured, asked, threshold, scaling=scaling).astype(int).tolist()
    return rows


def _pair_rows(name: str, pointed: Specificity) -> dict:
    """Pair by pair where one method points."""
    rows = {"correlation": _rounded(pointed.correlation[name])}
    for measure in PAIR_MEASURES:
        values = np.asarray(getattr(pointed, measure)[name], np.float64)
        rows[measure] = _rounded(values.reshape(len(values), -1).mean(axis=1))
    return rows


def class_rows(data: Dataset, classes: Sequence[str]) -> np.ndarray:
    """Positions of the images of some classes, by the data set's own names for them; all images where none is named."""
    unknown = [name for name in classes if name not in data.class_ids]
    if unknown:
        raise ValueError(f"config.classes: {data.name} has no class {unknown[0]!r}")
    if not len(classes):
        return np.arange(len(data.source))
    return np.flatnonzero(np.isin(read_labels(data.source), [data.class_ids.index(name) for name in classes]))
