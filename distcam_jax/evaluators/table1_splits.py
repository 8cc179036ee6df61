"""Which images the paper's table may use for what: thresholds and prototypes come from others than those reported."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import ml_collections
import numpy as np
from tensorflow_datasets.core import ReadInstruction

from distcam_jax.datasets import load_dataset, split_names
from distcam_jax.evaluators.table1_networks import Given


def check_splits(config: ml_collections.ConfigDict, given: Sequence[Given]) -> None:
    """Refuses to report images that thresholds are tuned on or that a network's prototypes are made of.

    Args:
        config: see `configs/table1.py`.
        given: of `find_networks`.

    Raises:
        ValueError: names both splits and how many images they share.
    """
    inputs = config.input
    reported = inputs.eval_split
    used = [("config.input.tune_split is", inputs.tune_split)]
    for one in given:
        role = "config.input.train_split is" if one.kind == "weights" else f"{one.name} is trained on"
        used.append((role, one.config.input.train_split))
    names = {name for split in (reported, *(split for _, split in used)) for name in split_names(split)}
    sizes = {name: len(load_dataset(split=name, **config.data).source) for name in names}
    for role, split in used:
        count = shared_images(split, reported, sizes)
        if count:
            raise ValueError(
                f"{role} {split!r}, which shares {count} images with config.input.eval_split {reported!r}; the figures "
                "must be of other images: choose splits that share none, such as validation[:5%] and validation[5%:]"
            )


def shared_images(a: str, b: str, sizes: Mapping[str, int]) -> int:
    """How many images two splits share.

    Args:
        a: a split as `load_dataset` takes it, such as "train[:90%]" or "train[:10]+validation".
        b: another.
        sizes: images of every whole split that they name.

    Returns:
        Their number.

    Examples:
        >>> shared_images("train[:60%]", "train[50%:]+validation", {"train": 20, "validation": 5})
        2
    """
    left, right = (_taken(split, sizes) for split in (a, b))
    return sum(int(np.sum(left[name] & right[name])) for name in sizes)


def _taken(split: str, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Whether each image of each whole split is in a part."""
    taken = {name: np.zeros(size, bool) for name, size in sizes.items()}
    infos = {name: SimpleNamespace(num_examples=size) for name, size in sizes.items()}
    for part in ReadInstruction.from_spec(split).to_absolute(infos):
        taken[part.splitname][part.from_ : part.to] = True
    return taken
