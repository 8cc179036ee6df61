"""What is searched for among what: the images of a retrieval or re-identification as the metrics see them."""

import dataclasses
import functools
from collections.abc import Sequence

import ml_collections
import numpy as np

from distcam_jax import training
from distcam_jax.datasets import Dataset
from distcam_jax.retrieval.metrics import relevant_counts


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A split of images.

    Attributes:
        data: the split.
        targets: what must be the same for a match to be right, person or class, as integers `[n]`.
        cameras: number of the camera of each `[n]`; zeros where classes are searched for, and not persons.
        names: of the targets, by their integers.
    """

    data: Dataset
    targets: np.ndarray
    cameras: np.ndarray
    names: dict[int, str]

    def name(self, row: int | np.integer) -> str:
        """Who or what an image shows."""
        return self.names[int(self.targets[row])]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Queries and the gallery.

    Attributes:
        query: the images that are searched with.
        gallery: the images that are searched, the queries themselves where alone.
        alone: whether every query is searched among the other queries, itself left out by its position.
        persons: whether persons are searched for, and images of the query's person by its camera taken out.
    """

    query: Images
    gallery: Images
    alone: bool
    persons: bool

    def camera(self, images: Images, row: int | np.integer) -> int | None:
        """The camera that took an image, or None where that does not count."""
        return int(images.cameras[row]) if self.persons else None

    @functools.cached_property
    def relevant(self) -> np.ndarray:
        """How many right images each query can find `[q]`."""
        found = relevant_counts(self.query.targets, None if self.alone else self.gallery.targets) - self._removed
        return np.where(self.query.targets == _DISTRACTOR, 0, found) if self.persons else found

    @functools.cached_property
    def candidates(self) -> np.ndarray:
        """How many images each query is searched among `[q]`."""
        return np.full(len(self.query.targets), len(self.gallery.targets) - self.alone) - self._removed

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """Rows of the queries that have a right image to find; the others are left out of every figure."""
        return np.flatnonzero(self.relevant)

    @property
    def word(self) -> str:
        """What makes a match right when it is the same."""
        return "identity" if self.persons else "class"

    @functools.cached_property
    def _removed(self) -> np.ndarray:
        """How many images the camera rule takes out of each query's list `[q]`."""
        if not self.persons:
            return np.zeros(len(self.query.targets), np.int64)
        query, gallery = (np.stack([one.targets, one.cameras], axis=1) for one in (self.query, self.gallery))
        _, codes = np.unique(np.concatenate([query, gallery]), axis=0, return_inverse=True)
        own, others = np.split(codes.ravel(), [len(query)])
        return relevant_counts(own, None if self.alone else others)

    def is_removed(self, rows: np.ndarray) -> np.ndarray:
        """Which images of the gallery the rules take out of the lists of some queries.

        Args:
            rows: of the queries `[r]`.

        Returns:
            `[r, g]`.
        """
        if self.persons:  # alone or not: a query is of its own person and camera
            same = self.query.targets[rows, None] == self.gallery.targets
            return same & (self.query.cameras[rows, None] == self.gallery.cameras)
        return self.alone & (rows[:, None] == np.arange(len(self.gallery.targets)))


def make_task(query: Dataset, gallery: Dataset | None) -> Task:
    """The task of two splits, or of one whose images are searched among each other.

    Args:
        query: the queries.
        gallery: what is searched; None: the queries, each without itself.

    Returns:
        The task. Persons are told by `identity` and `camera` of the examples, where both splits have them; else classes
        by what the data set calls them, as the labels of two splits may count from 0 each.

    Raises:
        ValueError: no query has anything to find.
    """
    splits = [query] if gallery is None else [query, gallery]
    persons = all(set(_PERSON) <= set(split.source[0]) for split in splits)
    fields = [_fields(split, _PERSON if persons else ("label",)) for split in splits]
    if persons:
        names = {int(one): f"{one:04d}" if one else "distractor" for found in fields for one in set(found["identity"])}
        sides = [
            Images(split, found["identity"], found["camera"], names)
            for split, found in zip(splits, fields, strict=True)
        ]
    else:
        codes = {one: code for code, one in enumerate(sorted({one for split in splits for one in split.class_ids}))}
        names = {
            codes[one]: name for split in splits for one, name in zip(split.class_ids, split.class_names, strict=True)
        }
        sides = [
            Images(split, np.array([codes[one] for one in split.class_ids])[label], np.zeros_like(label), names)
            for split, label in zip(splits, (found["label"] for found in fields), strict=True)
        ]
    task = Task(sides[0], sides[-1], alone=gallery is None, persons=persons)
    if not len(task.valid):
        raise ValueError(
            f"no image of {query.name}, split {query.split}, has another one of its {task.word} to find"
            + (" by another camera" if task.persons else "")
        )
    return task


def load_task(config: ml_collections.ConfigDict) -> Task:
    """The task that a configuration names.

    Args:
        config: `input.eval_split` are the queries, `input.gallery_split` what is searched, or "".

    Returns:
        See `make_task`.

    Raises:
        ValueError: as there, or a split is unknown.
    """
    gallery = training.load_split(config, "gallery") if config.input.gallery_split else None
    return make_task(training.load_split(config, "eval"), gallery)


_PERSON = ("identity", "camera")
_DISTRACTOR = 0  # the number of no person, which has none to find


def _fields(data: Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Whole numbers that the examples of a split hold `[n]`, by their names; no image is decoded."""
    examples = (data.source[index] for index in range(len(data.source)))
    rows = [[int(example[name]) for name in names] for example in examples]
    return dict(zip(names, np.array(rows).T, strict=True))
