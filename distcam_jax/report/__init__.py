"""Reports: heatmap overlays, result tables, one self-contained HTML page, and picture strips.

`write_report` makes the page from images, features and prototypes of any framework. The evaluators build a `Report`
themselves, from tables, an explorer, few-shot episodes, retrievals, sections of cases and comparisons with class
prototypes, and call `save_report`.
"""

from distcam_jax.report.build import write_report
from distcam_jax.report.episode_figures import save_episode_figure
from distcam_jax.report.episodes import Episode, EpisodeQuery
from distcam_jax.report.explorer import Explorer, ExplorerImage, ExplorerMethod
from distcam_jax.report.figures import save_figure
from distcam_jax.report.overlays import draw_boxes, has_heat, overlay_heatmap
from distcam_jax.report.page import render_report, save_report
from distcam_jax.report.parts import Case, Comparison, ComparisonRow, Panel, Report, Section
from distcam_jax.report.retrieval import Match, Retrieval, RetrievalQuery
from distcam_jax.report.retrieval_figures import save_retrieval_figure
from distcam_jax.report.tables import Column, Measure, Row, Table, format_table, wilson_interval

__all__ = [
    "Case",
    "Column",
    "Comparison",
    "ComparisonRow",
    "Episode",
    "EpisodeQuery",
    "Explorer",
    "ExplorerImage",
    "ExplorerMethod",
    "Match",
    "Measure",
    "Panel",
    "Report",
    "Retrieval",
    "RetrievalQuery",
    "Row",
    "Section",
    "Table",
    "draw_boxes",
    "format_table",
    "has_heat",
    "overlay_heatmap",
    "render_report",
    "save_episode_figure",
    "save_figure",
    "save_report",
    "save_retrieval_figure",
    "wilson_interval",
    "write_report",
]
