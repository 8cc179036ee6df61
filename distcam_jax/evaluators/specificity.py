"""Specificity of heatmaps: two photographs side by side, asked for the class of one and then of the other."""

import dataclasses
from collections.abc import Collection

import jax
import numpy as np
from jax import numpy as jnp

from distcam_jax.decoding import Source, read_example
from distcam_jax.evaluators.explain import MapFunction
from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.rows import concatenate_rows
from distcam_jax.faithfulness import random_maps
from distcam_jax.geometry import resize_image
from distcam_jax.prototypes import Prototypes
from distcam_jax.specificity import (
    compose_pair,
    energy_inside,
    half_masks,
    heat_difference,
    map_correlation,
    points_inside,
    swap_test,
)

MEASURES = ("pointing", "energy", "difference", "swap", "correlation")
_NO_BOXES = np.zeros((0, 4), np.float32)


@dataclasses.dataclass(frozen=True)
class Specificity:
    """What was measured on pairs of photographs, one row a pair.

    Attributes:
        index_a, index_b: positions in the source `[n]`.
        class_a, class_b: their classes `[n]`, two different ones.
        a_first: whether a stands on the left, or on top `[n]`.
        asked: classes of which maps of the photograph a alone were compared `[n, m]`.
        pointing: method to `points_inside` of the map of a in a's half, and of b in b's `[n, 2]`; chance is 0.5.
        energy: likewise `energy_inside`, chance 0.5.
        difference: likewise `heat_difference`, chance 0.
        swap: method to `swap_test` `[n]`, chance 0.5.
        correlation: method to `map_correlation` of the asked classes `[n]`, NaN where no two maps varied.
        correlated: method to how many pairs of maps that is the mean of `[n]`.
    """

    index_a: np.ndarray
    index_b: np.ndarray
    class_a: np.ndarray
    class_b: np.ndarray
    a_first: np.ndarray
    asked: np.ndarray
    pointing: dict[str, np.ndarray]
    energy: dict[str, np.ndarray]
    difference: dict[str, np.ndarray]
    swap: dict[str, np.ndarray]
    correlation: dict[str, np.ndarray]
    correlated: dict[str, np.ndarray]

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """Each of `MEASURES` to method to its mean; a correlation that is NaN is left out, NaN where all are."""
        return {
            measure: {name: _mean_of_known(values) for name, values in getattr(self, measure).items()}
            for measure in MEASURES
        }


def _mean_of_known(values) -> float:
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if len(known) else float("nan")


def choose_pairs(
    source: Source, classes: Collection[int], *, pairs: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random pairs of photographs of different classes.

    The source is gone through in a random order, and each photograph is paired with the first one before it that is
    still alone, if that is of another class. Photographs come again only when the whole source has been gone through.

    Args:
        source: the examples, see `distcam_jax.input_pipeline.Source`; only labels are read.
        classes: those that may be paired.
        pairs: how many, at least 1.
        seed: decides all.

    Returns:
        Positions in the source `[n, 2]`, classes `[n, 2]`, and whether the first of each pair stands first `[n]`.

    Raises:
        ValueError: pairs below 1, or a source without two different classes among `classes`.

    Examples:
        >>> source = [{"label": label} for label in (0, 0, 1, 7)]
        >>> index, labels, _ = choose_pairs(source, {0, 1}, pairs=3)
        >>> index.shape, {tuple(sorted(row)) for row in labels.tolist()}
        ((3, 2), {(0, 1)})
    """
    if pairs < 1:
        raise ValueError(f"pairs: want at least 1, got {pairs}")
    allowed, generator = {int(one) for one in classes}, np.random.default_rng((seed, 0, 1))
    chosen: list[tuple[int, int, int, int]] = []
    while len(chosen) < pairs:
        found, alone = len(chosen), []  # all of those who wait are of one class
        for index in generator.permutation(len(source)).tolist():
            label = int(source[index]["label"])
            if label not in allowed:
                continue
            if not alone or alone[0][1] == label:
                alone.append((index, label))
                continue
            chosen.append((*alone.pop(0), index, label))
            if len(chosen) == pairs:
                break
        if len(chosen) == found:
            raise ValueError(f"source: want photographs of two of the {len(allowed)} classes, found fewer")
    rows = np.array(chosen, np.int32)
    return rows[:, ::2], rows[:, 1::2], np.random.default_rng((seed, 0, 2)).random(pairs) < 0.5


def specificity(
    network: Network,
    prototypes: Prototypes,
    maps: MapFunction,
    source: Source,
    *,
    pairs: int,
    seed: int = 0,
    classes: Collection[int] | None = None,
    axis: str = "horizontal",
    layout: str = "wide",
    classes_per_image: int = 5,
    batch: int = 16,
) -> Specificity:
    """Measures how much every method's map depends on the class that it is asked for.

    Two measurements: on pictures composed of two photographs, where the map of each one's class should be; and on the
    first photograph of each pair alone, how alike the maps of random classes are. The controls "uniform" (Σ_k Q_k, the
    same for all classes) and "random" (noise) stand beside the methods; a method of that name takes the control's
    place. Every photograph is first resized straight to the network's input size.

    Args:
        network: from `load_network`.
        prototypes: its class prototypes.
        maps: of `bind_methods` for the network and its prototypes.
        source: the examples, see `distcam_jax.input_pipeline.Source`.
        pairs: how many.
        seed: of the pairs, their sides, the random classes and the random maps.
        classes: whose photographs are used; None is all. Classes without training samples are left out.
        axis: `"horizontal"` or `"vertical"`, see `compose_pair`.
        layout: `"wide"`, the network runs on a picture of twice the size, or `"squeeze"`, see `compose_pair`.
        classes_per_image: m of the second measurement, at least 2; less where fewer have training samples.
        batch: pairs computed at once.

    Returns:
        One row a pair, for paired bootstrap intervals.

    Raises:
        ValueError: an option out of range, or photographs of fewer than two classes.
    """
    present = np.flatnonzero(prototypes.counts)
    wanted = set(present.tolist()) if classes is None else {int(one) for one in classes} & set(present.tolist())
    if classes_per_image < 2 or batch < 1:
        got = f"{classes_per_image} and {batch}"
        raise ValueError(f"classes_per_image, batch: want at least 2 and at least 1, got {got}")
    index, labels, a_first = choose_pairs(source, wanted, pairs=pairs, seed=seed)
    asked = _random_classes(present, pairs, min(classes_per_image, len(present)), seed)
    batch, rows = network.even_batch(min(batch, pairs)), []
    for start in range(0, pairs, batch):
        real = np.arange(start, min(start + batch, pairs))
        number = np.pad(real, (0, batch - len(real)), mode="edge")
        a, b = (_photographs(source, index[number, side], network.config.input.image_size) for side in (0, 1))
        first = a_first[number]
        measured = _measure_pairs(network, maps, a, b, first, labels[number], number, seed, axis, layout)
        measured |= _measure_alone(network, maps, a, asked[number], number, seed)
        measured = {
            measure: {name: np.asarray(values)[: len(real)] for name, values in by_method.items()}
            for measure, by_method in measured.items()
        }
        own = {"index_a": index[real, 0], "index_b": index[real, 1], "a_first": a_first[real], "asked": asked[real]}
        rows.append({**own, "class_a": labels[real, 0], "class_b": labels[real, 1], **measured})
    return Specificity(**concatenate_rows(rows))


def _random_classes(present, pairs: int, count: int, seed: int) -> np.ndarray:
    """Different classes for every pair `[n, m]`, the same for a pair whatever the number of pairs."""
    generators = (np.random.default_rng((seed, number, 3)) for number in range(pairs))
    return np.stack([one.choice(present, count, replace=False) for one in generators]).astype(np.int32)


def _photographs(source: Source, indices, size: int) -> np.ndarray:
    """Images `[b, size, size, 3]` in [0, 1]."""
    read = [resize_image(read_example(source, int(index))[0], _NO_BOXES, (size, size))[0] for index in indices]
    return np.stack(read).astype(np.float32) / np.float32(255)


def _with_controls(features, maps: MapFunction, classes, number, seed: int) -> dict:
    """Every method's and control's maps `[b, m, h, w]` of classes `[b, m]`."""
    height, width = features.shape[1:3]
    uniform = jnp.sum(features, axis=-1, dtype=jnp.float32)[:, None]
    controls = {
        "uniform": jnp.broadcast_to(uniform, (*classes.shape, height, width)),
        "random": random_maps(number, (height, width), seed=seed, kinds=classes.shape[1]),
    }
    return controls | maps(features, classes)


def _measure_pairs(network, maps, a, b, a_first, classes, number, seed, axis, layout) -> dict:
    """Measures of the maps of both classes `[b, 2]` on the composed pictures, by method."""
    chosen = a_first[:, None, None, None]
    pictures = compose_pair(np.where(chosen, a, b), np.where(chosen, b, a), axis=axis, layout=layout)
    halves = half_masks((pictures.shape[1], pictures.shape[2]), axis=axis)
    masks = np.where(chosen, halves, halves[::-1])  # that of a, that of b
    heatmaps = _with_controls(network(pictures)[1]["pre_pool"], maps, classes, number, seed)
    measured = {name: _pair_measures(value, masks) for name, value in heatmaps.items()}
    return {measure: {name: values[measure] for name, values in measured.items()} for measure in MEASURES[:4]}


@jax.jit
def _pair_measures(maps, masks):
    return {
        "pointing": points_inside(maps, masks),
        "energy": energy_inside(maps, masks),
        "difference": heat_difference(maps, masks),
        "swap": swap_test(maps[:, 0], maps[:, 1], masks[:, 0]),
    }


def _measure_alone(network, maps, images, classes, number, seed) -> dict:
    """Correlation of the maps of m classes of single photographs, and how many pairs of maps it is the mean of."""
    heatmaps = _with_controls(network(images)[1]["pre_pool"], maps, classes, number, seed)
    found = {name: map_correlation(value) for name, value in heatmaps.items()}
    correlation, correlated = ({name: values[i] for name, values in found.items()} for i in (0, 1))
    return {"correlation": correlation, "correlated": correlated}
