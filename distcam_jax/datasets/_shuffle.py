"""tensorflow-datasets' shuffling of more than 1 GB, without TensorFlow.

Examples are stored in the order of their keys' hashes. Up to 1 GB is sorted in memory; beyond, the examples go to 1,000
temporary files by the first digits of the hash, and each of these is then read, sorted and deleted. The library writes
the files with TensorFlow's functions and holds all 1,000 open, as many as a process may have on most systems.
"""

import contextlib
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

from tensorflow_datasets.core import shuffle

_HEAD = struct.Struct("=16sQ")  # hash of the key, number of bytes


@contextlib.contextmanager
def plain_files() -> Iterator[None]:
    """Lets the library shuffle with plain files while the context lasts."""
    library: Any = shuffle
    library_class = library._Bucket
    library._Bucket = _Bucket
    try:
        yield
    finally:
        library._Bucket = library_class


class _Bucket:
    """One temporary file of examples, with the methods that the library's `Shuffler` calls; open only while written."""

    def __init__(self, path: os.PathLike[str]):
        self._path = pathlib.Path(path)
        self._length = 0
        self.size = 0

    def __len__(self) -> int:
        return self._length

    def add(self, key: int, data: bytes) -> None:
        """Appends an example."""
        with open(self._path, "ab") as file:
            file.write(_HEAD.pack(key.to_bytes(16, "big"), len(data)) + data)
        self._length += 1
        self.size += len(data)

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        """Reads the examples in the order in which they came."""
        if not self._length:
            return
        with open(self._path, "rb") as file:
            while head := file.read(_HEAD.size):
                key, size = _HEAD.unpack(head)
                yield int.from_bytes(key, "big"), file.read(size)

    def del_file(self) -> None:
        """Deletes the file where it exists."""
        self._path.unlink(missing_ok=True)
