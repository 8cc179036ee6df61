"""The tables of an evaluation, from what `metrics.json` holds."""

from distcam_jax.evaluators import figures
from distcam_jax.methods import METHODS
from distcam_jax.report import Column, Measure, Row, Table


def figure_cell(figure: dict | None) -> Measure | None:
    """A figure of `metrics.json` as a cell of a table; nothing for None."""
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
        [Row(label, [figure_cell(values.get(name)) for name in names]) for label, values in rows],
        note="Accuracy in percent; the nearest prototype is the class mean of Eq. 7 at the smallest L1 distance. "
        "Images are resized straight, and so are those behind the prototypes; a centre crop keeps the aspect.",
    )
    differences = Table(
        "Paired differences of GT-known",
        [Column("difference", **percent), Column("from the minimum", **percent)],
        [
            Row(f"{row['a']} − {row['b']}", [figure_cell(row[kind]) for kind in ("gt_known", "gt_known_from_minimum")])
            for row in metrics["differences"]
        ],
        note="In points, at each method's tuned threshold, on the same images; one whose interval holds 0 is none. "
        "Maps are divided by their maximum, or scaled from their minimum.",
    )
    return [*tables, classification, differences]


def _localization_table(title: str, networks: dict, metrics: dict) -> Table:
    images = next(iter(networks.values()))["images"]  # those of classes without training images are left out
    percent = {"percent": True, "decimals": 1}
    rows = []
    for network, values in networks.items():
        for method, kinds in values["localization"].items():
            label = f"{figures.TITLES[method]} · {network} network" if len(networks) > 1 else figures.TITLES[method]
            default, tuned, lifted = kinds["default"], kinds["tuned"], kinds["from_minimum"]
            cells = [
                figure_cell(default["top1_error"]),
                figure_cell(default["gt_known"]),
                figure_cell(default.get("wrong_class_gt_known")),
                figure_cell(tuned["gt_known"]),
                figure_cell(tuned.get("wrong_class_gt_known")),
                figure_cell(lifted["gt_known"]),
                figure_cell(lifted.get("wrong_class_gt_known")),
                f"{kinds['threshold']:.2f}" if "threshold" in kinds else None,
            ]
            rows.append(Row(label, cells, muted=method not in METHODS or not METHODS[method].asks))
    return Table(
        title,
        [
            Column(f"Top-1 error at {metrics['default_threshold']}", best="min", **percent),
            Column(f"GT-known at {metrics['default_threshold']}", best="max", **percent),
            Column("with a wrong class", **percent),
            Column("GT-known, tuned", best="max", **percent),
            Column("with a wrong class, tuned", **percent),
            Column("GT-known, tuned, from the minimum", best="max", **percent),
            Column("with a wrong class, from the minimum", **percent),
            Column("tuned threshold"),
        ],
        rows,
        note=f"Protocol ilsvrc, IoU 0.5, {images} images, {metrics['classes']} classes, in percent. "
        f"Intervals: {metrics['intervals']}. Thresholds are tuned on held-out images. Maps are divided by their "
        "maximum, as the protocol has it, and in the columns that say so scaled from their minimum to their maximum. "
        "The baselines' class decision is the nearest prototype's.",
    )
