"""The report page: what it is made of, and how it becomes one HTML file that needs nothing else."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Array, Num, Shaped

from distcam_jax.files import write_atomically
from distcam_jax.report.overlays import (
    DERIVED_BOX_COLOR,
    TRUE_BOX_COLOR,
    color_table,
    data_uri,
    draw_boxes,
    enlarge,
    has_heat,
    overlay_heatmap,
)
from distcam_jax.report.tables import Table, table_texts

NO_HEAT = "no positive value"
Image = Shaped[Array | np.ndarray, "_ _ 3"]
Heatmap = Shaped[Array | np.ndarray, "_ _"]
Boxes = Num[Array | np.ndarray, "_ 4"]


@dataclass(frozen=True, eq=False)
class Panel:
    """One heatmap of a case.

    Attributes:
        title: what it shows, such as "Dist-CAM"; panels of one title stand in one column.
        heatmap: values of any range, or None for a picture without one.
        box: the box derived from the heatmap, in pixels of the image; None or an empty box draws nothing.
        iou: intersection over union of that box with the true one, or None.
        caption: a line below the panel.
        image: a picture of its own, such as the nearest neighbour, instead of the case's.

    Example:
        >>> Panel("Dist-CAM", np.eye(7), box=[8, 8, 60, 60], iou=0.7).title
        'Dist-CAM'
    """

    title: str
    heatmap: Heatmap | None = None
    box: Num[Array | np.ndarray, "4"] | Sequence[Any] | None = None
    iou: float | None = None
    caption: str = ""
    image: Image | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """An image with its explanations.

    Attributes:
        image: uint8, or floats in [0, 1].
        panels: the heatmaps; the input with its true boxes is always shown before them.
        file_name: or another name for the image.
        predicted_class: name of the predicted class.
        true_class: name of the true class, or None where it is not known.
        distance: of the image to the predicted class.
        iou: the figure that the case is ranked by, or None.
        true_boxes: `x0, y0, x1, y1` in pixels of the image, exclusive end, or None.
        note: a line below the names.

    Example:
        >>> case = Case(np.zeros((64, 64, 3)), [Panel("CAM", np.eye(7))], predicted_class="zebra", true_class="horse")
        >>> case.correct
        False
    """

    image: Image
    panels: Sequence[Panel] = ()
    file_name: str = ""
    predicted_class: str | None = None
    true_class: str | None = None
    distance: float | None = None
    iou: float | None = None
    true_boxes: Boxes | Sequence[Any] | None = None
    note: str = ""

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is right; None where one of the two classes is not known."""
        if self.true_class is None or self.predicted_class is None:
            return None
        return self.true_class == self.predicted_class

    @property
    def name(self) -> str:
        """The file name, or what else identifies the image."""
        return self.file_name or self.true_class or self.predicted_class or "image"


@dataclass(frozen=True)
class Section:
    """A group of cases.

    Attributes:
        title: its heading, also in the page's navigation.
        text: a sentence below the heading.
        cases: from top to bottom; a section without any is left out.

    Example:
        >>> Section("Best cases", "Largest overlap first.", []).title
        'Best cases'
    """

    title: str
    text: str
    cases: Sequence[Case]


@dataclass(frozen=True, eq=False)
class ComparisonRow:
    """One image against several class prototypes.

    Attributes:
        image: uint8, or floats in [0, 1].
        heatmaps: one for each class of the comparison.
        distances: of the image to each class, likewise.
        file_name: or another name for the image.
        true_class: name of the true class, or None.

    Raises:
        ValueError: where there are more or fewer distances than heatmaps.

    Example:
        >>> ComparisonRow(np.zeros((64, 64, 3)), [np.eye(7), np.eye(7)], [3.0, 1.5]).nearest
        1
    """

    image: Image
    heatmaps: Sequence[Heatmap] | Shaped[np.ndarray, "_ _ _"]
    distances: Sequence[Any] | Num[np.ndarray, "_"]
    file_name: str = ""
    true_class: str | None = None

    def __post_init__(self):
        if len(self.heatmaps) != len(self.distances) or not len(self.heatmaps):
            raise ValueError(f"got {len(self.heatmaps)} heatmaps and {len(self.distances)} distances; want one a class")

    @property
    def nearest(self) -> int:
        """Index of the nearest class."""
        return int(np.argmin(self.distances))


