"""Episodes of few-shot learning: which images of a data set are the supports and queries of a small task.

An episode of n ways, s shots and q queries draws n classes and of each s + q different images. What episode number e
holds follows from the seed and e alone.
"""

import operator

import numpy as np
from jaxtyping import Int

from distcam_jax.checks import check_positive_integers
from distcam_jax.orders import GroupedOrder, rows_of_classes


class EpisodeSampler(GroupedOrder):
    """Draws episodes from the labels of a data set.

    It is also the endless order in which training reads the images of one episode after the other; see
    `make_train_iterator`.

    Args:
        labels: class of each image `[n]`, integers.
        ways: classes in an episode.
        shots: supports of each class.
        queries: queries of each class.
        seed: non-negative; another one draws other episodes.

    Attributes:
        ways: as given.
        shots: as given.
        queries: as given.
        size: images in an episode, `ways * (shots + queries)`.

    Raises:
        ValueError: a count below 1, labels that are no integers, fewer classes than ways, or a class with fewer images
            than an episode takes of it; names the class.

    Examples:
        >>> sampler = EpisodeSampler(np.repeat([7, 8, 9], 4), ways=2, shots=1, queries=2, seed=0)
        >>> classes, rows = sampler.episode(0)
        >>> classes.shape, rows.shape
        ((2,), (2, 3))
        >>> sampler.size, [sampler[place] for place in range(6)] == rows.ravel().tolist()
        (6, True)
    """

    def __init__(self, labels: Int[np.ndarray, " n"], *, ways: int, shots: int, queries: int, seed: int = 0):
        check_positive_integers(ways=ways, shots=shots, queries=queries)
        rows = rows_of_classes(labels, seed)
        self.ways, self.shots, self.queries, self.seed = ways, shots, queries, seed
        needed = shots + queries
        for label, own in rows.items():
            if len(own) < needed:
                raise ValueError(
                    f"class {label} has {len(own)} images, and an episode takes {needed} of each class ({shots} shots, "
                    f"{queries} queries): ask for fewer, or leave the class out"
                )
        if len(rows) < ways:
            raise ValueError(f"ways: want at most the {len(rows)} classes that there are, got {ways}")
        self.classes, self._rows = np.array(list(rows)), list(rows.values())

    @property
    def size(self) -> int:
        """Images in an episode."""
        return self.ways * (self.shots + self.queries)

    def episode(self, number: int) -> tuple[Int[np.ndarray, " w"], Int[np.ndarray, "w m"]]:
        """One episode.

        Args:
            number: which one, from 0.

        Returns:
            Its classes `[ways]`, in a random order, and for each the rows of its images `[ways, shots + queries]`, all
            different: first the supports, then the queries.
        """
        generator = np.random.default_rng([self.seed, operator.index(number)])
        chosen = generator.choice(len(self.classes), self.ways, replace=False)
        taken = self.shots + self.queries
        rows = [generator.choice(self._rows[place], taken, replace=False) for place in chosen]
        return self.classes[chosen], np.stack(rows)

    def episodes(
        self, count: int, *, start: int = 0
    ) -> tuple[Int[np.ndarray, "e w"], Int[np.ndarray, "e w s"], Int[np.ndarray, "e w q"]]:
        """Many episodes, to be evaluated on cached embeddings.

        Args:
            count: how many e, at least 1.
            start: number of the first.

        Returns:
            Classes `[e, ways]`, rows of the supports `[e, ways, shots]` and of the queries `[e, ways, queries]`.
        """
        check_positive_integers(count=count)
        classes, rows = zip(*(self.episode(number) for number in range(start, start + count)), strict=True)
        rows = np.stack(rows)
        return np.stack(classes), rows[..., : self.shots], rows[..., self.shots :]

    @property
    def identity(self) -> dict[str, int]:
        """What the order of the images rests on, besides seed and source."""
        return {"ways": self.ways, "shots": self.shots, "queries": self.queries}

    def rows_of(self, number: int) -> Int[np.ndarray, " m"]:
        """The rows of an episode, class by class."""
        return self.episode(number)[1].ravel()

    def __repr__(self) -> str:  # Grain compares it when an iterator is restored
        counts = f"ways={self.ways}, shots={self.shots}, queries={self.queries}"
        return f"EpisodeSampler({len(self.classes)} classes, {counts}, seed={self.seed})"
