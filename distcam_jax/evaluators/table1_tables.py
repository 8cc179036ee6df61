"""The tables of the paper's Table 1, from what `metrics.json` holds."""

from distcam_jax.evaluators import figures
from distcam_jax.evaluators.localize import decision_of
from distcam_jax.evaluators.table1_figures import COMPARED, MEASURES, PARTS, SOFTMAX_KINDS
from distcam_jax.evaluators.table1_hits import THRESHOLD_KINDS
from distcam_jax.evaluators.table1_networks import KINDS
from distcam_jax.evaluators.tables import figure_cell
from distcam_jax.methods import METHODS
from distcam_jax.report import Column, Row, Table
from distcam_jax.report.tables import Cell

_PERCENT = {"percent": True, "decimals": 1}
_NAMES = {"top1_error": "Top-1 error", "top5_error": "Top-5 error", "gt_known": "GT-known"}
_PAPER = {"cam": "cam", "dist_cam": "dist_cam", "dist_cam_literal": "dist_cam"}
_SOURCE = "Shen et al., ICIG 2021, doi 10.1007/978-3-030-88013-2_28"
_PART_TITLES = {
    "decision": "decision: linear layer → nearest prototype (softmax network, CAM's box)",
    "map": "map: CAM → Dist-CAM (softmax network, nearest prototype)",
    "network": "network: softmax → metric (Dist-CAM, nearest prototype)",
    "total": "sum: Dist-CAM of the metric network − CAM of the softmax network",
}


def make_tables(metrics: dict) -> list[Table]:
    """All tables.

    Args:
        metrics: of `table1`.

    Returns:
        Which networks there are; a table for each backbone that has one; networks by maps; paired differences; and what
        the paper's difference is made of.
    """
    there = [name for name, one in metrics["backbones"].items() if _measured(one)]
    tables = [_networks_table(metrics), *(backbone_table(metrics, name) for name in there)]
    return [*tables, _grid_table(metrics, there), _differences_table(metrics, there), _parts_table(metrics, there)]


def _measured(backbone: dict) -> list[str]:
    return [kind for kind in KINDS if backbone["networks"][kind]["state"] == "measured"]


def _networks_table(metrics: dict) -> Table:
    """Which networks were given, and how often they are wrong about the class."""
    rows = []
    for backbone, values in metrics["backbones"].items():
        for kind, title in KINDS.items():
            one, cells = values["networks"][kind], [None] * 7
            if one["state"] == "measured":
                errors = [one["classification_error"], one["top5_classification_error"]]
                cells = [one["source"], one["steps"], one["images"]]
                cells += [figure_cell(error.get(decision)) for decision in ("softmax", "nearest") for error in errors]
            rows.append(Row(f"{backbone} · {title}", [one["state"], *cells]))
    state = "" if metrics["complete"] else "Not all networks are measured yet: run the command again and it goes on. "
    return Table(
        "Networks",
        [
            Column("state"),
            Column("from"),
            Column("steps"),
            Column("images"),
            *(
                Column(f"top-{top} error, {decision}", **_PERCENT)
                for decision in ("linear layer", "nearest prototype")
                for top in (1, 5)
            ),
        ],
        rows,
        note=f"{state}{metrics['data']}, {metrics['split']} split, {metrics['images']} images, {metrics['classes']} "
        f"classes. Images are resized straight; published figures are of central crops. Intervals: "
        f"{metrics['intervals']}.",
    )


def backbone_table(metrics: dict, backbone: str) -> Table:
    """Every method of every network of one backbone, with the paper's figure beside it.

    Args:
        metrics: of `table1`.
        backbone: one that has a network that is measured.

    Returns:
        The table.
    """
    values = metrics["backbones"][backbone]
    columns = [
        Column("Top-1 error in the paper"),
        *(
            Column(f"{_NAMES[measure]}{_at(metrics, at)}", best="max" if measure == "gt_known" else "min", **_PERCENT)
            for at in THRESHOLD_KINDS
            for measure in MEASURES
        ),
        Column("top-1 classification error", **_PERCENT),
        Column("tuned threshold"),
    ]
    rows = []
    for kind, title in KINDS.items():
        one = values["networks"][kind]
        if one["state"] != "measured":
            rows.append(Row(f"{title}: {one['state']}", [None] * len(columns), muted=True))
            continue
        for method, found in one["methods"].items():
            figure = values["paper"].get(_PAPER.get(method, ""))
            cells: list[Cell] = [figure if figure is None else float(figure)]
            cells += [figure_cell(found[at][measure]) for at in THRESHOLD_KINDS for measure in MEASURES]
            cells.append(figure_cell(one["classification_error"][decision_of(method)]))
            cells.append(f"{found['tuned']['threshold']:.2f}" if "threshold" in found["tuned"] else None)
            muted = method not in METHODS or not METHODS[method].asks
            rows.append(Row(f"{title}: {figures.TITLES[method]}", cells, muted=muted))
    return Table(backbone, columns, rows, note=_paper_note(metrics, values["paper"]))


