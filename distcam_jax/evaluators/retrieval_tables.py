"""The tables of a retrieval evaluation, from what `metrics.json` holds."""

from collections.abc import Sequence

from distcam_jax.evaluators.figures import TITLES
from distcam_jax.evaluators.retrieval_figures import RERANKED
from distcam_jax.evaluators.retrieval_options import Search
from distcam_jax.evaluators.tables import figure_cell
from distcam_jax.report import Column, Row, Table

_METRICS = {"r_precision": "R-precision", "map_at_r": "MAP@R", "map": "mAP"}
_KINDS = {"default": "at {threshold}", "tuned": "tuned", "from_minimum": "tuned, from the minimum"}
_REFERENCES = {
    "nearest": "nearest image",
    "same": "nearest image of the {word}",
    "wrong": "an image of another {word}",
}


def make_tables(metrics: dict) -> list[Table]:
    """Figures by network and search, paired differences, where spaces agree, and localisation where it was measured.

    Args:
        metrics: of `evaluate_retrieval`.

    Returns:
        The tables.
    """
    tables = [_search_table(metrics), _difference_table(metrics)]
    if metrics["agreement"]:
        tables.append(_agreement_table(metrics))
    if metrics["localization"]:
        tables += [_localization_table(metrics), _localization_differences(metrics)]
    return tables


def search_title(name: str) -> str:
    """What tables call a search of `metrics.json`.

    Examples:
        >>> search_title("neck_cosine_reranked"), search_title("embedding_l1")
        ('after the neck, cosine, re-ranked', 'GAP, L1')
    """
    space, distance = name.removesuffix(RERANKED).split("_")
    return Search(space, distance, reranked=name.endswith(RERANKED)).title


def _metric_title(name: str) -> str:
    kind, _, k = name.partition("_")
    if kind == "recall":
        return f"Recall@{k}"
    return f"rank-{k}" if kind == "rank" else _METRICS[name]


def _label(metrics: dict, network: str, search: str) -> str:
    """A row's name; pixels have no space."""
    networks = metrics["networks"]
    if "size" in networks[network]:
        return f"{network}, {search_title(search).partition(', ')[2]}"
    kind = _network_title(metrics, network)
    return f"{search_title(search)} · {kind}" if len(networks) > 1 else search_title(search)


def _network_title(metrics: dict, network: str) -> str:
    return f"{network} network" if "objective" in metrics["networks"][network] else network


def _difference_label(metrics: dict, a: Sequence[str], b: Sequence[str]) -> str:
    """What two searches differ in: the search, or the network where that is searched alike."""
    if a[0] == b[0]:
        return f"{search_title(a[1])} − {search_title(b[1])}"
    if a[1] == b[1]:
        return f"{_network_title(metrics, a[0])} − {_network_title(metrics, b[0])}"
    return f"{_label(metrics, *a)} − {_label(metrics, *b)}"


def _search_table(metrics: dict) -> Table:
    data, networks = metrics["data"], metrics["networks"]
    rows = [
        Row(
            _label(metrics, network, search),
            [figure_cell(figure) for figure in figures.values()],
            muted="objective" not in networks[network],
        )
        for network, searches in metrics["figures"].items()
        for search, figures in searches.items()
    ]
    rows.append(Row("chance", list(metrics["chance"].values()), muted=True))
    among = f"{data['gallery']:,} images of split {data['gallery_split']}"
    if not data["gallery_split"]:
        among = f"the other {data['gallery'] - 1:,}"
    left = f"; {data['left_out']:,} more have no other image of their {metrics['word']} to find and are left out"
    rule = ""
    if metrics["word"] == "identity":
        rule = " Images of the query's person by the query's camera are taken out of its list."
    return Table(
        "Re-identification" if metrics["word"] == "identity" else "Retrieval",
        [Column(_metric_title(name), best="max", percent=True, decimals=1) for name in metrics["chance"]],
        rows,
        note=f"{data['queries']:,} queries of {data['name']}, split {data['split']}, {data['targets']:,} "
        f"{_plural(metrics['word'])}, each searched among {among}{left if data['left_out'] else ''}.{rule} The first "
        f"row is the network's own search, GAP the pooled features, which Dist-CAM explains. Intervals: "
        f"{metrics['intervals']}.",
    )