@dataclass(frozen=True)
class Comparison:
    """Images against class prototypes, as in Fig. 3 of the paper: a row an image, a column a class.

    Attributes:
        title: its heading, such as the method.
        text: a sentence below the heading.
        class_names: the columns.
        rows: the images.
        shared_scale: whether the maps of a row are divided by the largest value of the whole row, so that they can be
            compared, and not each by its own.

    Raises:
        ValueError: where a row has more or fewer heatmaps than there are classes.

    Example:
        >>> row = ComparisonRow(np.zeros((64, 64, 3)), [np.eye(7), np.eye(7)], [3.0, 1.5])
        >>> Comparison("Dist-CAM", "", ["cat", "dog"], [row]).class_names
        ['cat', 'dog']
    """

    title: str
    text: str
    class_names: Sequence[str]
    rows: Sequence[ComparisonRow]
    shared_scale: bool = True

    def __post_init__(self):
        for row in self.rows:
            if len(row.heatmaps) != len(self.class_names):
                raise ValueError(f"a row has {len(row.heatmaps)} heatmaps for {len(self.class_names)} classes")


@dataclass(frozen=True)
class Report:
    """A whole page.

    Attributes:
        title: the page's heading.
        subtitle: a line below it, such as model, data set and number of images.
        tables: result tables, first on the page.
        settings: names and values of what the figures depend on.
        comparisons: images against class prototypes.
        sections: groups of cases.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.

    Example:
        >>> Report("Dist-CAM", subtitle="ResNet-50").sections
        ()
    """

    title: str
    subtitle: str = ""
    tables: Sequence[Table] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()
    sections: Sequence[Section] = ()
    alpha: float = 0.5
    colormap: str = "turbo"


def case_pictures(case: Case, *, alpha: float = 0.5, colormap: str = "turbo") -> list[tuple[str, np.ndarray, str]]:
    """Draws a case: the input with its true boxes, then every panel with its own and the true boxes.

    Args:
        case: the case.
        alpha: weight of the heatmap's colours.
        colormap: name of a matplotlib colour map.

    Returns:
        Title, uint8 picture and caption of each.

    Example:
        >>> case = Case(np.zeros((64, 64, 3)), [Panel("CAM", -np.eye(7)), Panel("Dist-CAM", np.eye(7), iou=0.5)])
        >>> [(title, caption) for title, _, caption in case_pictures(case)]
        [('Input', ''), ('CAM', 'no positive value'), ('Dist-CAM', 'IoU 0.50')]
    """
    pictures = [("Input", _with_boxes(enlarge(case.image), case.image, case.true_boxes), "")]
    for panel in case.panels:
        image = case.image if panel.image is None else panel.image
        blank = panel.heatmap is not None and not has_heat(panel.heatmap)
        if panel.heatmap is None:
            picture = enlarge(image)
        else:
            picture = overlay_heatmap(image, panel.heatmap, alpha=alpha, colormap=colormap)
        if panel.image is None:
            picture = _with_boxes(picture, image, case.true_boxes)
        picture = _with_boxes(picture, image, None if panel.box is None else [panel.box], DERIVED_BOX_COLOR)
        facts = [NO_HEAT if blank else "", "" if panel.iou is None else f"IoU {panel.iou:.2f}", panel.caption]
        pictures.append((panel.title, picture, ", ".join(filter(None, facts))))
    return pictures


def _with_boxes(picture, image, boxes, color=TRUE_BOX_COLOR):
    """Draws boxes given in pixels of the image on its enlarged picture."""
    if boxes is None or not len(boxes):
        return picture
    scale = np.array([picture.shape[1] / image.shape[1], picture.shape[0] / image.shape[0]] * 2)
    return draw_boxes(picture, np.asarray(boxes, dtype=np.float64) * scale, color)


