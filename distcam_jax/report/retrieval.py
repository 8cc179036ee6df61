"""Searches of a gallery as a page shows them: queries, their most similar images, and heatmaps of both of each pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distcam_jax.report.episodes import Heatmap, Image, _check_image, _check_map


@dataclass(frozen=True, eq=False)
class Match:
    """One image of the gallery that a query has found.

    Attributes:
        image: uint8, or floats in [0, 1].
        class_name: its class, or who it shows.
        distance: to the query; finite.
        correct: whether it is of the query's class.
        heatmaps: for each method, under its title, a map `[h, w]` over this image: the match explained by the query.
        query_heatmaps: for the same methods in the same order, a map `[h, w]` over the query's image: the query
            explained by this match.
        file_name: or another name for the image.
        camera: number of the camera that took it, or None.
        rank: its place in the list, from 1; None for its place among the given matches.
        note: a line below the names.

    Raises:
        ValueError: naming the field, for a wrong shape, a distance that is not finite, no map, or two lists of methods.

    Example:
        >>> image, maps = np.zeros((128, 64, 3)), {"Dist-CAM": np.ones((16, 8))}
        >>> Match(image, "0002", 3.5, True, maps, maps, camera=4).methods
        ['Dist-CAM']
    """

    image: Image
    class_name: str
    distance: Any
    correct: bool
    heatmaps: Mapping[str, Heatmap]
    query_heatmaps: Mapping[str, Heatmap]
    file_name: str = ""
    camera: int | None = None
    rank: int | None = None
    note: str = ""

    def __post_init__(self):
        _check_image("image", self.image)
        if np.ndim(self.distance) or not np.isfinite(self.distance):
            raise ValueError(f"distance must be one finite number, got {self.distance!r}")
        if not isinstance(self.correct, bool | np.bool_):
            raise ValueError(f"correct must be True or False, got {self.correct!r}")
        if not self.heatmaps:
            raise ValueError("heatmaps must hold the map of at least one method")
        if list(self.query_heatmaps) != self.methods:
            raise ValueError(
                f"query_heatmaps must be of the same methods as heatmaps: got {list(self.query_heatmaps)} for "
                f"{self.methods}"
            )
        for name in ("heatmaps", "query_heatmaps"):
            for method, heatmap in getattr(self, name).items():
                _check_map(f"{name}[{method!r}]", heatmap)
        _check_number("camera", self.camera, least=0)
        _check_number("rank", self.rank, least=1)

    @property
    def methods(self) -> list[str]:
        """Titles of the methods."""
        return list(self.heatmaps)


@dataclass(frozen=True, eq=False)
class RetrievalQuery:
    """One query, and the most similar images of the gallery.

    Attributes:
        image: uint8, or floats in [0, 1].
        class_name: its class, or who it shows.
        matches: from the nearest on, at least one; all with maps of the same methods in the same order.
        average_precision: of the whole list, in [0, 1], or None where it is not known.
        file_name: or another name for the image.
        camera: number of the camera that took it, or None.
        note: a line below the names.

    Raises:
        ValueError: naming the field, for a wrong shape, no match, matches of different methods, ranks that do not
            rise, or a precision outside [0, 1].

    Example:
        >>> image, maps = np.zeros((64, 64, 3)), {"Dist-CAM": np.ones((8, 8))}
        >>> matches = [Match(image, "cat", 2.0, False, maps, maps), Match(image, "dog", 3.5, True, maps, maps, rank=7)]
        >>> RetrievalQuery(image, "dog", matches, 0.31).ranks
        [1, 7]
    """

    image: Image
    class_name: str
    matches: Sequence[Match]
    average_precision: float | np.floating | None
    file_name: str = ""
    camera: int | None = None
    note: str = ""

    def __post_init__(self):
        _check_image("image", self.image)
        if not len(self.matches):
            raise ValueError("matches must not be empty")
        for index, match in enumerate(self.matches):
            if match.methods != self.methods:
                raise ValueError(
                    f"matches must have maps of the same methods: got {self.methods}, and {match.methods} at index "
                    f"{index}"
                )
        if any(later <= earlier for earlier, later in zip(self.ranks, self.ranks[1:], strict=False)):
            raise ValueError(f"matches must have ranks that rise, got {self.ranks}")
        if self.average_precision is not None and not 0 <= self.average_precision <= 1:
            raise ValueError(f"average_precision must be in [0, 1] or None, got {self.average_precision!r}")
        _check_number("camera", self.camera, least=0)

    @property
    def methods(self) -> list[str]:
        """Titles of the methods."""
        return self.matches[0].methods

    @property
    def ranks(self) -> list[int]:
        """Place of each match in the list, from 1."""
        return [place if match.rank is None else int(match.rank) for place, match in enumerate(self.matches, 1)]


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Queries with their most similar images, and why these are similar, as in Fig. 4b and 4c of the paper.

    Attributes:
        title: its heading.
        text: a sentence below the heading.
        queries: at least one, all with maps of the same methods in the same order.
        class_word: what makes a match right when it is the same: "class", or "identity" for persons.
        distance_name: what the distances are, such as "L1 distance".
        precision_name: what "AP" stands for on the page, such as "average precision" or "MAP@R of the query".
        shared_scale: whether the maps over one query by one method are divided by the largest value of them all, so
            that they can be compared, and not each by its own. Maps over a match are always divided by their own:
            other photographs have other features.

    Raises:
        ValueError: naming the field, where something is empty or queries differ in their methods.

    Example:
        >>> image, maps = np.zeros((64, 64, 3)), {"Dist-CAM": np.ones((8, 8))}
        >>> matches = [Match(image, "cat", 2.0, True, maps, maps)]
        >>> queries = [RetrievalQuery(image, "cat", matches, precision) for precision in (0.9, None, 0.2)]
        >>> retrieval = Retrieval("Test classes", "", queries)
        >>> retrieval.methods, retrieval.order
        (['Dist-CAM'], [2, 0, 1])
    """

    title: str
    text: str
    queries: Sequence[RetrievalQuery]
    class_word: str = "class"
    distance_name: str = "L1 distance"
    precision_name: str = "average precision"
    shared_scale: bool = True

    def __post_init__(self):
        if not len(self.queries):
            raise ValueError("queries must not be empty")
        for index, query in enumerate(self.queries):
            if query.methods != self.methods:
                raise ValueError(
                    f"queries must have maps of the same methods: got {self.methods}, and {query.methods} at index "
                    f"{index}"
                )
        for name in ("class_word", "distance_name", "precision_name"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")

    @property
    def methods(self) -> list[str]:
        """Titles of the methods, in the order in which they are offered."""
        return self.queries[0].methods

    @property
    def order(self) -> list[int]:
        """Positions in `queries`, in the order in which they are shown at first.

        Failures first: the smallest average precision on top, equal ones as they are given, and those without one at
        the end.
        """

        def place(index: int) -> tuple[bool, float]:
            precision = self.queries[index].average_precision
            return precision is None, float(precision or 0.0)

        return sorted(range(len(self.queries)), key=place)


def _check_number(name: str, value: Any, *, least: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if value is not None and not (whole and value >= least):
        raise ValueError(f"{name} must be a whole number from {least}, or None, got {value!r}")
