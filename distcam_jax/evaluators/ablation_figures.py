"""Figures of the ablations: GT-known over eps, over the number of samples, and over the threshold."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from distcam_jax.evaluators.ablation_rows import DEFAULT, minmax_key
from distcam_jax.files import write_atomically

_INK, _QUIET, _LINE = "#17181a", "#62666d", "#d9dbdf"
_COLORS = ("#1f6fb4", "#c8641b", "#4a9a5b", "#8d5aa8")  # told apart by the colour-blind too
_PANEL, _HEIGHT = 3.7, 3.3  # inches
_BOX = "centre box"


def save_figures(metrics: dict, folder: str | Path) -> list[Path]:
    """Draws the figures that the measured networks allow, and writes them as PNGs.

    Args:
        metrics: of `ablations`.
        folder: where `eps.png`, `samples.png` and `thresholds.png` go.

    Returns:
        The paths.

    Raises:
        OSError: where a file cannot be written.
    """
    drawings = {"eps": _eps, "samples": _samples, "thresholds": _thresholds}
    made = {name: draw(metrics) for name, draw in drawings.items() if metrics["threshold_curves"]}
    return [
        write_atomically(
            Path(folder) / f"{name}.png", lambda path, one=figure: one.savefig(path, format="png", dpi=160)
        )
        for name, figure in made.items()
        if figure is not None
    ]


def _panels(networks: Sequence[str], draw: Callable[[Axes, str], None], *, x: str, y: str, columns: int = 3) -> Figure:
    """One panel a network side by side, with one scale and one legend under them."""
    figure = Figure(figsize=(0.4 + _PANEL * len(networks), _HEIGHT), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        draw(axes, network)
        axes.set_title(f"network {network}", loc="left", fontsize=10, color=_INK, weight="bold")
        axes.set_xlabel(x, fontsize=9.5, color=_INK)
        axes.grid(axis="y", color=_LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_QUIET, labelsize=9, length=3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_QUIET)
    panels[0].set_ylabel(y, fontsize=9.5, color=_INK)
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: not isinstance(handles[i], ErrorbarContainer))  # curves first
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=_INK
    )
    return figure


def _rows(metrics: dict, ablation: str) -> dict[tuple[str, tuple[str, ...]], dict]:
    """The rows of a table by network and variants."""
    found = metrics["ablations"].get(ablation, {"rows": []})["rows"]
    return {(row["networks"][0], tuple(row["variants"])): row for row in found}


def _curve(
    axes: Axes,
    xs: Sequence[float],
    figures: Sequence[Mapping],
    label: str,
    number: int,
    *,
    marker: float = 4.0,
    line: str = "-",
) -> None:
    """Values in percent with their intervals."""
    values, low, high = ([100 * one[name] for one in figures] for name in ("value", "low", "high"))
    below = [value - end for value, end in zip(values, low, strict=True)]
    above = [end - value for value, end in zip(values, high, strict=True)]
    axes.errorbar(
        xs,
        values,
        yerr=[below, above],
        label=label,
        color=_COLORS[number],
        marker="o",
        markersize=marker,
        linestyle=line,
        linewidth=1.6,
        elinewidth=1.0,
        capsize=2.5,
    )


def _level(axes: Axes, figure: Mapping, label: str, style: str, color: str = _QUIET) -> None:
    axes.axhline(100 * figure["value"], color=color, linestyle=style, linewidth=1.2, label=label, zorder=1)


def _eps(metrics: dict) -> Figure | None:
    rows, values = _rows(metrics, "eps"), metrics["config"]["vary"]["eps"]
    if not rows:
        return None
    default = metrics["config"]["evaluate"]["eps"]
    networks = list(metrics["threshold_curves"])
    shown = sorted(float(value) for value in values)

    def draw(axes, network):
        found = [rows[network, (DEFAULT if value == default else f"eps={value}",)] for value in shown]
        kinds = {"tuned": "Dist-CAM, tuned threshold", "default": f"Dist-CAM, threshold {metrics['default_threshold']}"}
        for number, (kind, label) in enumerate(kinds.items()):
            aside = [value * (0.92, 1.08)[number] for value in shown]  # so that both intervals are seen
            _curve(axes, aside, [row[kind]["gt_known"] for row in found], label, number)
        _level(axes, rows[network, ("uniform",)]["tuned"]["gt_known"], "uniform weights, tuned", "--")
        _level(axes, rows[network, ("center_box",)]["tuned"]["gt_known"], _BOX, ":")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.axvline(default, color=_LINE, linewidth=4, zorder=0, label="default eps")

    return _panels(networks, draw, x="eps, share of the mean distance", y="GT-known accuracy, %")


def _samples(metrics: dict) -> Figure | None:
    rows, counts = _rows(metrics, "samples"), sorted(metrics["config"]["vary"]["samples"])
    if not rows:
        return None
    networks, draws = list(metrics["threshold_curves"]), metrics["config"]["vary"]["draws"]
    names = [str(count) for count in counts] + ["all"]
    spots = [float(place) for place in range(len(names))]

    def draw(axes, network):
        several = [tuple(f"{count} samples, draw {draw}" for draw in range(draws)) for count in counts]
        found = [rows[network, keys] for keys in [*several, (DEFAULT,)]]
        _curve(axes, spots, [row["tuned"]["gt_known"] for row in found], "Dist-CAM: box right (GT-known)", 0)
        right = [_complement(row["tuned"]["top1_error"]) for row in found]
        _curve(axes, spots, right, "Dist-CAM: class and box right", 1)
        _curve(axes, spots, [row["class_right"] for row in found], "class right", 2)
        _level(axes, rows[network, ("uniform",)]["tuned"]["gt_known"], "uniform weights: box right", "--")
        _level(axes, rows[network, ("center_box",)]["tuned"]["gt_known"], f"{_BOX}: box right", ":")
        axes.set_xticks(spots, names)
        axes.set_xlim(-0.3, len(names) - 0.7)
        axes.set_ylim(bottom=0)

    return _panels(networks, draw, x="training samples of each class in its prototype", y="images, %")


def _complement(figure: Mapping) -> dict:
    return {"value": 1 - figure["value"], "low": 1 - figure["high"], "high": 1 - figure["low"]}


def _thresholds(metrics: dict) -> Figure:
    curves, thresholds = metrics["threshold_curves"], metrics["thresholds"]
    rows = _rows(metrics, "scaling")

    def draw(axes, network):
        for number, (key, title) in enumerate(((DEFAULT, "Dist-CAM"), ("uniform", "uniform weights"))):
            scaled, minmax = curves[network][key], curves[network][minmax_key(key)]
            _curve(axes, thresholds, scaled, f"{title}, map / max", number, marker=2.5)
            _curve(axes, thresholds, minmax, f"{title}, (map − min) / (max − min)", number, marker=2.5, line="--")
        _level(axes, rows[network, ("center_box",)]["tuned"]["gt_known"], _BOX, ":")
        axes.axvline(metrics["default_threshold"], color=_LINE, linewidth=4, zorder=0, label="protocol's threshold")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)

    return _panels(
        list(curves), draw, x="threshold, share of the scaled map's maximum", y="GT-known accuracy, %", columns=2
    )
