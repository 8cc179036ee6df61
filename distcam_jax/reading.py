"""Runs a dataset of batches in threads or in worker processes, which end when they should and not before.

A terminal and Slurm signal the workers of a process too; it is for that process to say when they are not needed.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import cv2
import grain
from absl import flags

from distcam_jax.checks import one_line

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Reader:
    """How batches are read.

    Args:
      num_workers: worker processes; 0 reads in threads of this process.
      num_threads: reading threads where there are no workers; 0 reads in the caller's thread.
      prefetch: batches that are prepared ahead, per worker.
    """

    def __init__(self, num_workers: int, num_threads: int, prefetch: int):
        self._workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
        threads = 0 if num_workers else num_threads
        self._threads = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))

    def iterate(self, batches: grain.MapDataset) -> "Running":
        """Starts to go through a dataset. Workers take whole batches in turn, so a batch is the same for any number."""
        cv2.setNumThreads(1)
        if self._workers.num_workers and not flags.FLAGS.is_parsed():  # Grain reads its flags when it starts workers
            flags.FLAGS.mark_as_parsed()
        dataset = batches.to_iter_dataset(self._threads).mp_prefetch(self._workers, worker_init_fn=_start_worker)
        return Running(iter(dataset), has_workers=self._workers.num_workers > 0)


class Running(Iterator):
    """An iteration that is under way; made by `Reader.iterate`."""

    def __init__(self, iterator: grain.DatasetIterator, *, has_workers: bool):
        self._iterator = iterator
        self._starts_workers = has_workers

    def __next__(self) -> Any:
        """Returns the next batch; an OSError where a worker process is gone."""
        with self._starting():
            batch = _next(self._iterator)
        self._starts_workers = False
        return batch

    def start_prefetch(self) -> None:
        """Starts to prepare batches in the background."""
        with self._starting():
            self._iterator.start_prefetch()

    def close(self) -> None:
        """Ends threads and worker processes."""
        self._iterator.close()

    def _starting(self) -> contextlib.AbstractContextManager[None]:
        """For what may start worker processes; those that Grain has not started ahead, the first batch does."""
        return _signals_held_back() if self._starts_workers else contextlib.nullcontext()


def _next(iterator: grain.DatasetIterator) -> Any:
    try:
        return next(iterator)
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise OSError(
            f"a process that reads images has ended ({one_line(error)}), as one does that is killed for its memory; "
            "lower input.num_workers"
        ) from error


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes that are started here never receive SIGINT and SIGTERM; this one does, as soon as it is over."""
    resource_tracker.ensure_running()  # which would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Prepares a worker process, in which nobody has parsed the command line: flags there have their defaults."""
    del worker_index, worker_count
    flags.FLAGS.mark_as_parsed()
    cv2.setNumThreads(1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker process whose parent is gone, killed perhaps, and could not end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
