"""Evaluation of image retrieval and re-identification: what a search finds, and why its first images match."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from distcam_jax import runs, training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.explain import choose_methods
from distcam_jax.evaluators.fewshot import named_runs
from distcam_jax.evaluators.figures import as_dict
from distcam_jax.evaluators.localize import DEFAULT_THRESHOLD
from distcam_jax.evaluators.network import Network, load_network, network_prototypes
from distcam_jax.evaluators.provenance import portable, provenance, write_text
from distcam_jax.evaluators.retrieval_cases import make_retrieval
from distcam_jax.evaluators.retrieval_figures import mean_figures, search_differences, search_figures
from distcam_jax.evaluators.retrieval_localize import (
    boxed_queries,
    localize_pairs,
    pair_differences,
    pair_figures,
    tuned_thresholds,
)
from distcam_jax.evaluators.retrieval_maps import PairMaps, bind_pairs, pair_titles
from distcam_jax.evaluators.retrieval_options import GAP_L1, Search, check_retrieval_options, reranking_of
from distcam_jax.evaluators.retrieval_search import (
    Embedded,
    Ranking,
    agreement,
    chance,
    embed_controls,
    embed_network,
    rank,
    search_all,
)
from distcam_jax.evaluators.retrieval_tables import make_tables
from distcam_jax.evaluators.retrieval_task import Task, load_task, make_task
from distcam_jax.evaluators.whitening import measure_whitening, needs_whitening
from distcam_jax.report import Report, format_table, save_report, save_retrieval_figure

_FIRST = 1  # neighbours that a search keeps of networks whose lists are not shown


@dataclasses.dataclass(frozen=True, eq=False)
class Searched:
    """A trained network with what it finds.

    Attributes:
        network: from `load_network`.
        embedded: its features.
        rankings: of `search_all`.
        maps: of `bind_pairs`.
        titles: of `pair_titles`.
    """

    network: Network
    embedded: Embedded
    rankings: dict[str, Ranking]
    maps: PairMaps
    titles: dict[str, str]


def evaluate_retrieval(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    output: str | Path | None = None,
    compare: Sequence[str | Path] = (),
    prototypes: str | Path | None = None,
) -> dict:
    """Evaluates runs by what a search among the images of the reported split, or of a gallery, finds.

    Prints the tables and writes `metrics.json`, `tables.md`, `report.html` and `examples.png`, a few queries. Where the
    queries have boxes, the maps of each for its nearest image are scored too.

    Args:
        config: the configuration of the run, see `configs/cub200.py` and `configs/market1501.py`.
        workdir: the run's folder.
        output: where the results go; by default the run's folder.
        compare: folders of further runs on the same data, each searched by its own configuration's space and distance.
        prototypes: a prototypes file of the run instead of a pass over the training images; a covariance for
            Mahalanobis CAM is measured about them.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: when runs and data do not belong together, an option is out of range, or there is nothing to find.
    """
    output, options = Path(output or workdir), config.evaluate
    runs.check_config(config)
    check_retrieval_options(options)
    if "start" in config:  # the run's own: what it went on from need not be told again
        config.start = runs.load_run_config(workdir).get("start", config.start)
    runs.check_workdir(config, workdir)
    task, train = load_task(config), training.load_split(config, "train")
    rerank = _check_reranking(options, task)
    tuning = _tuning_task(config, task)
    searched = []
    for name, (folder, run) in named_runs(config, workdir, compare).items():
        given = prototypes if not searched else None
        searched.append(_search(config, run, folder, given, name, train, task, rerank=rerank, count=_kept(options)))
    rankings = {one.network.name: one.rankings for one in searched}
    about = {one.network.name: one.embedded.about for one in searched}
    if options.controls:
        first = searched[0]
        for one in embed_controls(config, first.network.mesh, train.num_classes, task, first.embedded.search):
            rankings[one.name] = search_all(task, one, ks=options.ks, count=_FIRST, rerank=rerank)
            about[one.name] = one.about
    metrics = _metrics(config, task, about, rankings) | {
        "localization": {one.network.name: _localize(config, one, task, tuning) for one in searched}
        if len(boxed_queries(task))
        else {},
    }
    tables = make_tables(metrics)
    print("\n\n".join(format_table(table) for table in tables))
    write_text(output / "tables.md", "\n\n".join(format_table(table, markdown=True) for table in tables))
    write_text(output / "metrics.json", json.dumps(metrics, indent=2))
    _write_report(config, searched[0], task, metrics, tables, output)
    print(f"\nfigures: {output}/metrics.json\nreport:  {output}/report.html")
    return metrics


def _kept(options) -> int:
    """Nearest images that are kept of every query."""
    return max(_FIRST, options.shown_matches if options.shown_queries else 0)


def _check_reranking(options, task: Task) -> dict | None:
    """The options of re-ranking, where they fit the images; a ValueError names the key where they do not."""
    rerank = reranking_of(options)
    if rerank is None:
        return None
    if not task.persons or task.alone:
        lacks = "config.input.gallery_split is empty" if task.persons else "the images have no cameras and identities"
        raise ValueError(f"config.evaluate.rerank is for re-identification, and {lacks}; set its k1 to 0")
    images = len(task.query.targets) + len(task.gallery.targets)
    for name in ("k1", "k2"):
        if rerank[name] >= images:
            raise ValueError(
                f"config.evaluate.rerank.{name} must be less than the number of images, {images}, got {rerank[name]}"
            )
    return rerank


def _tuning_task(config, task: Task) -> Task | None:
    """The images that thresholds are tuned on, searched among each other; None where they have no boxes, or no use."""
    if not len(boxed_queries(task)) or config.input.tune_split == config.input.eval_split:
        return None
    tuning = make_task(training.load_split(config, "tune"), None)
    return tuning if len(boxed_queries(tuning)) else None


def _search(config, run, folder, prototypes, name, train: Dataset, task: Task, *, rerank, count) -> Searched:
    """Searches with one run's network, and makes ready what explains it."""
    options = config.evaluate
    search = _search_of(run, default=options.search.distance)
    network = load_network(run, folder, train.num_classes, name=name)
    methods = choose_methods(options.methods, network, norm=options.norm, eps=options.eps, whitened=True)
    whitening = None
    if needs_whitening(methods) or prototypes:
        path = Path(prototypes or folder / "prototypes.safetensors")
        means = network_prototypes(network, path, train.class_names, batch=options.batch, given=prototypes is not None)
        whitening = measure_whitening(network, means, methods, options, seed=config.seed)
    maps = bind_pairs(methods, network, space=search.space, whitening=whitening)
    embedded = embed_network(network, task, search, batch=options.batch)
    rankings = search_all(task, embedded, ks=options.ks, count=count, rerank=rerank)
    return Searched(network, embedded, rankings, maps, pair_titles(methods, search.space))


