"""The input pipeline on Grain: decode, augment, shuffle, shard and batch images on the host.

It takes any source with a length and random access that can be pickled; see `Source` for what an example holds.
Images come out as float32 in [0, 1], NHWC; they are normalised on the device. They travel as uint8 until the last
step, so that worker processes hand over a quarter of the bytes.

Worker processes are spawned: a script that asks for them runs its work under `if __name__ == "__main__":`. Decoding
and resizing let go of Python's lock, so that threads (`num_workers=0`) keep a few cores busy without any process.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from distcam_jax.augmentations import augment, check_augmentation
from distcam_jax.class_batches import ClassBatchSampler
from distcam_jax.decoding import Part, Rows, Source, decode_image, read_example, read_labels
from distcam_jax.episodes import EpisodeSampler
from distcam_jax.geometry import (
    center_crop,
    check_size,
    flip_horizontal,
    pad_and_crop,
    random_resized_crop,
    resize_image,
)
from distcam_jax.reading import Reader, Running

__all__ = [
    "ClassBatchSampler",
    "EpisodeSampler",
    "EvalBatches",
    "Order",
    "Part",
    "Rows",
    "Source",
    "TrainIterator",
    "center_crop",
    "decode_image",
    "flip_horizontal",
    "make_eval_batches",
    "make_train_iterator",
    "pad_and_crop",
    "random_resized_crop",
    "read_labels",
    "resize_image",
]

JAX_ALIGNMENT = 64  # bytes
EVAL_RESIZES = {"straight": resize_image, "center_crop": center_crop}

Batch = dict[str, np.ndarray]
Example = dict[str, Any]


@runtime_checkable
class Order(Protocol):
    """An endless order of a source's rows, in an object that can be pickled, such as `ClassBatchSampler`.

    Attributes:
      identity: what it rests on besides seed and source, as integers by name.
    """

    @property
    def identity(self) -> Mapping[str, int]:
        """What it rests on."""
        ...

    def __len__(self) -> int:
        """Returns a number that no training reaches."""
        ...

    def __getitem__(self, index: int) -> int:
        """Returns the row at a place."""
        ...


def make_train_iterator(
    source: Source,
    *,
    batch_size: int,
    image_size: int | tuple[int, int],
    seed: int,
    augmentation: Mapping[str, Any] | None,
    order: Order | None = None,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
    num_threads: int = 2,
) -> "TrainIterator":
    """Makes the endless iterator of training batches.

    Every epoch is a fresh permutation of the whole source; batches run on across its end, so that no example is left
    out and a batch may be larger than the source. Process p of n takes rows `p * batch_size` to
    `(p + 1) * batch_size` of every global batch: the global batches of n processes are, bit by bit, those of one
    process with `n * batch_size`. What a batch holds follows from the seed alone, whatever the numbers of workers and
    threads.

    Sets OpenCV to one thread of its own in this process and in the workers: the parallelism is one batch a thread.

    Args:
      source: the examples, see `Source`.
      batch_size: examples in a batch **of this process**.
      image_size: side of the square, or height and width, in pixels.
      seed: non-negative; decides order and augmentation.
      augmentation: plain values such as `dict(kind="random_resized_crop", scale=(0.35, 1.0), flip=True)`, with colour
        jitter and random erasing where wanted, see `distcam_jax.augmentations.augment`; None resizes straight.
      order: the rows in the order in which they are read, such as an `EpisodeSampler` or a
        `ClassBatchSampler`; None is the permutations above.
      num_workers: worker processes; 0 reads in threads of this process.
      process_index: this process's number among those that train together.
      process_count: how many processes train together.
      prefetch: batches that are prepared ahead, per worker.
      num_threads: reading threads where there are no workers; 0 reads in the caller's thread.

    Returns:
      An iterator of dicts: `image` float32 `[b, h, w, 3]` in [0, 1], `label` int32 `[b]`, `index` int32 `[b]`, the
      position in the source. Its state is a dict of integers, see `TrainIterator`.

    Raises:
      ValueError: a bad argument or an empty source; from `next`, an example that cannot be read, named by its file.

    Examples:
      >>> import cv2
      >>> encoded = cv2.imencode(".png", np.full((8, 8, 3), 255, np.uint8))[1].tobytes()
      >>> source = [{"image": encoded, "label": i, "file_name": f"{i}.png"} for i in range(3)]
      >>> batches = make_train_iterator(source, batch_size=3, image_size=4, seed=0, augmentation=None)
      >>> batch = next(batches)
      >>> batch["image"].shape, sorted(batch["index"].tolist())
      ((3, 4, 4, 3), [0, 1, 2])
      >>> batches.get_state()["next_batch"]
      1
      >>> batches.close()
    """
    _check_source(source, batch_size, num_workers, process_index, process_count, prefetch, num_threads)
    _check_integer("seed", seed, 0)
    size = check_size(image_size)
    options = None if augmentation is None else check_augmentation(augmentation)
    # The seeds are given out here and not by Grain's own `.seed`, which would change the order of the data whenever
    # the number of steps before the shuffle changes.
    shuffle_seed, augment_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    read = functools.partial(_read_train_example, source=source, size=size, augmentation=options)
    rows = grain.MapDataset.range(len(source)).shuffle(seed=shuffle_seed).repeat()
    if order is not None:
        rows = grain.MapDataset.source(order)
    # Without `drop_remainder` Grain rounds the length of the endless stream up, beyond what an index can hold.
    batches = rows.random_map(read, seed=augment_seed).batch(batch_size, drop_remainder=True)
    batches = batches[process_index::process_count]
    identity = {"seed": int(seed), "num_examples": len(source), "global_batch_size": batch_size * process_count}
    identity |= {} if order is None else order.identity
    return TrainIterator(Reader(num_workers, num_threads, prefetch), batches, identity)


class TrainIterator(grain.DatasetIterator):
    """Endless training batches whose position can be saved and restored; made by `make_train_iterator`.

    The state is a dict of integers (`next_batch`, `seed`, `num_examples`, `global_batch_size`, and what an order of its
    own rests on): it can be written as JSON, is the same on every process, and may be restored with another number of
    workers or threads, or of processes if the global batch stays the same. Grain's checkpoint handler takes the
    iterator as it is.
    """

    def __init__(self, reader: Reader, batches: grain.MapDataset, identity: dict[str, int]):
        super().__init__()
        self._reader = reader
        self._batches = batches
        self._identity = identity
        self._next_batch = 0
        self._running: Running | None = None
        self._is_closed = False

    def __next__(self) -> Batch:
        """Returns the next batch; after an error, the iterator stands before the batch that failed."""
        self.start_prefetch()
        assert self._running is not None
        try:
            batch = next(self._running)
        except BaseException:
            self._stop()
            raise
        self._next_batch += 1
        return _finish(batch)

    def get_state(self) -> dict[str, int]:
        """Returns where the iterator stands and what its order rests on."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes to a saved position.

        Args:
          state: what `get_state` returned.

        Raises:
          ValueError: the state belongs to another seed, source or batch size, so that its position means other data.
        """
        expected = {"next_batch", *self._identity}
        if set(state) != expected:
            raise ValueError(f"state must hold {sorted(expected)}, got {sorted(state)}")
        differing = [f"{k} {state[k]} (here {v})" for k, v in self._identity.items() if int(state[k]) != v]
        if differing:
            raise ValueError(f"the saved state was taken with another {', '.join(differing)}: use the saved values")
        self._stop()
        self._next_batch = int(state["next_batch"])

    def start_prefetch(self) -> None:
        """Starts to prepare batches in the background."""
        if self._is_closed:
            raise ValueError(f"{self} is closed: make another one and restore the state")
        if self._running is None:
            self._running = self._reader.iterate(self._batches.slice(slice(self._next_batch, None)))
            self._running.start_prefetch()

    def close(self) -> None:
        """Ends threads and worker processes."""
        self._stop()
        self._is_closed = True
        super().close()

    def __str__(self) -> str:
        return f"TrainIterator(next_batch={self._next_batch})"

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


def make_eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int | tuple[int, int],
    resize: str = "straight",
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
    num_threads: int = 2,
    max_boxes: int | None = None,
) -> "EvalBatches":
    """Makes the batches of one pass over the source, in its order.

    The source is padded to whole global batches; rows of padding are zeros with `mask` False. Process p of n takes
    rows `p * batch_size` to `(p + 1) * batch_size` of every global batch, so that all processes have the same number of
    batches. Sets OpenCV to one thread of its own, as `make_train_iterator` does.

    Args:
      source: the examples, see `Source`.
      batch_size: examples in a batch **of this process**.
      image_size: side of the square, or height and width, in pixels.
      resize: `"straight"` (aspect not kept, the whole image is seen) or `"center_crop"` (aspect kept, 7/8 of the
        shorter side is seen). A heatmap can be compared with the boxes only after the straight resize: the boxes stay
        in pixels of the original, and the crop does not show all of it.
      num_workers: worker processes; 0 reads in threads of this process.
      process_index: this process's number among those that evaluate together.
      process_count: how many processes evaluate together.
      prefetch: batches that are prepared ahead, per worker.
      num_threads: reading threads where there are no workers; 0 reads in the caller's thread.
      max_boxes: rows of `boxes`; None takes the largest number of boxes in each batch.

    Returns:
      An iterable with a length, which can be gone through again. Its batches are dicts: `image` float32 `[b, h, w, 3]`
      in [0, 1], `label` int32 `[b]`, `index` int32 `[b]` (position in the source), `mask` bool `[b]`, `image_size`
      int32 `[b, 2]` (width, height of the original), `boxes` float32 `[b, max_boxes, 4]` (pixels of the original,
      exclusive end, zeros after the last), `num_boxes` int32 `[b]`.

    Raises:
      ValueError: a bad argument or an empty source; while iterating, an example that cannot be read, or one with more
        boxes than `max_boxes`, named by its file.

    Examples:
      >>> import cv2
      >>> encoded = cv2.imencode(".png", np.full((6, 8, 3), 255, np.uint8))[1].tobytes()
      >>> source = [{"image": encoded, "label": i, "file_name": f"{i}.png"} for i in range(3)]
      >>> batches = make_eval_batches(source, batch_size=2, image_size=4)
      >>> len(batches), [batch["mask"].tolist() for batch in batches]
      (2, [[True, True], [True, False]])
    """
    _check_source(source, batch_size, num_workers, process_index, process_count, prefetch, num_threads)
    size = check_size(image_size)
    if resize not in EVAL_RESIZES:
        raise ValueError(f"resize must be one of {sorted(EVAL_RESIZES)}, got {resize!r}")
    if max_boxes is not None:
        _check_integer("max_boxes", max_boxes, 0)
    num_batches = -(-len(source) // (batch_size * process_count))
    read = functools.partial(_read_eval_example, source=source, size=size, resize=resize, max_boxes=max_boxes)
    collate = functools.partial(_collate_eval, max_boxes=max_boxes)
    positions = grain.MapDataset.range(num_batches * process_count * batch_size)
    batches = positions.map(read).batch(batch_size, batch_fn=collate)[process_index::process_count]
    return EvalBatches(Reader(min(num_workers, num_batches), num_threads, prefetch), batches)


class EvalBatches:
    """One pass over a source in batches; made by `make_eval_batches`."""

    def __init__(self, reader: Reader, batches: grain.MapDataset):
        self._reader = reader
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        running = self._reader.iterate(self._batches)
        try:
            for batch in running:
                yield _finish(batch)
        finally:
            running.close()


def _read_train_example(index: int, generator: np.random.Generator, *, source, size, augmentation) -> Example:
    image, label, boxes, _ = read_example(source, index)
    image, _ = augment(image, boxes, generator, size, augmentation)
    return {"image": image, "label": np.int32(label), "index": np.int32(index)}


def _read_eval_example(index: int, *, source, size, resize, max_boxes) -> Example:
    if index >= len(source):
        return _eval_example(np.zeros((*size, 3), np.uint8), 0, 0, np.zeros((0, 4), np.float32), (0, 0), mask=False)
    image, label, boxes, name = read_example(source, index)
    if max_boxes is not None and len(boxes) > max_boxes:
        raise ValueError(f"image {name!r} has {len(boxes)} boxes, more than max_boxes {max_boxes}: raise max_boxes")
    resized, _ = EVAL_RESIZES[resize](image, boxes, size)
    return _eval_example(resized, label, index, boxes, image.shape[1::-1], mask=True)


def _eval_example(image, label, index, boxes, original_size, *, mask) -> Example:
    return {
        "image": image,
        "label": np.int32(label),
        "index": np.int32(index),
        "mask": np.bool_(mask),
        "image_size": np.array(original_size, np.int32),
        "boxes": boxes,
        "num_boxes": np.int32(len(boxes)),
    }


def _collate_eval(examples: list[Example], *, max_boxes: int | None) -> Batch:
    """Stacks examples; boxes are padded with zeros to a common number of rows."""
    rows = max(len(example["boxes"]) for example in examples) if max_boxes is None else max_boxes
    boxes = np.zeros((len(examples), rows, 4), np.float32)
    for row, example in zip(boxes, examples, strict=True):
        row[: len(example["boxes"])] = example["boxes"]
    stacked = {name: np.stack([example[name] for example in examples]) for name in examples[0] if name != "boxes"}
    return {**stacked, "boxes": boxes}


def _finish(batch: Batch) -> Batch:
    """Takes a batch out of the memory shared with its worker and scales its images to [0, 1]."""
    pixels = np.asarray(batch["image"])
    image = np.divide(pixels, np.float32(255), out=_empty_aligned(pixels.shape))
    return {"image": image, **{name: np.array(value) for name, value in batch.items() if name != "image"}}


def _empty_aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Makes an empty float32 array at an address that JAX on a CPU takes over as it is, instead of copying it."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + JAX_ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % JAX_ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


def _check_source(source, batch_size, num_workers, process_index, process_count, prefetch, num_threads) -> None:
    for name, value, smallest in (
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 0),
        ("process_count", process_count, 1),
        ("process_index", process_index, 0),
        ("prefetch", prefetch, 1),
        ("num_threads", num_threads, 0),
    ):
        _check_integer(name, value, smallest)
    if process_index >= process_count:
        raise ValueError(f"process_index must be below process_count {process_count}, got {process_index}")
    if len(source) == 0:
        raise ValueError("source must hold at least one example, got an empty one")


def _check_integer(name: str, value: Any, smallest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < smallest:
        raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}")