def _paper_note(metrics: dict, paper: dict) -> str:
    protocol = (
        "Protocol ilsvrc, IoU 0.5, in percent: maps are divided by their maximum in every row. Thresholds are tuned on "
        "images that the figures leave out. CAM's class decision is the linear layer's, that of every other row the "
        "nearest prototype's. "
    )
    if metrics["data"] != "ilsvrc2012":
        return f"{protocol}These are no figures of ILSVRC 2012: nothing here compares with the paper's Table 1."
    beside = f"The paper's figures ({_SOURCE}) stand beside every network's row of the same map."
    if all(value is not None for value in paper.values()):
        return protocol + beside
    return (
        f"{protocol}Figures of the paper that are missing here were not entered: its Table 1 ({_SOURCE}) was not "
        "available to us, only its abstract. Who has it sets --config.paper.<backbone>.cam and .dist_cam, in percent."
    )


def _grid_table(metrics: dict, there: list[str]) -> Table:
    """Networks {softmax, metric} by maps {CAM, Dist-CAM}."""
    maps, rows = {"cam": "CAM", "dist_cam": "Dist-CAM"}, []
    columns = [
        Column(f"{title}: {_NAMES[measure]}{_at(metrics, at)}", **_PERCENT)
        for at in THRESHOLD_KINDS
        for measure in COMPARED
        for title in maps.values()
    ]
    for backbone in there:
        for kind, title in KINDS.items():
            one = metrics["backbones"][backbone]["networks"][kind]
            cells = [
                _grid_cell(one, name, at, measure) for at in THRESHOLD_KINDS for measure in COMPARED for name in maps
            ]
            rows.append(Row(f"{backbone} · {title}", cells))
    return Table(
        "Networks by maps",
        columns,
        rows,
        note="A metric network has no linear layer, so its CAM is undefined, and the fourth corner cannot be measured. "
        "Along a row the network stays; down a column the map stays, and another network is another classifier too.",
    )


def _grid_cell(one: dict, method: str, at: str, measure: str) -> Cell:
    if one["state"] != "measured":
        return one["state"]
    return figure_cell(one["methods"][method][at][measure]) if method in one["methods"] else "undefined"


def _at(metrics: dict, at: str) -> str:
    return f" at {metrics['default_threshold']}" if at == "default" else ", tuned"


def _four_columns(metrics: dict) -> list[Column]:
    return [
        Column(f"{_NAMES[measure]}{_at(metrics, at)}", **_PERCENT) for at in THRESHOLD_KINDS for measure in COMPARED
    ]


def _differences_table(metrics: dict, there: list[str]) -> Table:
    """Paired differences, those of the paper's own pairing last for each backbone."""
    rows = []
    for backbone in there:
        for one in metrics["backbones"][backbone]["differences"]:
            (left, a), (right, b) = one["a"], one["b"]
            a, b = figures.TITLES[a], figures.TITLES[b]
            name = f"{KINDS[left]}: {a} − {b}" if left == right else f"{KINDS[left]}: {a} − {KINDS[right]}: {b}"
            rows.append(Row(f"{backbone} · {name}", _four_cells(one, lambda one, at, measure: one[at][measure])))
    return Table(
        "Paired differences",
        _four_columns(metrics),
        rows,
        note="In points, on the same images. A lower Top-1 error and a higher GT-known are better; a difference whose "
        "interval holds 0 is none. Within a network GT-known compares the maps alone; the Top-1 error from CAM changes "
        "the class decision too. Rows of two networks are the paper's own pairing: they confound the map with the "
        "network and the classifier, see the next table.",
    )


def _four_cells(values, figure) -> list[Cell]:
    return [figure_cell(figure(values, at, measure)) for at in THRESHOLD_KINDS for measure in COMPARED]


def _parts_table(metrics: dict, there: list[str]) -> Table:
    """What the paper's difference is made of."""
    rows = []
    for backbone in there:
        for kind in SOFTMAX_KINDS:
            parts = metrics["backbones"][backbone]["parts"].get(kind)
            for part in PARTS if parts else ():
                cells = _four_cells(parts, lambda parts, at, measure, part=part: parts[at][measure][part])
                rows.append(Row(f"{backbone} · {KINDS[kind]} · {_PART_TITLES[part]}", cells, muted=part != "total"))
    return Table(
        "What the difference of the paper's pairing is made of",
        _four_columns(metrics),
        rows,
        note="In points, on the same images; one thing is changed at a time, and the three parts add up to the sum. "
        "Only the map's part speaks of CAM and Dist-CAM as maps. GT-known takes the class as given and has no part of "
        "the decision. Intervals are over images: another training of the metric network would move its part.",
    )
