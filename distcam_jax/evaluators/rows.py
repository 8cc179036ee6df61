"""What the loops over a split share: which rows of a batch count, and how what was measured is joined."""

import numpy as np

from distcam_jax.datasets import Dataset
from distcam_jax.decoding import read_labels as read_labels


def real_rows(batch: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Rows of a batch that count: no padding, and no image of a class without training samples.

    Args:
        batch: of `Network.batches`.
        counts: training samples of each class `[c]`.

    Returns:
        Positions in the batch, ascending.
    """
    return np.flatnonzero(batch["mask"] & (counts[batch["label"]] > 0))


def boxed_rows(batch: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Those of `real_rows` whose image has a true box; of ILSVRC's training images two in five have one."""
    rows = real_rows(batch, counts)
    return rows[batch["num_boxes"][rows] > 0]


def check_boxes(data: Dataset) -> None:
    """Refuses a split of which no image has a box, with a ValueError, before the work that it would spoil."""
    if not any(len(data.source[index]["boxes"]) for index in range(len(data.source))):
        raise ValueError(
            f"no image of {data.name}, split {data.split}, has a box; prepare the data with the boxes of its training "
            "images, or take other images: --config.input.tune_split=validation[:5%] and eval_split=validation[5%:]"
        )


def true_boxes(batch: dict[str, np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """The true boxes `[m, 4]` of some rows of a batch, without their padding."""
    return [batch["boxes"][row][: batch["num_boxes"][row]] for row in rows]


def concatenate_rows(rows: list[dict]) -> dict:
    """Joins what was measured batch by batch, `{name: array [n, ...] or a dict of such}`, along the images."""
    return {
        name: concatenate_rows([row[name] for row in rows])
        if isinstance(value, dict)
        else np.concatenate([row[name] for row in rows])
        for name, value in rows[0].items()
    }
