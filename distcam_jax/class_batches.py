"""Batches of P classes with K images each, for losses that compare the samples of a batch with one another."""

import operator

import numpy as np
from jaxtyping import Int

from distcam_jax.checks import check_positive_integers
from distcam_jax.orders import GroupedOrder, rows_of_classes


class ClassBatchSampler(GroupedOrder):
    """The endless order in which training reads P classes with K images each, one batch after the other.

    It goes through the classes in rounds. A round is a fresh permutation of all classes, cut into batches of P; in
    every round a class gives its next K images, of a permutation of its own that is drawn anew when fewer than K are
    left. A class with fewer than K images repeats them. Where P does not divide the number of classes, the last batch
    of a round is filled up with classes that the round has had, and random images of theirs.

    Args:
        labels: class of each image `[n]`, integers.
        classes: classes in a batch, P.
        images: images of each, K.
        seed: non-negative; another one draws other batches.

    Attributes:
        size: images in a batch, `classes * images`.

    Raises:
        ValueError: a count below 1, labels that are no integers, or fewer classes than a batch takes.

    Examples:
        >>> labels = np.repeat([7, 8, 9], 4)
        >>> sampler = ClassBatchSampler(labels, classes=2, images=3, seed=0)
        >>> rows = sampler.batch(0)
        >>> rows.shape, [len(set(labels[of_class].tolist())) for of_class in rows]
        ((2, 3), [1, 1])
        >>> [sampler[place] for place in range(6)] == rows.ravel().tolist()
        True

    References:
        Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", arXiv:1703.07737, 2017.
    """

    def __init__(self, labels: Int[np.ndarray, " n"], *, classes: int, images: int, seed: int = 0):
        check_positive_integers(classes=classes, images=images)
        rows = rows_of_classes(labels, seed)
        if len(rows) < classes:
            raise ValueError(f"classes: want at most the {len(rows)} that there are, got {classes}")
        self.classes, self.images, self.seed = classes, images, seed
        self._rows = list(rows.values())

    @property
    def size(self) -> int:
        """Images in a batch."""
        return self.classes * self.images

    def batch(self, number: int) -> Int[np.ndarray, "p k"]:
        """The rows of one batch.

        Args:
            number: which one, from 0.

        Returns:
            Rows of the images `[classes, images]`, all of a line of one class.
        """
        turn, within = divmod(operator.index(number), -(-len(self._rows) // self.classes))
        order = np.random.default_rng([self.seed, 0, turn]).permutation(len(self._rows)).tolist()
        first = min(within * self.classes, len(order) - self.classes)
        again = order[first : within * self.classes]
        fresh = order[within * self.classes : first + self.classes]
        generator = np.random.default_rng([self.seed, 2, turn])
        rows = [np.resize(generator.permutation(self._rows[place]), self.images) for place in again]
        return np.stack(rows + [self._images_of(place, turn) for place in fresh])

    def _images_of(self, place: int, turn: int) -> np.ndarray:
        """The K images that a class gives in a round."""
        rows = self._rows[place]
        permutation, chunk = divmod(turn, max(1, len(rows) // self.images))
        order = np.random.default_rng([self.seed, 1, place, permutation]).permutation(rows)
        return np.resize(order[chunk * self.images :], self.images)  # repeats them where there are fewer

    @property
    def identity(self) -> dict[str, int]:
        """What the order of the images rests on, besides seed and source."""
        return {"classes": self.classes, "images": self.images}

    def rows_of(self, number: int) -> Int[np.ndarray, " m"]:
        """The rows of a batch, class by class."""
        return self.batch(number).ravel()

    def __repr__(self) -> str:  # Grain compares it when an iterator is restored
        counts = f"classes={self.classes}, images={self.images}"
        return f"ClassBatchSampler({len(self._rows)} classes, {counts}, seed={self.seed})"
