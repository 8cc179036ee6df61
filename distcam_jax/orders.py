"""Endless orders of a data set's images that come in groups, such as episodes or batches of certain classes.

What group number g holds follows from the seed and g alone, so that processes, workers and threads need not agree on
anything.
"""

import functools
import operator

import numpy as np
from jaxtyping import Int

_ENDLESS = 2**40  # positions; no training is as long


class GroupedOrder:
    """Base of the orders in which training reads the images of one group after the other.

    It is a sequence whose element p is the row of the image at place p modulo `size` of group p // size; see
    `distcam_jax.input_pipeline.Order`. A subclass tells the size, the rows of a group and its `identity`.
    """

    @property
    def size(self) -> int:
        """Images in a group."""
        raise NotImplementedError

    def rows_of(self, number: int) -> Int[np.ndarray, " m"]:
        """The rows of a group, in their order."""
        raise NotImplementedError

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> int:
        number, within = divmod(operator.index(index), self.size)
        return int(_newest_rows(self, number)[within])


@functools.lru_cache(maxsize=64)
def _newest_rows(order: GroupedOrder, number: int) -> np.ndarray:
    """Rows of a group; the newest are kept, as their images are asked for one by one."""
    return order.rows_of(number)


def rows_of_classes(labels: Int[np.ndarray, " n"], seed: int) -> dict[int, Int[np.ndarray, " m"]]:
    """The rows of each class's images, ascending.

    Args:
        labels: class of each image `[n]`, integers.
        seed: of the order.

    Returns:
        Class to rows, by ascending class.

    Raises:
        ValueError: labels that are no integers, or a seed below 0.

    Examples:
        >>> {label: rows.tolist() for label, rows in rows_of_classes(np.array([7, 5, 7]), 0).items()}
        {5: [1], 7: [0, 2]}
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: want integers [n], got {labels.dtype} of shape {labels.shape}")
    if seed < 0:
        raise ValueError(f"seed: want 0 or more, got {seed}")
    classes, counts = np.unique(labels, return_counts=True)
    rows = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    return dict(zip(classes.tolist(), rows, strict=True))
