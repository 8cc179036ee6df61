"""Queries and their most similar images as one PNG: for a README, a paper or a slide."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D

from distcam_jax.checks import check_positive_integers
from distcam_jax.files import write_atomically
from distcam_jax.report.episode_view import score_texts
from distcam_jax.report.figures import _BOTTOM, _LEFT, _RIGHT, _TOP, _color_bar
from distcam_jax.report.overlays import NO_HEAT, enlarge, has_heat
from distcam_jax.report.retrieval import Match, Retrieval, RetrievalQuery
from distcam_jax.report.retrieval_view import pair_pictures, picture_size, precision_text
from distcam_jax.report.sheets import INK, QUIET, RIGHT_COLOR, WRONG_COLOR, Sheet, shorten, tallness

_SIDE, _GAP, _SPLIT = 1.35, 0.14, 0.26  # inches: a square picture's width, between pictures, beside the queries
_RANK, _LINE, _BLOCK = 0.24, 0.17, 0.3  # inches: the ranks, a line below the pictures, between queries
_LETTER = 0.075  # inches


def save_retrieval_figure(
    retrieval: Retrieval,
    path: str | os.PathLike,
    *,
    methods: str | Sequence[str] | None = None,
    queries: int | Sequence[int] = 4,
    matches: int = 5,
    alpha: float = 0.5,
    colormap: str = "turbo",
    dpi: int = 160,
) -> Path:
    """Draws queries with their matches and writes them as a PNG, as in Fig. 4b and 4c of the paper.

    A query stands to the left of its most similar images, each in a green frame where it is right and in a red one
    where it is wrong. Below them come two rows a method: the query explained by each match, and each match explained by
    the query.

    Args:
        retrieval: what to show.
        path: of the PNG. Its folder is made where it does not exist.
        methods: title of the method whose maps are shown, or several titles; the first method where None.
        queries: how many are shown, the first of `Retrieval.order`; or which, by their positions in
            `Retrieval.queries`.
        matches: how many of each query are shown at most.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.
        dpi: pixels an inch; a square picture is 1.35 inches wide, others cover as much.

    Returns:
        The path.

    Raises:
        ValueError: for a method that the queries do not have, or queries that are none or not there.
        OSError: where the file cannot be written.

    Example:
        >>> import tempfile
        >>> image, maps = np.zeros((128, 64, 3)), {"Dist-CAM": np.ones((16, 8))}
        >>> query = RetrievalQuery(image, "0007", [Match(image, "0002", 3.5, False, maps, maps)], 0.25)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_retrieval_figure(Retrieval("Persons", "", [query]), f"{folder}/retrieval.png").name
        'retrieval.png'
    """
    titles = retrieval.methods[:1] if methods is None else [methods] if isinstance(methods, str) else list(methods)
    for title in titles:
        if title not in retrieval.methods:
            raise ValueError(f"method {title!r} is unknown; valid are {', '.join(retrieval.methods)}")
    check_positive_integers(matches=matches)
    sheet = _Sheet(retrieval, _shown(retrieval, queries), titles, matches, alpha, colormap)
    return write_atomically(path, lambda temporary: sheet.figure.savefig(temporary, format="png", dpi=dpi))


def _shown(retrieval: Retrieval, queries: int | Sequence[int]) -> list[RetrievalQuery]:
    """Returns the queries to show."""
    count = len(retrieval.queries)
    if isinstance(queries, int):
        check_positive_integers(queries=queries)
        positions = retrieval.order[:queries]
    else:
        positions = list(queries)
    if not positions or not all(0 <= position < count for position in positions):
        raise ValueError(f"queries must be a number, or positions of the {count} queries, got {positions}")
    return [retrieval.queries[position] for position in positions]


class _Sheet(Sheet):
    """Lays queries and their matches out."""

    def __init__(
        self,
        retrieval: Retrieval,
        queries: list[RetrievalQuery],
        methods: list[str],
        count: int,
        alpha: float,
        colormap: str,
    ):
        self.retrieval, self.methods, self.count = retrieval, methods, count
        self.look = {"alpha": alpha, "colormap": colormap}
        shown = [part for query in queries for part in (query, *query.matches[:count])]
        self.side = _SIDE / math.sqrt(float(np.median([tallness(part.image) for part in shown])))
        self.foot = 0.12 + _LINE * (3 if any(part.camera is not None for part in shown) else 2)
        columns = max(len(query.matches[:count]) for query in queries)
        heights = [self._height(query) for query in queries]
        right = self._left(columns)
        width = max(right + _RIGHT, _LEFT + 5.0)  # the sentence at the bottom takes its room
        super().__init__(width, _TOP + sum(heights) + _BLOCK * (len(queries) - 1) + 2 * _BOTTOM)
        self.text(_LEFT, _TOP - 0.12, "Query", weight="bold")
        self.text(self._left(0), _TOP - 0.12, "Most similar images, nearest first", weight="bold")
        top = _TOP
        for query, height in zip(queries, heights, strict=True):
            if top > _TOP:
                self._rule(top - _BLOCK / 2 - 0.05, right - _GAP)
            self._query(query, top)
            top += height + _BLOCK
        _color_bar(self.figure, right + 0.1, self.height, colormap)
        for line, words in enumerate(self._explanations()):
            self.text(_LEFT, self.height - 0.32 + 0.19 * line, words, color=QUIET, size=8.5)

    def _explanations(self) -> tuple[str, str]:
        """Returns the two lines at the bottom."""
        shown = self.retrieval
        same = f"Green, ✓: same {shown.class_word} as the query. Red, ✗: another {shown.class_word}."
        shared = "maps over a query share a scale, others have their own"
        scale = shared if shown.shared_scale else "each at its own scale"
        return f"{same} Numbers: {shown.distance_name}.", f"AP: {shown.precision_name}. Heatmaps: {scale}."

    def _left(self, place: int) -> float:
        """Returns where a match's column begins."""
        return _LEFT + self.side + _SPLIT + place * (self.side + _GAP)

    def _wide(self, shown: RetrievalQuery | Match) -> float:
        """Returns the width of a picture: all cover as much, unless their column is too narrow."""
        return min(self.side, _SIDE / math.sqrt(tallness(shown.image)))

    def _tall(self, *shown: RetrievalQuery | Match) -> float:
        """Returns the height of the tallest of some pictures."""
        return max(tallness(np.empty(picture_size(part.image))) * self._wide(part) for part in shown)

    def _height(self, query: RetrievalQuery) -> float:
        matches = query.matches[: self.count]
        maps = self._tall(query) + self._tall(*matches) + 2 * _GAP
        return _RANK + self._tall(query, *matches) + self.foot + len(self.methods) * maps

    def _query(self, query: RetrievalQuery, top: float) -> None:
        """Draws a query, its matches, and their maps."""
        matches = query.matches[: self.count]
        tall = self._tall(query, *matches)
        lines = [(shorten(query.class_name, 15), {"weight": "bold"}), (f"AP {precision_text(query)}", {"color": QUIET})]
        if query.camera is not None:
            lines.append((f"camera {query.camera}", {"color": QUIET}))
        self.lines(_LEFT - 0.12, top + _RANK + self._tall(query) / 2, lines)
        self.picture(enlarge(query.image, size=picture_size(query.image)), _LEFT, top + _RANK, self._wide(query))
        for place, distance in enumerate(score_texts([match.distance for match in matches])):
            self._match(matches[place], query.ranks[place], distance, self._left(place), top, tall)
        top += _RANK + tall + self.foot
        for method in self.methods:
            pictures = pair_pictures(self.retrieval, query, method, **self.look)
            maps = [[match.query_heatmaps[method] for match in matches], [match.heatmaps[method] for match in matches]]
            lines = [("Query, explained", "by this match"), ("Match, explained", "by the query")]
            of_row = ([query] * len(matches), matches)
            for row, names, heatmaps, parts in zip(pictures, lines, maps, of_row, strict=True):
                tall = self._tall(*parts)
                written = [(names[0], {}), (names[1], {}), (shorten(method), {"color": QUIET})]
                self.lines(self._left(0) - 0.14, top + tall / 2, written)
                for place, heatmap in enumerate(heatmaps):
                    self._map(row[place], heatmap, parts[place], self._left(place), top)
                top += tall + _GAP

    def _match(self, match: Match, rank: int, distance: str, left: float, top: float, tall: float) -> None:
        """Draws a match in its frame, with its rank above and its names below."""
        color, words = (RIGHT_COLOR, "✓ right") if match.correct else (WRONG_COLOR, "✗ wrong")
        self.text(left, top + _RANK - 0.09, str(rank), size=8.5, weight="bold")
        self.text(left + self.side, top + _RANK - 0.09, words, color=color, size=8.5, weight="bold", ha="right")
        self.picture(enlarge(match.image, size=picture_size(match.image)), left, top + _RANK, self._wide(match))
        self.frame(left, top + _RANK, self._wide(match), self._tall(match), color=color, line=3.0)
        facts = [distance] if match.camera is None else [distance, f"camera {match.camera}"]
        names = [shorten(match.class_name, max(4, int(self.side / _LETTER))), *facts]
        for index, name in enumerate(names):
            style = {"weight": "bold"} if index == 0 else {"color": QUIET}
            self.text(left, top + _RANK + tall + 0.16 + _LINE * index, name, size=8.5, **style)

    def _map(self, picture: np.ndarray, heatmap, shown: RetrievalQuery | Match, left: float, top: float) -> None:
        """Draws an overlay, and says so where its map has no heat."""
        self.picture(picture, left, top, self._wide(shown))
        if not has_heat(heatmap):
            box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
            self.text(left + 0.06, top + self._tall(shown) - 0.07, NO_HEAT, size=7, bbox=box)

    def _rule(self, y: float, right: float) -> None:
        """Draws a thin line between two queries."""
        ends = [0.12 / self.width, right / self.width]
        self.figure.add_artist(Line2D(ends, [1 - y / self.height] * 2, color=INK, alpha=0.15, linewidth=1))
