"""A few-shot episode as one PNG: for a README, a paper or a slide."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distcam_jax.checks import check_positive_integers
from distcam_jax.files import write_atomically
from distcam_jax.report.episode_view import (
    cell_mark,
    cell_size,
    query_pictures,
    score_texts,
    shots_across,
    shots_text,
    support_pictures,
)
from distcam_jax.report.episodes import Episode
from distcam_jax.report.figures import _BOTTOM, _LEFT, _RIGHT, _TOP, _color_bar
from distcam_jax.report.overlays import NO_HEAT, enlarge, has_heat
from distcam_jax.report.sheets import INK, QUIET, RIGHT_COLOR, WRONG_COLOR, Sheet, shorten, tallness

_SIDE, _GAP = 1.35, 0.14  # inches: a picture's width, and between pictures
_HEAD, _LINE = 0.36, 0.3  # inches: the heading of the queries, the line of scores
_MARKS = {  # colour and style of the frame, and the words beside the score
    "right": (RIGHT_COLOR, "solid", "✓ chosen"),
    "wrong": (WRONG_COLOR, "solid", "✗ chosen"),
    "missed": (RIGHT_COLOR, (0, (3, 1.5)), "○ true"),
}


def save_episode_figure(
    episode: Episode,
    path: str | os.PathLike,
    *,
    method: str,
    queries: int | Sequence[int] = 6,
    alpha: float = 0.5,
    colormap: str = "turbo",
    dpi: int = 160,
) -> Path:
    """Draws an episode by one method and writes it as a PNG, as in Fig. 4a of the paper.

    The support images of each class stand on top, with their heatmaps where the episode has them by this method. Below
    them comes a row a query: its image, and its map for each class. A frame marks the chosen class, a dashed one the
    true class where another was chosen.

    Args:
        episode: what to show.
        path: of the PNG. Its folder is made where it does not exist.
        method: title of the method whose maps are shown.
        queries: how many are shown, the first of `Episode.order`; or which, by their positions in `Episode.queries`.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.
        dpi: pixels an inch; a picture is 1.35 inches wide.

    Returns:
        The path.

    Raises:
        ValueError: for a method that the queries do not have, or queries that are none or not there.
        OSError: where the file cannot be written.

    Example:
        >>> import tempfile
        >>> from distcam_jax.report.episodes import EpisodeQuery
        >>> image = np.zeros((84, 84, 3))
        >>> query = EpisodeQuery(image, {"Dist-CAM": np.ones((2, 5, 5))}, [3.0, 5.0], 0, true=1)
        >>> episode = Episode("Episode 0", "", ["cat", "dog"], [[image], [image]], [query])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_episode_figure(episode, f"{folder}/episode.png", method="Dist-CAM").name
        'episode.png'
    """
    if method not in episode.methods:
        raise ValueError(f"method {method!r} is unknown; valid are {', '.join(episode.methods)}")
    sheet = _Sheet(episode, _shown(episode, queries), method, alpha, colormap)
    return write_atomically(path, lambda temporary: sheet.figure.savefig(temporary, format="png", dpi=dpi))


def _shown(episode: Episode, queries: int | Sequence[int]) -> list[int]:
    """Returns the positions of the queries to show."""
    if isinstance(queries, int):
        check_positive_integers(queries=queries)
        return episode.order[:queries]
    count, positions = len(episode.queries), list(queries)
    if not positions or not all(0 <= position < count for position in positions):
        raise ValueError(f"queries must be a number, or positions of the {count} queries, got {positions}")
    return positions


class _Sheet(Sheet):
    """Lays an episode out."""

    def __init__(self, episode: Episode, shown: list[int], method: str, alpha: float, colormap: str):
        self.episode, self.method = episode, method
        self.look = {"alpha": alpha, "colormap": colormap}
        titles = [None, method] if method in (episode.support_heatmaps or {}) else [None]
        supports = [support_pictures(episode, method=title, **self.look) for title in titles]
        rows = [max(tallness(_tiled(pictures)) for pictures in row) * _SIDE for row in supports]
        queries = [tallness(np.empty(cell_size(episode.queries[index].image))) * _SIDE for index in shown]
        super().__init__(
            _LEFT + (1 + len(episode.class_names)) * (_SIDE + _GAP) + _RIGHT,
            _TOP + sum(rows) + _HEAD + sum(queries) + _LINE * len(queries) + _GAP * len(rows + queries) + _BOTTOM,
        )
        for way, name in enumerate(episode.class_names):
            self.text(self._left(way), _TOP - 0.12, shorten(name), weight="bold")
        top = _TOP
        for title, row, tall in zip(titles, supports, rows, strict=True):
            self._supports(title, row, top, tall)
            top += tall + _GAP
        self.text(_LEFT, top + _HEAD - 0.14, "Query", weight="bold")
        self.text(self._left(0), top + _HEAD - 0.14, f"{method} for each class", weight="bold")
        top += _HEAD
        for index, tall in zip(shown, queries, strict=True):
            self._query(index, top, tall)
            top += tall + _LINE + _GAP
        _color_bar(self.figure, self.width - _RIGHT + 0.1, self.height, colormap)
        scale = "maps of a row share one scale" if episode.shared_scale else "each map at its own scale"
        foot = f"{episode.wrong} of {episode.total} queries wrong. Numbers: {episode.score_name}; {scale}."
        self.text(_LEFT, self.height - 0.13, foot, color=QUIET, size=8.5)

    def _supports(self, title: str | None, row: list, top: float, tall: float) -> None:
        """Draws the support images, or their heatmaps."""
        if title is None:
            lines = [("Supports", {"weight": "bold"}), (f"{shots_text(self.episode)} a class", {"color": QUIET})]
        else:
            lines = [("each for its", {"color": QUIET}), ("own class", {"color": QUIET})]
        self.lines(_LEFT - 0.12, top + tall / 2, lines)
        for way, pictures in enumerate(row):
            self.picture(_tiled(pictures), self._left(way), top, _SIDE)

    def _query(self, index: int, top: float, tall: float) -> None:
        """Draws a query and its map for each class, with scores and marks."""
        query, names = self.episode.queries[index], self.episode.class_names
        lines = [(shorten(names[query.true]), {"weight": "bold"})]
        if query.correct:
            lines.append(("✓ correct", {"color": RIGHT_COLOR}))
        else:
            lines += [
                ("✗ taken for", {"color": WRONG_COLOR}),
                (shorten(names[query.predicted]), {"color": WRONG_COLOR}),
            ]
        self.lines(_LEFT - 0.12, top + tall / 2, lines)
        self.picture(enlarge(query.image, size=cell_size(query.image)), _LEFT, top, _SIDE)
        drawn = query_pictures(self.episode, query, self.method, **self.look)
        for way, (picture, score) in enumerate(zip(drawn, score_texts(query.scores), strict=True)):
            left, mark = self._left(way), cell_mark(query, way)
            color, style, words = _MARKS.get(mark, (INK, "solid", ""))
            if mark:
                self._frame(left, top, tall, color, style)
            self.picture(picture, left, top, _SIDE)
            if not has_heat(query.heatmaps[self.method][way]):
                box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
                self.text(left + 0.06, top + tall - 0.07, NO_HEAT, size=7, bbox=box)
            self.text(left, top + tall + 0.2, score, size=8.5)
            self.text(left + _SIDE, top + tall + 0.2, words, color=color, size=8.5, weight="bold", ha="right")

    def _left(self, way: int) -> float:
        return _LEFT + (1 + way) * (_SIDE + _GAP)

    def _frame(self, left: float, top: float, tall: float, color: str, style) -> None:
        """Draws a frame around a picture, its line halfway to the next one, and its score."""
        out, bottom = _GAP / 2 - 0.02, _LINE - 0.02
        self.frame(left - out, top - out, _SIDE + 2 * out, tall + out + bottom, color=color, style=style)


def _tiled(pictures: list[np.ndarray]) -> np.ndarray:
    """Puts a class's pictures beside and below one another, on white."""
    across, gap = shots_across(len(pictures)), 6
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0)
    down = -(-len(pictures) // across)
    sheet = np.full((down * (height + gap) - gap, across * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // across * (height + gap), index % across * (width + gap)
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet
