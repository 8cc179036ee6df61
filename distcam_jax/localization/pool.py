"""Boxes found by threads while the caller goes on."""

import concurrent.futures
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Num

from distcam_jax.checks import check_positive_integers
from distcam_jax.localization.protocols import Protocol
from distcam_jax.localization.scores import LocalizationScores, evaluate_boxes


class BoxPool:
    """Evaluates batches of heatmaps in threads, so that the device computes on meanwhile.

    OpenCV works outside Python's lock, and a worker is also who waits for the maps of a device. Use it as a context;
    its threads end with it. Leaving it waits for what was handed over; an error on the way out drops what has not
    begun.

    Args:
        workers: threads; None takes one a processor, at most 4.
        pending: calls that may be unfinished, each of which keeps its heatmaps in memory. None takes twice the workers.

    Raises:
        ValueError: for workers or pending below 1.

    Examples:
        >>> heatmaps = np.array([[[0.0, 1.0], [0.0, 1.0]]])
        >>> with BoxPool(workers=2) as pool:
        ...     batches = [pool.submit(heatmaps, [np.array([[20, 0, 40, 30]])], np.array([[40, 30]])) for _ in range(3)]
        >>> [scores.result().max_box_acc for scores in batches]
        [1.0, 1.0, 1.0]
    """

    def __init__(self, workers: int | None = None, *, pending: int | None = None):
        workers = min(4, os.cpu_count() or 1) if workers is None else workers
        pending = 2 * workers if pending is None else pending
        check_positive_integers(workers=workers, pending=pending)
        self._free = threading.BoundedSemaphore(pending)
        self._executor = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="boxes")

    def submit(
        self,
        heatmaps: Float[Array | np.ndarray, "n h w"],
        boxes: Sequence[Any] | Num[Array | np.ndarray, "n m 4"],
        image_sizes: Num[Array | np.ndarray, "n 2"],
        protocol: str | Protocol = "ilsvrc",
    ) -> concurrent.futures.Future[LocalizationScores]:
        """Hands a batch over, after waiting for a free place if too many are pending.

        Args:
            heatmaps: as in `evaluate_boxes`; arrays of a device may still be in the making, those of the host must stay
                as they are until the result is there.
            boxes: as in `evaluate_boxes`.
            image_sizes: as in `evaluate_boxes`.
            protocol: as in `evaluate_boxes`.

        Returns:
            What will hold the scores: `.result()` waits for them, or raises what `evaluate_boxes` raised.
        """
        self._free.acquire()
        try:
            future = self._executor.submit(evaluate_boxes, heatmaps, boxes, image_sizes, protocol)
        except BaseException:
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return future

    def __enter__(self) -> "BoxPool":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        self._executor.shutdown(wait=True, cancel_futures=error_type is not None)