def render_report(report: Report) -> str:
    """Renders a report as one HTML page without scripts, with all pictures inside.

    Names are escaped; the page loads nothing from anywhere, and says so in its content security policy.

    Args:
        report: what to show.

    Returns:
        The HTML text.

    Raises:
        ValueError: for pictures, heatmaps or boxes of the wrong shape.

    Example:
        >>> "&lt;b&gt;" in render_report(Report("<b>"))
        True
    """
    stops = color_table(report.colormap)[np.linspace(0, 255, 17).astype(int)]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            tables=[(table, zip(table.rows, table_texts(table), strict=True)) for table in report.tables],
            settings={str(name): str(value) for name, value in report.settings.items()},
            comparisons=[_comparison_view(comparison, report) for comparison in report.comparisons if comparison.rows],
            sections=[_section_view(section, report) for section in report.sections if section.cases],
            gradient=", ".join(f"rgb({r}, {g}, {b})" for r, g, b in stops.tolist()),
            true_color="rgb({}, {}, {})".format(*TRUE_BOX_COLOR),
            derived_color="rgb({}, {}, {})".format(*DERIVED_BOX_COLOR),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    """Returns the template environment; templates are read as package data, so a zipped package works too."""
    folder = resources.files("distcam_jax.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["distance"] = distance_text
    return environment


def distance_text(distance: float | np.floating) -> str:
    """Formats a distance with three significant digits and no exponent.

    Args:
        distance: any number; NaN and infinity are named.

    Returns:
        The text.

    Example:
        >>> [distance_text(distance) for distance in (9.0, 0.01234, 1234.5)]
        ['9.00', '0.0123', '1230']
    """
    return np.format_float_positional(distance, precision=3, unique=False, fractional=False, trim="k").rstrip(".")


def _section_view(section: Section, report: Report) -> dict[str, Any]:
    """Returns what the template needs to show a section."""
    cases = []
    for case in section.cases:
        panels = []
        for title, picture, caption in case_pictures(case, alpha=report.alpha, colormap=report.colormap):
            alt = f"{title}: {case.name}" if title == "Input" else f"{title} heatmap over {case.name}"
            panels.append(_picture_view(picture, alt) | {"title": title, "caption": caption})
        # the panels say it already where they have an IoU of their own
        cases.append({"case": case, "panels": panels, "show_iou": all(panel.iou is None for panel in case.panels)})
    boxes = any(
        case.true_boxes is not None or any(panel.box is not None for panel in case.panels) for case in section.cases
    )
    return {"title": section.title, "text": section.text, "cases": cases, "boxes": boxes}


def _comparison_view(comparison: Comparison, report: Report) -> dict[str, Any]:
    """Returns what the template needs to show a comparison."""
    rows = []
    for row in comparison.rows:
        tops = [float(np.asarray(heatmap).max()) for heatmap in row.heatmaps if has_heat(heatmap)]
        shared = max(tops) if tops and comparison.shared_scale else None
        cells = []
        for name, heatmap, distance in zip(comparison.class_names, row.heatmaps, row.distances, strict=True):
            picture = overlay_heatmap(row.image, heatmap, alpha=report.alpha, colormap=report.colormap, maximum=shared)
            view = _picture_view(
                picture, f"{comparison.title} heatmap over {row.file_name or 'image'} for class {name}"
            )
            cells.append(view | {"distance": distance, "caption": "" if has_heat(heatmap) else NO_HEAT})
        picture = _picture_view(enlarge(row.image), f"Input: {row.file_name or row.true_class or 'image'}")
        rows.append({"row": row, "input": picture, "cells": cells})
    return {"comparison": comparison, "rows": rows}


def _picture_view(picture: np.ndarray, alt: str) -> dict[str, Any]:
    """Returns the attributes of an img element."""
    return {"source": data_uri(picture), "alt": alt, "width": picture.shape[1], "height": picture.shape[0]}


def save_report(report: Report, path: str | os.PathLike) -> Path:
    """Renders a report and writes it, whole or not at all: a reader never finds half a page.

    Args:
        report: what to show.
        path: of the HTML file. Its folder is made where it does not exist.

    Returns:
        The path.

    Raises:
        OSError: where the file cannot be written; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_report(Report("Dist-CAM"), f"{folder}/report.html").name
        'report.html'
    """
    html = render_report(report)
    return write_atomically(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))