def _search_of(run: ml_collections.ConfigDict, *, default: str) -> Search:
    """How a run is searched by: as its own configuration says, else by pooled features."""
    options = run.evaluate.get("search")
    return Search("embedding", default) if options is None else Search(options.space, options.distance)


def _metrics(config, task: Task, about: dict, rankings: Mapping[str, Mapping[str, Ranking]]) -> dict:
    """What `metrics.json` holds, but for localisation."""
    bootstrap = {"seed": config.seed, "resamples": config.evaluate.resamples}
    agree = {
        network: mean_figures(agreement(task, rows[about[network]["search"]], rows[GAP_L1.name]), **bootstrap)
        for network, rows in rankings.items()
        if "objective" in about[network] and about[network]["search"] != GAP_L1.name
    }
    query, gallery = task.query.data, task.gallery.data
    intervals = (
        f"95 %, percentile bootstrap over queries, {config.evaluate.resamples} resamples; queries share "
        f"{'persons' if task.persons else 'classes'} and images, so they are for these images and this network alone"
    )
    found = {
        "word": task.word,
        "data": {
            "name": query.name,
            "split": query.split,
            "gallery_split": "" if task.alone else gallery.split,
            "queries": len(task.valid),
            "left_out": len(task.query.targets) - len(task.valid),
            "gallery": len(task.gallery.targets),
            "targets": len(np.unique(task.query.targets[task.valid])),
        },
        "networks": about,
        "default_threshold": DEFAULT_THRESHOLD,
        "chance": chance(task, config.evaluate.ks),
        "figures": search_figures(rankings, **bootstrap),
        "differences": search_differences(rankings, **bootstrap),
        "agreement": agree,
    }
    return provenance(config, intervals=intervals) | as_dict(found)


