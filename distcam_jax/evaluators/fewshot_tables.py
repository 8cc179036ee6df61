"""The tables of a few-shot evaluation, from what `metrics.json` holds."""

from distcam_jax.evaluators.fewshot_decisions import decisions_of
from distcam_jax.evaluators.tables import figure_cell
from distcam_jax.report import Column, Row, Table


def make_tables(metrics: dict) -> list[Table]:
    """Accuracy by network and decision, and paired differences.

    Args:
        metrics: of `evaluate_fewshot`.

    Returns:
        The two tables.
    """
    options, data, networks = metrics["config"]["evaluate"], metrics["data"], metrics["networks"]
    titles = {name: one.title for name, one in decisions_of(tuple(options["distances"])).items()}
    columns = [Column(f"{shots}-shot", best="max", percent=True, decimals=2) for shots in options["shots"]]
    kinds = [str(shots) for shots in options["shots"]]
    many = len(networks) > 1

    def label(network: str, name: str) -> str:
        kind = f"{network} network" if "objective" in networks[network] else network
        return f"{titles[name]} · {kind}" if many else titles[name]

    rows = [
        Row(label(network, name), [figure_cell(figures[kind]) for kind in kinds], muted="objective" not in about)
        for network, about in networks.items()
        for name, figures in metrics["accuracy"][network].items()
    ]
    rows.append(Row("chance", [metrics["chance"]] * len(kinds), muted=True))
    accuracy = Table(
        f"{options['ways']}-way accuracy",
        columns,
        rows,
        note=f"{options['episodes']:,} episodes of {data['name']}, split {data['split']}: {options['queries']} queries "
        f"a class, {data['images']:,} images of {data['classes']} classes. Intervals: {metrics['intervals']}. "
        "Rectified rows are transductive: they look at all queries of an episode together.",
    )
    differences = Table(
        "Paired differences",
        [Column(column.name, percent=True, decimals=2) for column in columns],
        [
            Row(f"{label(*row['a'])} − {label(*row['b'])}", [figure_cell(row["figures"][kind]) for kind in kinds])
            for row in metrics["differences"]
        ],
        note="In points, over the same episodes; one whose interval holds 0 is none.",
    )
    return [accuracy, differences]
