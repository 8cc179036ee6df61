"""Few-shot evaluation: episodes of classes that training has not seen, told by prototypes, plain and rectified."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from distcam_jax import fewshot, runs, training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.fewshot_cases import Rows, make_episodes
from distcam_jax.evaluators.fewshot_decisions import Decision, check_fewshot_options, decisions_of
from distcam_jax.evaluators.fewshot_tables import make_tables
from distcam_jax.evaluators.network import Network, load_network, make_network, network_prototypes
from distcam_jax.evaluators.provenance import portable, provenance, write_text
from distcam_jax.input_pipeline import EpisodeSampler, Part, make_eval_batches, read_labels
from distcam_jax.prototypes import Prototypes
from distcam_jax.report import Report, format_table, save_episode_figure, save_report

PIXELS, RANDOM = "pixels", "random weights"
INTERVALS = "95 %, 1.96 standard errors over episodes, which share images: for these images and this network alone"


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """The reported images as one kind of feature sees them.

    Attributes:
        name: for tables.
        about: what `metrics.json` says of where the features come from.
        embeddings: `[n, k]`, in the order of the source.
        center: mean of the training classes `[k]`.
    """

    name: str
    about: dict
    embeddings: np.ndarray
    center: np.ndarray


def evaluate_fewshot(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    output: str | Path | None = None,
    compare: Sequence[str | Path] = (),
) -> dict:
    """Evaluates runs on episodes of the reported split, all on the same ones.

    Prints the tables and writes `metrics.json`, `tables.md`, `report.html` and `examples.png`, an episode.

    Args:
        config: the configuration of the run, see `configs/mini_imagenet.py`.
        workdir: the run's folder.
        output: where the results go; by default the run's folder.
        compare: folders of further runs on the same data, such as the one that the run started from.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: when runs and data do not belong together, an option is out of range, or a class has too few images.
    """
    output, options = Path(output or workdir), config.evaluate
    runs.check_config(config)
    check_fewshot_options(options)
    if "start" in config:  # the run's own: what it went on from need not be told again
        config.start = runs.load_run_config(workdir).get("start", config.start)
    runs.check_workdir(config, workdir)
    train, data = (training.load_split(config, split) for split in ("train", "eval"))
    episodes = draw_episodes(config, data)
    named = named_runs(config, workdir, compare)
    networks, embedded = [], []
    for name, (folder, one) in named.items():
        network = load_network(one, folder, train.num_classes, name=name)
        file = folder / "prototypes.safetensors"
        prototypes = network_prototypes(network, file, train.class_names, batch=options.batch)
        networks.append((network, prototypes))
        embedded.append(_embed_network(network, prototypes, data, options.batch))
    if options.controls:
        embedded += _controls(config, networks[0][0].mesh, train, data)
    accuracies = {one.name: score_episodes(one, episodes, options) for one in embedded}
    metrics = provenance(config, intervals=INTERVALS) | {
        "data": {"name": data.name, "split": data.split, "classes": data.num_classes, "images": len(data.source)},
        "networks": {one.name: one.about for one in embedded},
        "chance": 1 / options.ways,
        **summarize(accuracies),
    }
    tables = make_tables(metrics)
    print("\n\n".join(format_table(table) for table in tables))
    write_text(output / "tables.md", "\n\n".join(format_table(table, markdown=True) for table in tables))
    write_text(output / "metrics.json", json.dumps(metrics, indent=2))
    network, prototypes = networks[0]
    shown = make_episodes(config, network, prototypes, embedded[0].embeddings, data, episodes)
    report = Report(
        title="Few-shot episodes",
        subtitle=f"{config.model.name}, {config.objective} objective · {data.name}, {data.split} split, "
        f"{len(data.source)} images of {data.num_classes} classes",
        tables=tables,
        settings=runs.flatten(portable(config)),
        episodes=shown,
    )
    save_report(report, output / "report.html")
    if shown:
        rows = range(len(shown[0].queries))
        picked = sorted({*rows[:2], *rows[-2:]})  # two failures and two that are right, where there are both
        save_episode_figure(shown[0], output / "examples.png", method=shown[0].methods[0], queries=picked, dpi=100)
    print(f"\nfigures: {output}/metrics.json\nreport:  {output}/report.html")
    return metrics


def draw_episodes(config: ml_collections.ConfigDict, data: Dataset) -> dict[int, Rows]:
    """The episodes that everything is measured on.

    Args:
        config: `seed` and `evaluate` decide them.
        data: the split.

    Returns:
        Shots to classes `[e, ways]`, rows of the supports `[e, ways, shots]` and of the queries `[e, ways, queries]`.

    Raises:
        ValueError: fewer classes than ways, or a class with too few images.
    """
    labels, options = read_labels(data.source), config.evaluate
    drawn = {}
    for shots in options.shots:
        sampler = EpisodeSampler(labels, ways=options.ways, shots=shots, queries=options.queries, seed=config.seed)
        drawn[shots] = sampler.episodes(options.episodes)
    return drawn


def named_runs(
    config: ml_collections.ConfigDict, workdir: str | Path, compare: Sequence[str | Path]
) -> dict[str, tuple[Path, ml_collections.ConfigDict]]:
    """Runs by what tables call them: the objective, or the folder's name where two share one.

    Args:
        config: of the evaluated run.
        workdir: its folder.
        compare: folders of further runs.

    Returns:
        Name to folder and configuration, the evaluated run first.

    Raises:
        ValueError: when a run is of other data, or two folders have the same name.
    """
    entries = [(Path(workdir), config)]
    entries += [(Path(folder), runs.load_comparable_run(folder, config)) for folder in compare]
    objectives = [one.objective for _, one in entries]
    unique = len(set(objectives)) == len(objectives)
    named = {one.objective if unique else folder.absolute().name: (folder, one) for folder, one in entries}
    if len(named) < len(entries):
        raise ValueError(f"the runs {', '.join(str(folder) for folder, _ in entries)} need folders of different names")
    return named


def embed_source(network: Network, source, *, batch: int) -> np.ndarray:
    """Pooled features `[n, k]` of all images of a source, in its order."""
    rows, batches = [], network.batches(source, batch=batch)
    for one in tqdm(batches, f"features of the {network.name} network", len(batches), unit="batch", leave=False):
        rows.append(np.asarray(network(one["image"])[1]["embedding"])[one["mask"]])
    return np.concatenate(rows)


def _embed_network(network: Network, prototypes: Prototypes, data: Dataset, batch: int) -> Embedded:
    about = {"objective": network.config.objective, "steps": network.step, "weights_hash": network.weights_hash}
    center = np.average(prototypes.prototypes, axis=0, weights=prototypes.counts)
    return Embedded(network.name, about, embed_source(network, data.source, batch=batch), center)


def _controls(config, mesh: Mesh, train: Dataset, data: Dataset) -> list[Embedded]:
    """The same network with random weights, and the pixels themselves; 2,000 training images give their centre."""
    batch, some = config.evaluate.batch, Part(train.source, 0, 2000)
    model = training.build_model(config, train.num_classes)
    blank = make_network(model, config, RANDOM, mesh)
    size = config.input.image_size // 4
    features = {
        RANDOM: (functools.partial(embed_source, blank, batch=batch), {"seed": config.seed}),
        PIXELS: (functools.partial(embed_pixels, size=size, batch=batch), {"size": size}),
    }
    return [
        Embedded(name, about, embed(data.source), embed(some).mean(axis=0)) for name, (embed, about) in features.items()
    ]


def embed_pixels(source, *, size: int | tuple[int, int], batch: int) -> np.ndarray:
    """Images in [0, 1], made small (a side, or height and width) and flat `[n, k]`, in the order of the source."""
    batches = make_eval_batches(source, batch_size=batch, image_size=size)
    return np.concatenate([one["image"][one["mask"]].reshape(one["mask"].sum(), -1) for one in batches])


def score_episodes(one: Embedded, episodes, options: ml_collections.ConfigDict) -> dict[str, dict[int, np.ndarray]]:
    """Accuracy of every decision in every episode.

    Args:
        one: the features.
        episodes: of `draw_episodes`.
        options: `config.evaluate`.

    Returns:
        Decision to shots to accuracies `[e]`.
    """

    def score(decision: Decision, supports, queries):
        return fewshot.episode_accuracies(
            one.embeddings,
            supports,
            queries,
            metric=decision.metric,
            rectified=decision.rectified,
            temperature=options.temperature,
            center=one.center if decision.centred else None,
            normalize=decision.centred,
        )

    return {
        name: {shots: np.asarray(score(decision, *rows)) for shots, (_, *rows) in episodes.items()}
        for name, decision in decisions_of(options.distances).items()
    }


def summarize(accuracies: dict[str, dict[str, dict[int, np.ndarray]]]) -> dict:
    """Figures with intervals, and paired differences over the same episodes.

    Args:
        accuracies: network to what `score_episodes` gives.

    Returns:
        "accuracy": network to decision to shots to figure; "differences": of the first network, each decision less the
        first one, and rectified less plain cosine; and the first network's decisions less those of every other.
    """
    figures = {
        network: {
            name: {str(shots): _figure(values) for shots, values in by_shots.items()} for name, by_shots in rows.items()
        }
        for network, rows in accuracies.items()
    }
    networks = list(accuracies)
    first = next(iter(accuracies[networks[0]]))
    names = list(accuracies[networks[0]])
    pairs = [((networks[0], name), (networks[0], first)) for name in names[1:]]
    if "cosine" in names and first != "cosine":
        pairs += [((networks[0], name), (networks[0], "cosine")) for name in ("rectified", "rectified_centred")]
    pairs += [((networks[0], name), (other, name)) for other in networks[1:] for name in (first, "rectified")]
    return {
        "accuracy": figures,
        "differences": [
            {
                "a": list(a),
                "b": list(b),
                "figures": {
                    str(shots): _figure(accuracies[a[0]][a[1]][shots] - accuracies[b[0]][b[1]][shots])
                    for shots in accuracies[a[0]][a[1]]
                },
            }
            for a, b in pairs
        ],
    }


def _figure(values: np.ndarray) -> dict:
    mean, half = fewshot.mean_confidence_interval(values)
    return {"value": float(mean), "low": float(mean - half), "high": float(mean + half)}
