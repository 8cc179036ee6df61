"""How a report becomes one HTML file that needs nothing else."""

import functools
import os
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from distcam_jax.files import write_atomically
from distcam_jax.report.episode_view import episode_view, shots_across
from distcam_jax.report.explorer import Explorer, explorer_payload, explorer_script, json_for_script, script_hash
from distcam_jax.report.overlays import (
    DERIVED_BOX_COLOR,
    NO_HEAT,
    TRUE_BOX_COLOR,
    color_table,
    data_uri,
    draw_boxes,
    enlarge,
    has_heat,
    overlay_heatmap,
)
from distcam_jax.report.parts import Case, Comparison, Report, Section
from distcam_jax.report.retrieval_view import retrieval_script, retrieval_view
from distcam_jax.report.tables import table_texts


def case_pictures(case: Case, *, alpha: float = 0.5, colormap: str = "turbo") -> list[tuple[str, np.ndarray, str]]:
    """Draws a case: the input with its true boxes, then every panel with its own and the true boxes.

    Args:
        case: the case.
        alpha: weight of the heatmap's colours.
        colormap: name of a matplotlib colour map.

    Returns:
        Title, uint8 picture and caption of each.

    Example:
        >>> from distcam_jax.report.parts import Panel
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
    """Renders a report as one HTML page with all pictures inside.

    Names are escaped; the page loads nothing from anywhere, and says so in its content security policy. Only an
    explorer and retrievals bring scripts; without them, and where scripts are off, the rest of the page is the same.

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
    explorer = None if report.explorer is None else _explorer_view(report.explorer, report)
    searches = retrieval_script() if report.retrievals else ""
    scripts = [searches] if explorer is None else [explorer["script"], searches]
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
            explorer=explorer,
            episodes=[
                episode_view(episode, alpha=report.alpha, colormap=report.colormap) for episode in report.episodes
            ],
            retrievals=[
                retrieval_view(retrieval, alpha=report.alpha, colormap=report.colormap)
                for retrieval in report.retrievals
            ],
            retrieval_script=searches,
            script_hashes=[script_hash(script) for script in scripts if script],
        )
    )


def _explorer_view(explorer: Explorer, report: Report) -> dict[str, Any]:
    """Returns what the template needs to hold the explorer; its data and script are safe as they are."""
    payload = explorer_payload(explorer, alpha=report.alpha, colormap=report.colormap)
    return {"text": explorer.text, "data": json_for_script(payload), "script": explorer_script()}


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
    environment.filters |= {"distance": distance_text, "across": shots_across}
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
