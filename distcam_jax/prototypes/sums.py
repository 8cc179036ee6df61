"""Sums and counts of a stream's embeddings, class by class, on the host in float64.

A float32 holds 24 bits and a float64 53: what a class sum of n float32 embeddings loses is below `n · 2^-53` of the
sum of their magnitudes, far less than the last bit of the float32 prototype, for every n that a data set can have.
"""

import functools

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

_BLOCK_BYTES = 2**24  # what one process sends at once


class ClassSums:
    """Sums of embeddings and counts of samples, class by class.

    Rows are added one after the other, so that the sums depend on their order alone and not on the size of batches.

    Args:
        num_classes: classes c, at least 1.

    Attributes:
        sums: `[c, k]` in float64; None before the first embeddings.
        counts: samples of each class `[c]`.

    Raises:
        ValueError: when there is no class.

    Examples:
        >>> found = ClassSums(2)
        >>> found.add(np.array([[1.0, 2.0], [3.0, 6.0]], np.float32), np.array([1, 1]))
        >>> found.means().tolist(), found.counts.tolist()
        ([[0.0, 0.0], [2.0, 4.0]], [0, 2])
    """

    def __init__(self, num_classes: int):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.sums: np.ndarray | None = None
        self.counts = np.zeros(num_classes, np.int64)

    def add(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        """Adds embeddings `[n, k]` of any floating type to the sums of their classes `[n]`, each in [0, c)."""
        if self.sums is None:
            self.sums = np.zeros((len(self.counts), embeddings.shape[1]))
        elif embeddings.shape[1] != self.sums.shape[1]:
            raise ValueError(f"embeddings must have {self.sums.shape[1]} channels, got {embeddings.shape[1]}")
        # Several times as fast as np.add.at, which walks over single numbers; benchmarks/RESULTS.md has it.
        for embedding, label in zip(embeddings.astype(np.float64), labels.tolist(), strict=True):
            class_sum = self.sums[label]
            np.add(class_sum, embedding, out=class_sum)
        self.counts += np.bincount(labels, minlength=len(self.counts))

    def means(self) -> Float[np.ndarray, "c k"]:
        """Prototypes `[c, k]` in float32; zero for a class without samples.

        Raises:
            ValueError: when there is no sample at all.
        """
        if self.sums is None or not self.counts.any():
            raise ValueError("prototypes need at least one training image, got none")
        return (self.sums / np.maximum(self.counts, 1)[:, None]).astype(np.float32)


def sum_over_processes(own: ClassSums) -> ClassSums:
    """Sums and counts of all processes together, the same bits on each of them.

    Every process calls this. Float64 would arrive as float32, so its bits travel as whole numbers.

    Args:
        own: what this process has added up; every process has the same number of classes and channels.

    Returns:
        The total; `own` itself where there is one process.

    Examples:
        >>> own = ClassSums(2)
        >>> sum_over_processes(own) is own
        True
    """
    if jax.process_count() == 1:
        return own
    total = ClassSums(len(own.counts))
    total.counts = _gather(own.counts).sum(axis=0)
    if own.sums is not None:
        rows = max(1, _BLOCK_BYTES // own.sums[0].nbytes)
        blocks = [own.sums[first : first + rows] for first in range(0, len(own.sums), rows)]
        # In the order of the processes, so that each of them finds the same bits.
        total.sums = np.concatenate([functools.reduce(np.add, _gather(block)) for block in blocks])
    return total


def _gather(array: np.ndarray) -> np.ndarray:
    """The arrays `[processes, ...]` of all processes, bit by bit."""
    return from_bits(np.asarray(multihost_utils.process_allgather(to_bits(array))), array.dtype)


def to_bits(array: np.ndarray) -> np.ndarray:
    """An array of 8-byte numbers `[..., n]` as whole numbers of 4 bytes `[..., 2 n]`, which JAX takes as they are.

    Examples:
        >>> to_bits(np.array([1.0])).shape
        (2,)
    """
    return np.ascontiguousarray(array).view(np.uint32)


def from_bits(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What `to_bits` took apart.

    Examples:
        >>> from_bits(to_bits(np.array([0.1, -3.0])), np.dtype(np.float64)).tolist()
        [0.1, -3.0]
    """
    return np.ascontiguousarray(bits).view(dtype)


def local_rows(array: np.ndarray | jax.Array) -> np.ndarray:
    """This process's rows of an array, on the host; waits until they are computed.

    Args:
        array: a host array, or one on devices. Where other processes hold a part of it, it is split by rows only, as
            `jax.make_array_from_process_local_data` splits a batch.

    Returns:
        The rows, in the order in which this process gave them; all of them where there is one process.

    Raises:
        ValueError: when the array is split over processes along another axis too.

    Examples:
        >>> local_rows(np.ones((2, 3))).shape
        (2, 3)
    """
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    parts = {}  # by their first row, as every device of a further mesh axis holds a copy
    for shard in array.addressable_shards:
        if shard.data.shape[1:] != array.shape[1:]:
            raise ValueError(f"embeddings must be split over processes by rows only, got {array.sharding}")
        parts[shard.index[0].start or 0] = shard.data
    return np.concatenate([np.asarray(parts[first]) for first in sorted(parts)])
