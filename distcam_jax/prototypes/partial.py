"""What a pass over the training images has added up so far, kept in files so that a killed pass goes on."""

import json
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distcam_jax.checks import one_line
from distcam_jax.files import write_atomically
from distcam_jax.prototypes.sums import ClassSums

_FORMAT = "distcam_jax partial prototypes 1"
_KEPT = 4  # files of one process that are looked at; it has two at most, unless somebody copied more


class PartialSums:
    """Files beside a prototypes file with the sums of the batches that are done, one a process.

    Every process calls every method, at the same batches. A file is removed only once all processes have written the
    next one, so that there is always a batch from which all of them can go on, whenever they are killed.

    Args:
        path: of the prototypes file that the pass is for; `prototypes.safetensors` has partial files named
            `prototypes.partial-<process>-<batches>.safetensors`.
        belongs_to: plain values that JSON can hold and that decide the sums: the hash of the weights, preprocessing,
            batch size, number of images. Files with other values are dropped with a warning.
        every: batches between two files, at least 1.

    Raises:
        ValueError: when `every` is below 1.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     partial = PartialSums(f"{folder}/prototypes.safetensors", {"weights_hash": "ab12"})
        ...     sums, first = partial.restore(2)
        ...     sums.add(np.ones((1, 3), np.float32), np.array([1]))
        ...     partial.save(sums, 1)
        ...     again, following = partial.restore(2)
        ...     partial.remove()
        >>> first, following, again.counts.tolist()
        (0, 1, [0, 1])
    """

    def __init__(self, path: str | Path, belongs_to: dict, *, every: int = 100):
        if every < 1:
            raise ValueError(f"every must be at least 1 batch, got {every}")
        self.every = every
        self._folder, self._stem = Path(path).parent, f"{Path(path).stem}.partial-"
        self._own = f"{self._stem}{jax.process_index():05d}-"
        processes = [jax.process_index(), jax.process_count()]
        self._belongs_to = json.loads(json.dumps({**belongs_to, "process": processes}))

    def restore(self, num_classes: int) -> tuple[ClassSums, int]:
        """Reads the newest sums that all processes have.

        Args:
            num_classes: classes c.

        Returns:
            The sums and how many batches they are of; empty ones and 0 where the pass has to start anew.
        """
        found = {}
        for path in self._files(self._own):
            try:
                batches, sums = self._read(path, num_classes)
                found[batches] = sums
            except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
                logging.warning("dropping %s, which this pass cannot go on from: %s", path, one_line(error))
                path.unlink(missing_ok=True)
        newest = _newest_of_all(sorted(found))
        return (found[newest], newest) if newest else (ClassSums(num_classes), 0)

    def save(self, sums: ClassSums, batches: int) -> None:
        """Writes the sums of that many batches, whole or not at all, and removes what is older."""
        if sums.sums is None:
            raise ValueError("there is nothing to save before the first batch")
        metadata = {"format": _FORMAT, "belongs_to": json.dumps(self._belongs_to), "batches": str(batches)}
        arrays = {"sums": sums.sums, "counts": sums.counts}
        path = self._folder / f"{self._own}{batches:09d}.safetensors"
        write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{self._stem}{batches}")
        for older in self._files(self._own):
            if older != path:
                older.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the files of this pass, once `compute_prototypes` has ended; those of all processes on the first."""
        for path in self._files(self._own if jax.process_index() else self._stem):
            path.unlink(missing_ok=True)

    def _files(self, start: str) -> list[Path]:
        """The files in the folder whose names start so."""
        folder = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(path for path in folder if path.name.startswith(start) and path.suffix == ".safetensors")

    def _read(self, path: Path, num_classes: int) -> tuple[int, ClassSums]:
        """Reads a file; a ValueError or another error says why it does not fit."""
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, wanted {_FORMAT!r}")
            there = json.loads(metadata["belongs_to"])
            differ = [
                f"its {name} is {there.get(name)!r:.80}, here {self._belongs_to.get(name)!r:.80}"
                for name in sorted(there.keys() | self._belongs_to.keys())
                if there.get(name) != self._belongs_to.get(name)
            ]
            if differ:
                raise ValueError("; ".join(differ))
            read = ClassSums(num_classes)
            sums, counts = file.get_tensor("sums"), file.get_tensor("counts")
        if counts.shape != read.counts.shape or counts.dtype != np.int64:
            raise ValueError(f"its counts are {counts.dtype} of shape {counts.shape}, not of {num_classes} classes")
        if sums.ndim != 2 or len(sums) != num_classes or sums.dtype != np.float64:
            raise ValueError(f"its sums are {sums.dtype} of shape {sums.shape}, not of {num_classes} classes")
        read.sums, read.counts = np.array(sums), np.array(counts)  # what was read may not be writable
        return int(metadata["batches"]), read


def _newest_of_all(own: list[int]) -> int:
    """The largest number of batches, in ascending order here, that every process has a file of; 0 for none."""
    if jax.process_count() == 1:
        return own[-1] if own else 0
    padded = np.zeros(_KEPT, np.int32)
    padded[: len(own[-_KEPT:])] = own[-_KEPT:]
    return newest_common(np.asarray(multihost_utils.process_allgather(padded)))


def newest_common(batches: np.ndarray) -> int:
    """The largest number that stands in every row of `[processes, n]`; 0 for none.

    Examples:
        >>> newest_common(np.array([[100, 200], [100, 0]]))
        100
    """
    common = set.intersection(*(set(row.tolist()) for row in batches))
    return max(common, default=0)
