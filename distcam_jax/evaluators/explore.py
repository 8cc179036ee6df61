"""What the report's explorer holds: images of a split with the maps of a few classes by every shown method."""

from collections import Counter

import cv2
import numpy as np

from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.cases import read_examples, run_network, shown_maps
from distcam_jax.evaluators.explain import Explained
from distcam_jax.evaluators.localize import Localization
from distcam_jax.evaluators.network import rank_classes
from distcam_jax.report import Explorer, ExplorerImage, ExplorerMethod

_SIDE = 224  # pixels of the longer side of a picture in the page


def make_explorer(
    data: Dataset, explained: list[Explained], measured: Localization, *, count: int, seed: int, batch: int
) -> Explorer | None:
    """Random images of a split, each with the maps of its true class, its predicted one, the next, and a wrong one.

    Args:
        data: the split.
        explained: the evaluated network, then those it is compared with; see `make_cases`.
        measured: the first network's pass over the split.
        count: images; all of them where there are fewer.
        seed: of the choice.
        batch: images a step.

    Returns:
        The explorer; None for a count of 0.
    """
    if not count:
        return None
    drawn = np.random.default_rng(seed).permutation(len(measured.labels))[:count]
    chosen, images, maps = np.sort(drawn), [], {}
    titles, thresholds = {}, {}
    names = unique_names(data)
    for start in range(0, len(chosen), batch):
        rows = chosen[start : start + batch]
        examples, pictures = read_examples(data, measured.index[rows])
        padded = pictures + pictures[-1:] * (batch - len(rows) if len(chosen) > batch else 0)  # compiled for one size
        output, features = run_network(explained[0].network, padded)
        decisions, distances = rank_classes(
            explained[0].network, explained[0].prototypes, output, features["embedding"]
        )
        nearest = decisions["nearest"][: len(rows)]
        asked = asked_classes(measured.labels[rows], nearest, measured.wrong[rows])
        padded_classes = np.concatenate([asked, np.repeat(asked[-1:], len(padded) - len(rows), axis=0)])
        found, titles, thresholds = shown_maps(explained, padded, features, padded_classes)
        for row, (example, picture) in enumerate(zip(examples, pictures, strict=True)):
            kept = np.sort(np.unique(asked[row], return_index=True)[1])  # a class asked twice is shown once
            for name, values in found.items():
                maps.setdefault(name, []).append(values[row, kept])
            images.append(
                ExplorerImage(
                    _reduced(picture),
                    [names[c] for c in asked[row, kept]],
                    example["file_name"],
                    true_class=names[measured.labels[rows[row]]],
                    predicted_class=names[nearest[row, 0]],
                    distance=float(distances[row].min()),
                    distances=distances[row, asked[row, kept]],
                    true_boxes=example["boxes"],
                    image_size=picture.shape[1::-1],
                )
            )
    methods = [ExplorerMethod(titles[name], values, thresholds[name]) for name, values in maps.items()]
    return Explorer(images, methods, input_size=explained[0].network.config.input.image_size)


def asked_classes(labels: np.ndarray, nearest: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """The true class, the two nearest and a wrong one of every image `[n, 4]`; a class may stand there twice."""
    second = nearest[:, min(1, nearest.shape[1] - 1)]
    return np.stack([labels, nearest[:, 0], second, wrong], axis=1).astype(np.int32)


def unique_names(data: Dataset) -> list[str]:
    """The classes' readable names, with the data set's own where two share one, as the two cranes of ImageNet do."""
    count = Counter(data.class_names)
    return [
        f"{name} ({identity})" if count[name] > 1 else name
        for name, identity in zip(data.class_names, data.class_ids, strict=True)
    ]


def _reduced(picture: np.ndarray) -> np.ndarray:
    """A copy whose longer side is at most what the page shows: a thousand whole photographs fill the memory."""
    share = _SIDE / max(picture.shape[:2])
    if share >= 1:
        return picture
    width, height = (max(1, round(side * share)) for side in picture.shape[1::-1])
    return cv2.resize(picture, (width, height), None, 0, 0, cv2.INTER_AREA)
