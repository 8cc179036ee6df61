"""Few-shot episodes as a page shows them: a few support images a class, and queries against the prototypes of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Num, Shaped

Image = Shaped[Array | np.ndarray, "_ _ 3"]
Heatmap = Shaped[Array | np.ndarray, "_ _"]
Maps = Shaped[Array | np.ndarray, "_ _ _"] | Sequence[Heatmap]


@dataclass(frozen=True, eq=False)
class EpisodeQuery:
    """One query of an episode, against the prototype of each class.

    Attributes:
        image: uint8, or floats in [0, 1].
        heatmaps: for each method, under its title, one map a class `[ways, h, w]`; values of any range.
        scores: of the query for each class `[ways]`, such as its distances, by which the class was chosen; finite.
        predicted: position of the chosen class, from 0.
        true: position of the true class.
        file_name: or another name for the image.

    Raises:
        ValueError: naming the field, for a wrong shape, scores that are not finite, or a position that is no class.

    Example:
        >>> query = EpisodeQuery(np.zeros((84, 84, 3)), {"Dist-CAM": np.ones((3, 5, 5))}, [7.0, 2.0, 4.5], 1, true=2)
        >>> query.correct, query.gap
        (False, 2.5)
    """

    image: Image
    heatmaps: Mapping[str, Maps]
    scores: Sequence[Any] | Num[Array | np.ndarray, "_"]
    predicted: int
    true: int
    file_name: str = ""

    def __post_init__(self):
        _check_image("image", self.image)
        scores = np.asarray(self.scores, np.float64)
        if scores.ndim != 1 or not scores.size:
            raise ValueError(f"scores must be [ways] and not empty, got shape {scores.shape}")
        if not np.isfinite(scores).all():
            raise ValueError(f"scores must be finite, got {scores.tolist()}")
        for name in ("predicted", "true"):
            position = getattr(self, name)
            if not isinstance(position, int | np.integer) or not 0 <= position < len(scores):
                raise ValueError(f"{name} must be a position of the {len(scores)} scores, got {position!r}")
        if not self.heatmaps:
            raise ValueError("heatmaps must hold the maps of at least one method")
        for method, maps in self.heatmaps.items():
            if len(maps) != len(scores):
                raise ValueError(f"heatmaps[{method!r}] must be one a class: got {len(maps)} for {len(scores)} scores")
            for heatmap in maps:
                _check_map(f"heatmaps[{method!r}]", heatmap)

    @property
    def correct(self) -> bool:
        """Whether the true class was chosen."""
        return self.predicted == self.true

    @property
    def gap(self) -> float:
        """How narrow the decision was, as a difference of two scores that is not negative.

        Of the chosen class and, where it is wrong, the true class; where it is right, the class whose score comes
        nearest, and 0 without a second class.
        """
        scores = np.asarray(self.scores, np.float64)
        gaps = np.abs(scores - scores[self.predicted])
        return float(min(np.delete(gaps, self.predicted), default=0.0) if self.correct else gaps[self.true])


@dataclass(frozen=True, eq=False)
class Episode:
    """One few-shot episode, as in Fig. 4a of the paper: the support images of each class, and queries below them.

    Attributes:
        title: its heading.
        text: a sentence below the heading.
        class_names: the columns; ways of them.
        supports: for each class its support images, at least one.
        queries: of the episode, each with maps of the same methods in the same order.
        score_name: what the scores are, such as "L1 distance" or "cosine".
        shared_scale: whether the maps of a query by one method are divided by the largest value of them all, so that
            they can be compared, and not each by its own.
        support_heatmaps: for each method, under its title, a map `[h, w]` of every support image for its own class, as
            `supports` lists them; each is divided by its own maximum.
        max_queries: how many queries are shown at most, the first of `order`; all count.
        counts: how many queries of the episode are wrong, and how many there are, where `queries` holds only some of
            them; counted from `queries` where None.

    Raises:
        ValueError: naming the field, where lengths do not fit, something is empty, or queries differ in their methods.

    Example:
        >>> image = np.zeros((84, 84, 3))
        >>> queries = [EpisodeQuery(image, {"Dist-CAM": np.ones((2, 5, 5))}, [3.0, 5.0], 0, true) for true in (0, 1)]
        >>> episode = Episode("Episode 0", "", ["cat", "dog"], [[image], [image]], queries)
        >>> episode.methods, episode.wrong, episode.total, episode.order
        (['Dist-CAM'], 1, 2, [1, 0])
    """

    title: str
    text: str
    class_names: Sequence[str]
    supports: Sequence[Sequence[Image] | Shaped[np.ndarray, "_ _ _ 3"]] | Shaped[np.ndarray, "_ _ _ _ 3"]
    queries: Sequence[EpisodeQuery]
    score_name: str = "L1 distance"
    shared_scale: bool = True
    support_heatmaps: Mapping[str, Sequence[Maps] | Shaped[np.ndarray, "_ _ _ _"]] | None = None
    max_queries: int = 15
    counts: tuple[int, int] | None = None

    def __post_init__(self):
        ways = len(self.class_names)
        if isinstance(self.class_names, str) or not ways:
            raise ValueError(f"class_names must be at least one name, got {self.class_names!r}")
        if not self.score_name:
            raise ValueError("score_name must not be empty")
        if self.max_queries < 1:
            raise ValueError(f"max_queries must be at least 1, got {self.max_queries}")
        if len(self.supports) != ways:
            raise ValueError(
                f"supports must be one list of images a class: got {len(self.supports)} for {ways} classes"
            )
        for name, images in zip(self.class_names, self.supports, strict=True):
            if not len(images):
                raise ValueError(f"supports of class {name!r} must be at least one image")
            for image in images:
                _check_image(f"supports of class {name!r}", image)
        self._check_queries(ways)
        self._check_support_heatmaps(ways)

    def _check_queries(self, ways: int) -> None:
        if not len(self.queries):
            raise ValueError("queries must not be empty")
        for index, query in enumerate(self.queries):
            if len(query.scores) != ways:
                raise ValueError(f"queries[{index}] must have one score a class: got {len(query.scores)} for {ways}")
            if list(query.heatmaps) != self.methods:
                raise ValueError(
                    f"queries must have maps of the same methods: got {self.methods}, and {list(query.heatmaps)} at "
                    f"index {index}"
                )
        wrong, right = self.wrong, self.total - self.wrong
        given = sum(not query.correct for query in self.queries)
        if wrong < given or right < len(self.queries) - given:
            raise ValueError(
                f"counts must be the wrong and all queries of the episode: got {self.counts} for {len(self.queries)} "
                f"queries, {given} of them wrong"
            )

    def _check_support_heatmaps(self, ways: int) -> None:
        wanted = [len(images) for images in self.supports]
        for method, maps in (self.support_heatmaps or {}).items():
            got = [len(of_class) for of_class in maps]
            if got != wanted:
                raise ValueError(
                    f"support_heatmaps[{method!r}] must be one map a support image: got {got} for {wanted} images of "
                    f"{ways} classes"
                )
            for of_class in maps:
                for heatmap in of_class:
                    _check_map(f"support_heatmaps[{method!r}]", heatmap)

    @property
    def methods(self) -> list[str]:
        """Titles of the methods, in the order of the rows."""
        return list(self.queries[0].heatmaps)

    @property
    def wrong(self) -> int:
        """How many queries of the episode were given to a class that is not theirs."""
        return sum(not query.correct for query in self.queries) if self.counts is None else self.counts[0]

    @property
    def total(self) -> int:
        """How many queries the episode has."""
        return len(self.queries) if self.counts is None else self.counts[1]

    @property
    def order(self) -> list[int]:
        """Positions in `queries`, in the order in which they are shown.

        Failures first; within the wrong and the right ones the narrowest decision first (see `EpisodeQuery.gap`), and
        equal ones as they are given.
        """
        return sorted(
            range(len(self.queries)), key=lambda index: (self.queries[index].correct, self.queries[index].gap)
        )


def _check_image(name: str, image: Any) -> None:
    shape = np.shape(image)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"{name} must be [h, w, 3] and not empty, got shape {shape}")


def _check_map(name: str, heatmap: Any) -> None:
    shape = np.shape(heatmap)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} must be maps [h, w] and not empty, got shape {shape}")
