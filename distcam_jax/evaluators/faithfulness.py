"""Faithfulness of heatmaps: deletion and insertion curves of a split."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import numpy as np
from jax import numpy as jnp

from distcam_jax.evaluators.explain import MapFunction
from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.rows import concatenate_rows, real_rows
from distcam_jax.faithfulness import (
    area_under_curve,
    center_map,
    gaussian_blur,
    pixel_counts,
    prototype_margin,
    random_maps,
    removal_order,
    replace_pixels,
    upsample_maps,
)
from distcam_jax.prototypes import Prototypes

Batches = Iterable[dict[str, np.ndarray]]
BASELINES = ("mean", "blur")
CURVES = ("deletion", "insertion")
BLUR_SHARE = 1 / 20  # of the image's side: the standard deviation of the blur where none is chosen


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """Deletion and insertion curves of one pass over a split, one row an image.

    Attributes:
        labels: the class whose map orders the pixels and whose margin is followed `[n]`.
        index: positions in the source `[n]`.
        margin: of the unperturbed image `[n]`, see `prototype_margin`.
        fractions: of the pixels that are deleted or put in `[s]`, from 0 to 1.
        curves: "deletion" and "insertion" to method to margins `[n, s]`.
    """

    labels: np.ndarray
    index: np.ndarray
    margin: np.ndarray
    fractions: np.ndarray
    curves: dict[str, dict[str, np.ndarray]]

    @property
    def unit(self) -> float:
        """The mean absolute margin of all unperturbed images, which areas are told in units of.

        A quotient of its own for each image would turn its sign at a negative margin and blow up near zero.
        """
        return float(np.mean(np.abs(self.margin)))

    def areas(self, *, relative: bool = True) -> dict[str, dict[str, np.ndarray]]:
        """Areas under the curves, one an image.

        Args:
            relative: whether in units of `unit`, to compare networks; else in the unit of the embeddings.

        Returns:
            Method to areas `[n]`, of "deletion" (a good map's is low), "insertion" (high), and their "difference",
            insertion minus deletion (high).

        Raises:
            ValueError: relative areas where every margin is zero.
        """
        unit = self.unit if relative else 1.0
        if unit == 0:
            raise ValueError("relative: the margin of every image is zero, so it is no unit; ask for relative=False")
        areas = {
            kind: {name: np.asarray(area_under_curve(curve, self.fractions)) / unit for name, curve in curves.items()}
            for kind, curves in self.curves.items()
        }
        both = {name: areas["insertion"][name] - areas["deletion"][name] for name in areas["deletion"]}
        return areas | {"difference": both}


def faithfulness(
    network: Network,
    prototypes: Prototypes,
    maps: MapFunction,
    batches: Batches,
    *,
    steps: int = 20,
    baseline: str = "mean",
    sigma: float | None = None,
    chunk: int = 5,
    seed: int = 0,
) -> Faithfulness:
    """Measures deletion and insertion curves of every method over a split, for the map of each image's true class.

    The margin to the nearest other prototype takes the place of the class score. The controls "random" (noise in the
    size of the map) and "center" (a Gaussian about the middle) stand beside the methods; a method of that name takes
    the control's place. A method costs 2 · (steps − 1) runs of the network an image.

    Args:
        network: from `load_network`.
        prototypes: its class prototypes.
        maps: of `bind_methods` for the network and its prototypes.
        batches: of `Network.batches`, all of one size.
        steps: intervals of the curves, at least 1; each deletes or puts in 1 / steps of the pixels.
        baseline: what deletion leaves: `"mean"`, the data set's mean colour, or `"blur"`, the blurred image. Insertion
            always starts from the blurred image.
        sigma: of the blur in pixels; None is 1/20 of the image's side.
        chunk: steps computed at once: the network is called on `b · chunk` images.
        seed: of the random maps.

    Returns:
        One row an image. Padding, classes without training samples and their images are left out.

    Raises:
        ValueError: an option out of range, or no image is left.

    References:
        Petsiuk et al., "RISE", BMVC 2018.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline: want one of {', '.join(map(repr, BASELINES))}, got {baseline!r}")
    if min(steps, chunk) < 1:
        raise ValueError(f"steps, chunk: want at least 1, got {steps} and {chunk}")
    if np.count_nonzero(prototypes.counts) < 2:
        raise ValueError("prototypes: want at least 2 classes with samples, a margin compares them")
    fractions = np.linspace(0, 1, steps + 1)
    margin_of = functools.partial(
        jax.jit(prototype_margin), prototypes=jnp.asarray(prototypes.prototypes), counts=jnp.asarray(prototypes.counts)
    )
    mean = None if baseline == "blur" else np.asarray(network.config.input.mean, np.float32)
    rows = []
    for batch in batches:
        real = real_rows(batch, prototypes.counts)
        if not len(real):
            continue
        heatmaps = _true_class_maps(network, maps, batch, seed)
        margin, curves = _curves(network, margin_of, heatmaps, batch, fractions, mean, sigma, chunk)
        curves = {kind: {name: curve[real] for name, curve in curves[kind].items()} for kind in CURVES}
        row = {"labels": batch["label"][real], "index": batch["index"][real], "margin": margin[real], "curves": curves}
        rows.append(row)
    if not rows:
        raise ValueError("no image to measure: the split is empty, or none of its classes has training samples")
    return Faithfulness(fractions=fractions, **concatenate_rows(rows))


def _true_class_maps(network, maps, batch, seed: int) -> dict[str, jax.Array | np.ndarray]:
    """Maps `[b, h, w]` of the true classes, the controls' first."""
    features = network(batch["image"])[1]["pre_pool"]
    count, size = len(features), features.shape[1:3]
    controls = {
        "random": random_maps(batch["index"], size, seed=seed)[:, 0],
        "center": np.broadcast_to(center_map(size), (count, *size)),
    }
    return controls | {name: value[:, 0] for name, value in maps(features, batch["label"][:, None]).items()}


def _curves(network, margin_of, maps, batch, fractions, mean, sigma, chunk):
    """Margins of the images `[b]`, and of their perturbations for each kind and method `[b, s]`."""
    images, labels = jnp.asarray(batch["image"]), batch["label"]
    height, width = images.shape[1:3]
    blurred = _blur(images, min(height, width) * BLUR_SHARE if sigma is None else sigma)
    base = blurred if mean is None else jnp.broadcast_to(jnp.asarray(mean), images.shape)

    def margins(pictures, count):
        embeddings = network(pictures)[1]["embedding"].reshape(len(labels), count, -1)
        return np.asarray(margin_of(embeddings, labels=np.repeat(labels[:, None], count, axis=1)))

    # Where a curve starts and ends, no heatmap has a say.
    whole, empty, start = (margins(pictures, 1) for pictures in (images, base, blurred))
    inner = pixel_counts(fractions, height * width)[1:-1]
    curves = {kind: {} for kind in CURVES}
    for name, heatmaps in maps.items():
        ranks = _ranks(heatmaps, (height, width))
        for kind, (old, new, first, last) in {
            "deletion": (images, base, whole, empty),
            "insertion": (blurred, images, start, whole),
        }.items():
            steps = [first]
            for position in range(0, len(inner), chunk):
                counts = inner[position : position + chunk]
                padded = np.pad(counts, (0, chunk - len(counts)))  # one shape, so that all is compiled once
                pictures = _replace(old, new, ranks, padded)
                steps.append(margins(pictures, chunk)[:, : len(counts)])
            curves[kind][name] = np.concatenate([*steps, last], axis=1)
    return whole[:, 0], curves


_blur = jax.jit(gaussian_blur, static_argnames="sigma")


@functools.partial(jax.jit, static_argnames="size")
def _ranks(heatmaps, size):
    return removal_order(upsample_maps(heatmaps, size))


@jax.jit
def _replace(old, new, ranks, counts):
    """Perturbed images `[b · s, h, w, 3]`."""
    pictures = replace_pixels(old, new, ranks, counts)
    return pictures.reshape(-1, *pictures.shape[2:])
