"""A strip of cases as one PNG: for a README, a paper or a slide."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from distcam_jax.files import write_atomically
from distcam_jax.report.overlays import DERIVED_BOX_COLOR, TRUE_BOX_COLOR, color_table
from distcam_jax.report.page import case_pictures, distance_text
from distcam_jax.report.parts import Case

_INK, _QUIET = "#17181a", "#62666d"
_SIDE = 2.0  # inches of a picture's width
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 1.45, 0.75, 0.4, 0.34, 0.1  # inches


def save_figure(
    cases: Sequence[Case],
    path: str | os.PathLike,
    *,
    alpha: float = 0.5,
    colormap: str = "turbo",
    dpi: int = 160,
) -> Path:
    """Draws cases as a strip and writes it as a PNG: a row an image, a column the input and each heatmap.

    Args:
        cases: the rows; all with panels of the same titles.
        path: of the PNG. Its folder is made where it does not exist.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.
        dpi: pixels an inch; a picture is 2 inches wide.

    Returns:
        The path.

    Raises:
        ValueError: without cases, or where the titles of their panels differ.
        OSError: where the file cannot be written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from distcam_jax.report.parts import Panel
        >>> case = Case(np.zeros((64, 64, 3)), [Panel("Dist-CAM", np.eye(7))], true_class="cat")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure([case], f"{folder}/strip.png").name
        'strip.png'
    """
    if not cases:
        raise ValueError("cases must not be empty")
    titles = [[panel.title for panel in case.panels] for case in cases]
    for index, row in enumerate(titles):
        if row != titles[0]:
            raise ValueError(f"cases must have panels of the same titles: got {titles[0]}, and {row} at index {index}")
    rows = [case_pictures(case, alpha=alpha, colormap=colormap) for case in cases]
    figure = _strip(cases, rows, colormap)
    return write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=dpi))


def _strip(cases: Sequence[Case], rows: list, colormap: str) -> Figure:
    """Lays the pictures out; sizes are inches from the top left until they are handed to matplotlib."""
    heights = [max(picture.shape[0] / picture.shape[1] for _, picture, _ in row) * _SIDE for row in rows]
    captions = [0.26 if any(caption for _, _, caption in row) else 0.0 for row in rows]
    width = _LEFT + len(rows[0]) * (_SIDE + _GAP) + _RIGHT
    height = _TOP + sum(heights) + sum(captions) + _GAP * len(rows) + _BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def text(x, y, words, *, color=_INK, size=9.0, **style):
        figure.text(x / width, 1 - y / height, words, parse_math=False, color=color, size=size, **style)

    top = _TOP
    for index, (case, row) in enumerate(zip(cases, rows, strict=True)):
        _names(text, case, top + heights[index] / 2)
        for column, (title, picture, caption) in enumerate(row):
            left = _LEFT + column * (_SIDE + _GAP)
            tall = picture.shape[0] / picture.shape[1] * _SIDE
            axes = figure.add_axes((left / width, 1 - (top + tall) / height, _SIDE / width, tall / height))
            axes.imshow(picture, interpolation="antialiased", aspect="auto")
            axes.set_axis_off()
            if index == 0:
                text(left, _TOP - 0.12, title, weight="bold")
            text(left, top + tall + 0.17, caption, color=_QUIET, size=8)
        top += heights[index] + captions[index] + _GAP
    _color_bar(figure, width - _RIGHT + 0.1, height, colormap)
    _box_legend(figure, cases, _LEFT / width, height)
    return figure


def _names(text, case: Case, middle: float) -> None:
    """Writes the classes and the distance to the left of a row."""
    lines = []
    if case.predicted_class is not None:
        lines.append((case.predicted_class, {"weight": "bold"}))
    if case.true_class is not None and case.correct is not True:
        lines.append((f"true: {case.true_class}", {"color": _QUIET}))
    elif case.correct:
        lines.append(("correct", {"color": _QUIET}))
    if case.distance is not None:
        lines.append((f"distance {distance_text(case.distance)}", {"color": _QUIET}))
    if not lines and case.file_name:
        lines.append((case.file_name, {}))
    for index, (words, style) in enumerate(lines):
        short = words if len(words) <= 18 else words[:17] + "…"
        text(_LEFT - 0.12, middle + 0.19 * (index - len(lines) / 2 + 0.5), short, ha="right", va="center", **style)


def _color_bar(figure: Figure, left: float, height: float, colormap: str) -> None:
    """Draws the colour bar at the right border."""
    width = figure.get_figwidth()
    long = min(_SIDE, height - _TOP - _BOTTOM - _GAP)
    axes = figure.add_axes((left / width, 1 - (_TOP + long) / height, 0.13 / width, long / height))
    bar = figure.colorbar(ScalarMappable(cmap=ListedColormap(color_table(colormap) / 255.0)), cax=axes)
    bar.set_ticks([0.0, 1.0], labels=["≤ 0", "max"])
    bar.ax.tick_params(length=0, labelsize=8, colors=_QUIET)
    bar.outline.set_visible(False)


def _box_legend(figure: Figure, cases: Sequence[Case], left: float, height: float) -> None:
    """Names the colours of the boxes that are there."""
    kinds = []
    if any(case.true_boxes is not None and len(case.true_boxes) for case in cases):
        kinds.append(("true box", TRUE_BOX_COLOR))
    if any(panel.box is not None for case in cases for panel in case.panels):
        kinds.append(("box from the heatmap", DERIVED_BOX_COLOR))
    if not kinds:
        return
    outline = [withStroke(linewidth=5, foreground=_INK)]  # white on white would not show
    lines = [
        Line2D([], [], color="#{:02x}{:02x}{:02x}".format(*color), linewidth=3, label=name, path_effects=outline)
        for name, color in kinds
    ]
    figure.legend(
        handles=lines,
        loc="lower left",
        bbox_to_anchor=(left, 0.08 / height),
        borderaxespad=0,
        borderpad=0,
        ncols=2,
        frameon=False,
        fontsize=8.5,
        labelcolor=_QUIET,
        handlelength=1.6,
    )
