"""The pass over the training images: the devices compute, and meanwhile the host adds up what they have done."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from distcam_jax.prototypes.partial import PartialSums
from distcam_jax.prototypes.sums import ClassSums, local_rows, sum_over_processes

Batches = Iterable[dict[str, np.ndarray]]
_NAMED = 5  # images that an error names


class _Running(NamedTuple):
    """A batch whose embeddings may still be computed."""

    embeddings: Any  # [b, k], on the host or on devices
    labels: np.ndarray
    mask: np.ndarray
    index: np.ndarray | None  # positions in the source


def compute_prototypes(
    embed: Callable[[np.ndarray], Float[np.ndarray | jax.Array, "b k"]],
    batches: Batches | Callable[[int], Batches],
    num_classes: int,
    *,
    partial: PartialSums | None = None,
    in_flight: int = 2,
    name_of: Callable[[int], str] = str,
) -> tuple[Float[np.ndarray, "c k"], Int[np.ndarray, " c"]]:
    """Mean embedding of every class over a stream of batches (Eq. 7), in one pass at the speed of `embed`.

    Sums are kept in float64 on the host; see `ClassSums`. Nothing but them grows or stays: memory is the same for any
    number of images. While the devices compute a batch, the host adds up the one before; it fetches an embedding only
    when `in_flight` further batches have been given to the devices.

    With several processes, each has batches of its own images, as many as every other, and calls this with an `embed`
    over the global mesh; the sums of all are added at the end, and each gets the same result.

    Args:
        embed: images `[b, h, w, 3]` in [0, 1] to embeddings `[b, k]`. A `jax.Array` that is still being computed is
            best; one over the devices of several processes is split by rows.
        batches: dicts with "image", "label" `[b]`, "mask" `[b]` (False marks padding) and, for errors, "index" `[b]`,
            positions in the source. Or, so that a pass can go on, a function from the number of the first batch that is
            wanted to the batches from there on.
        num_classes: classes c, at least 1.
        partial: where the sums are kept meanwhile, so that a pass that was killed goes on; its result has the same
            bits. Call its `remove` once the prototypes are saved.
        in_flight: batches that the devices may be ahead of the host.
        name_of: position in the source to the name that an error shows, usually a file's.

    Returns:
        Prototypes `[c, k]` in float32 and counts `[c]`; zero and 0 for a class without images.

    Raises:
        ValueError: when there is no image at all, a label is outside [0, c), an embedding is not finite (named by
            `name_of`), embeddings do not fit the labels, or `partial` is given with batches that cannot start later.

    Examples:
        >>> batch = {"image": np.ones((2, 1, 1, 3)), "label": np.array([1, 1]), "mask": np.array([True, False])}
        >>> prototypes, counts = compute_prototypes(lambda images: images.sum((1, 2)), [batch], 2)
        >>> prototypes.tolist(), counts.tolist()
        ([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], [0, 1])
    """
    if in_flight < 0:
        raise ValueError(f"in_flight must be at least 0, got {in_flight}")
    if partial is not None and not callable(batches):
        raise ValueError("partial needs batches as a function of the first one's number, got batches themselves")
    sums, done = (ClassSums(num_classes), 0) if partial is None else partial.restore(num_classes)
    for running in _ahead(embed, batches(done) if callable(batches) else batches, in_flight):
        _add(sums, running, name_of)
        done += 1
        if partial is not None and done % partial.every == 0:
            partial.save(sums, done)
    total = sum_over_processes(sums)
    return total.means(), total.counts


def _ahead(embed, batches: Batches, in_flight: int) -> Iterator[_Running]:
    """Starts batches, and yields each only once `in_flight` further ones have been started."""
    waiting: collections.deque[_Running] = collections.deque()
    for batch in batches:
        embeddings = embed(batch["image"])
        if isinstance(embeddings, jax.Array):
            embeddings.copy_to_host_async()
        mask = np.asarray(batch["mask"], bool)  # whole numbers would pick rows instead of masking them
        index = np.asarray(batch["index"]) if "index" in batch else None
        waiting.append(_Running(embeddings, np.asarray(batch["label"]), mask, index))
        if len(waiting) > in_flight:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _add(sums: ClassSums, running: _Running, name_of: Callable[[int], str]) -> None:
    """Adds a batch without its padding, once it is computed and found right."""
    embeddings, (labels, mask) = local_rows(running.embeddings), (running.labels, running.mask)
    if embeddings.ndim != 2 or len(embeddings) != len(labels):
        raise ValueError(
            f"embed must give [{len(labels)}, k] for a batch of {len(labels)} images, got {embeddings.shape}"
        )
    embeddings, labels = embeddings[mask], labels[mask]
    if ((labels < 0) | (labels >= len(sums.counts))).any():
        raise ValueError(f"labels must lie in [0, {len(sums.counts)}), got {labels.min()} to {labels.max()}")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        index = None if running.index is None else running.index[mask][bad]
        raise ValueError(
            f"an embedding is not finite, that of {len(bad)} of {len(embeddings)} images in a batch"
            f"{_named(index, name_of)}; the network's weights or an image hold NaN or Inf"
        )
    sums.add(embeddings, labels)


def _named(index: np.ndarray | None, name_of: Callable[[int], str]) -> str:
    """The names of the first images at these positions, as an error shows them."""
    if index is None:
        return ""
    names = ", ".join(f"{name_of(int(i))} (at {i})" for i in index[:_NAMED])
    return f": {names}{', ...' if len(index) > _NAMED else ''}"