def _localize(config, one: Searched, task: Task, tuning: Task | None) -> dict:
    """Figures of the maps of one network's queries for their nearest images."""
    bootstrap = {"seed": config.seed, "resamples": config.evaluate.resamples}
    options = {"batch": config.evaluate.batch, "seed": config.seed}
    name, search, tuned = one.network.name, one.embedded.search, None
    if tuning is not None:
        embedded = embed_network(one.network, tuning, search, batch=config.evaluate.batch)
        ranking = rank(tuning, embedded, search, ks=config.evaluate.ks, count=_FIRST, rerank={})
        title = f"thresholds of the {name} network"
        tuned = tuned_thresholds(
            localize_pairs(one.network, tuning, embedded, ranking, one.maps, title=title, **options)
        )
    title = f"boxes of the {name} network"
    ranking = one.rankings[search.name]
    measured = localize_pairs(one.network, task, one.embedded, ranking, one.maps, title=title, **options)
    return as_dict(
        {
            "images": len(measured.rows),
            "tuned_on": config.input.tune_split if tuned else "",
            "titles": one.titles,
            "figures": pair_figures(measured, tuned, **bootstrap),
            "differences": pair_differences(measured, tuned, **bootstrap),
        }
    )


def _write_report(config, one: Searched, task: Task, metrics: dict, tables, output: Path) -> None:
    data = metrics["data"]
    shown = make_retrieval(
        config,
        one.network,
        task,
        one.embedded,
        one.rankings,
        one.maps,
        one.titles,
        text=_agreement_text(metrics, one.network.name),
    )
    among = "each other"
    if data["gallery_split"]:
        among = f"{data['gallery']:,} images of split {data['gallery_split']}"
    report = Report(
        title="Re-identification" if task.persons else "Image retrieval",
        subtitle=f"{config.model.name}, {config.objective} objective · {data['name']}, {data['queries']:,} images of "
        f"split {data['split']} searched among {among}",
        tables=tables,
        settings=runs.flatten(portable(config)),
        retrievals=shown,
    )
    save_report(report, output / "report.html")
    if shown:
        count = len(shown[0].queries)
        picked = sorted({0, 3 * count // 4, count - 1})  # the worst, one between, the best
        both = [one.titles[name] for name in ("dist_cam", "mahalanobis") if name in one.titles]
        save_retrieval_figure(shown[0], output / "examples.png", methods=both, queries=picked, dpi=80)


def _agreement_text(metrics: dict, network: str) -> str:
    """How often the space of the heatmaps would have chosen as the search did, in words."""
    if network not in metrics["agreement"]:
        return "The search is that of Dist-CAM: pooled features, compared in L1."
    image, target = (
        "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * figure[key] for key in ("value", "low", "high")))
        for figure in metrics["agreement"][network].values()
    )
    return (
        "Dist-CAM lives in pooled features compared in L1, which is not what is searched by: both choose the same "
        f"nearest image for {image} of the queries, and one of the same {metrics['word']} for {target}."
    )