def _plural(word: str) -> str:
    return {"identity": "identities", "class": "classes"}[word]


def _difference_table(metrics: dict) -> Table:
    names = list(metrics["chance"])
    return Table(
        "Paired differences",
        [Column(_metric_title(name), percent=True, decimals=1) for name in names],
        [
            Row(
                _difference_label(metrics, row["a"], row["b"]),
                [figure_cell(row["figures"][name]) for name in names],
            )
            for row in metrics["differences"]
        ],
        note="In points, over the same queries; one whose interval holds 0 is none. Of the first network and its own "
        "search where a row names no other.",
    )


def _agreement_table(metrics: dict) -> Table:
    return Table(
        "Does the search choose what the pooled features choose?",
        [
            Column("the same nearest image", percent=True, decimals=1),
            Column(f"one of the same {metrics['word']}", percent=True, decimals=1),
        ],
        [
            Row(
                _label(metrics, network, metrics["networks"][network]["search"]),
                [figure_cell(figures[name]) for name in ("same_image", "same_target")],
            )
            for network, figures in metrics["agreement"].items()
        ],
        note="Share of the queries, beside the search by pooled features in L1, whose channels Dist-CAM weighs.",
    )


def _localization_table(metrics: dict) -> Table:
    rows, kinds, word = [], _kind_titles(metrics), metrics["word"]
    for network, values in metrics["localization"].items():
        for method, references in values["figures"].items():
            for reference, found in references.items():
                cells = [figure_cell(found[kind]) for kind in kinds]
                cells += [f"{found['threshold']:.2f}" if "threshold" in found else None] * ("tuned" in kinds)
                label = _pair_label(values, (method, reference), word)
                label += f" · {network} network" if len(metrics["localization"]) > 1 else ""
                rows.append(Row(label, cells, muted=reference == "wrong" or method in ("uniform", *_TRIVIAL)))
    some = next(iter(metrics["localization"].values()))
    columns = [Column(title, best="max", percent=True, decimals=1) for title in kinds.values()]
    return Table(
        "Localisation by the nearest image",
        [*columns, *([Column("tuned threshold")] if "tuned" in kinds else [])],
        rows,
        note=f"Share of {some['images']:,} queries whose box has IoU 0.5 or more with a true one. Protocol ilsvrc, "
        "whose maps are square whatever the network's input; they are divided by their maximum, or scaled from their "
        f"minimum. The reference is the image that the search finds first. Intervals: {metrics['intervals']}. "
        + (f"Thresholds are tuned on split {some['tuned_on']}." if some["tuned_on"] else ""),
    )


def _kind_titles(metrics: dict) -> dict[str, str]:
    tuned = next(iter(metrics["localization"].values()))["tuned_on"]
    kinds = _KINDS if tuned else {"default": _KINDS["default"]}
    return {kind: title.format(threshold=metrics["default_threshold"]) for kind, title in kinds.items()}


_TRIVIAL = ("center_box", "whole_image")


def _pair_label(values: dict, pair: Sequence[str], word: str) -> str:
    method, reference = pair
    title = values["titles"].get(method, TITLES[method])
    if "same" not in values["figures"][method]:  # a trivial box, or a method that is asked about nothing
        return title
    return f"{title}, {_REFERENCES[reference].format(word=f'same {word}' if reference == 'same' else word)}"


def _localization_differences(metrics: dict) -> Table:
    kinds, word = _kind_titles(metrics), metrics["word"]
    many = len(metrics["localization"]) > 1
    return Table(
        "Paired differences of localisation",
        [Column(title, percent=True, decimals=1) for title in kinds.values()],
        [
            Row(
                f"{_pair_label(values, row['a'], word)} − {_pair_label(values, row['b'], word)}"
                + (f" · {network} network" if many else ""),
                [figure_cell(row["figures"][kind]) for kind in kinds],
            )
            for network, values in metrics["localization"].items()
            for row in values["differences"]
        ],
        note="In points, over the same queries; one whose interval holds 0 is none.",
    )
