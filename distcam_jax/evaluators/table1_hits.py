"""What one network got right, image by image, kept in one small file, and figures made of it."""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from distcam_jax.evaluators.figures import IOU, Figure
from distcam_jax.evaluators.localize import DEFAULT_THRESHOLD, THRESHOLDS, Localization, decision_of, threshold_index
from distcam_jax.files import write_atomically

THRESHOLD_KINDS = ("default", "tuned")
TOP = 5  # best classes that are looked at
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Hits:
    """What one network got right, one row an image.

    Attributes:
        index: positions in the source `[n]`.
        places: the true class's place among the `TOP` best `[n]`, from 0, or `TOP` where it is none of them; by
            "softmax" (with a linear layer only) and by "nearest" prototype.
        right: method to whether the true class's box is right at every threshold `[n, thresholds]`.
        wrong: the same of a wrong class's box.
        trivial: "center_box" and "whole_image" to whether that box is right `[n]`.
        tuned: method to its threshold, from held-out images.
    """

    index: np.ndarray
    places: dict[str, np.ndarray]
    right: dict[str, np.ndarray]
    wrong: dict[str, np.ndarray]
    trivial: dict[str, np.ndarray]
    tuned: dict[str, float]

    @property
    def methods(self) -> list[str]:
        """Heatmap methods, then the baselines, in the order of the tables."""
        return [*self.right, *self.trivial, "wrong_prototype"]

    def threshold(self, method: str, at: str) -> float | None:
        """A method's threshold, at "default" or "tuned"; None for a trivial box."""
        if method in self.trivial:
            return None
        return DEFAULT_THRESHOLD if at == "default" else self.tuned[_map_of(method)]

    def boxes(self, method: str, at: str) -> np.ndarray:
        """Whether each image's box is right `[n]`; "wrong_prototype" is Dist-CAM asked for a wrong class."""
        threshold = self.threshold(method, at)
        if threshold is None:
            return self.trivial[method]
        values = self.wrong if method == "wrong_prototype" else self.right
        return values[_map_of(method)][:, threshold_index(threshold)]

    def decided(self, decision: str, *, top: int = 1) -> np.ndarray:
        """Whether the true class is one of the best `top` of a decision `[n]`."""
        return self.places[decision] < top

    def errors(self, method: str, at: str, *, decision: str | None = None, top: int = 1) -> np.ndarray:
        """Whether class or box is wrong `[n]`.

        Each of the best `top` classes gives a box of its own, and only the true class's can be right with its class; so
        an image is right where the true class is among them and its box is right.

        Args:
            method: of `methods`.
            at: "default" or "tuned".
            decision: of `places`; by default that which the method explains.
            top: best classes that count.

        Returns:
            One value an image.
        """
        return ~(self.decided(decision or decision_of(method), top=top) & self.boxes(method, at))

    def rows(self, kept: np.ndarray) -> "Hits":
        """Some of the images, by their rows."""
        arrays = {
            name: {key: value[kept] for key, value in getattr(self, name).items()}
            for name in ("places", "right", "wrong", "trivial")
        }
        return Hits(self.index[kept], **arrays, tuned=self.tuned)


def _map_of(method: str) -> str:
    return "dist_cam" if method == "wrong_prototype" else method


def make_hits(measured: Localization, tuned: Mapping[str, float]) -> Hits:
    """What a pass over a split got right.

    Args:
        measured: of `localize`.
        tuned: of `tune_thresholds`, from another split.

    Returns:
        One row an image, in the order of the source.
    """
    hits = Hits(
        index=measured.index,
        places={name: _places(ranked, measured.labels) for name, ranked in measured.decisions.items()},
        right={name: values >= IOU for name, values in measured.right_iou.items()},
        wrong={name: values >= IOU for name, values in measured.wrong_iou.items()},
        trivial={name: values >= IOU for name, values in measured.box_iou.items()},
        tuned=dict(tuned),
    )
    return hits.rows(np.argsort(measured.index))


def _places(ranked: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where the true class stands among the best ones, see `Hits.places`."""
    found = ranked[:, :TOP] == labels[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1), TOP).astype(np.uint8)


def common_rows(a: Hits, b: Hits) -> tuple[Hits, Hits]:
    """Both on the images that both have, in the same order; a ValueError where there are none."""
    _, rows_a, rows_b = np.intersect1d(a.index, b.index, return_indices=True)
    if not len(rows_a):
        raise ValueError("the two networks were measured on no common image")
    return a.rows(rows_a), b.rows(rows_b)


def kept_hits(path: Path, made_from: dict, measure: Callable[[], Hits]) -> tuple[Hits, bool]:
    """Hits from their file, or measured now and kept there.

    Args:
        path: an .npz file, written whole or not at all: about 2 MB for 50,000 images and seven methods.
        made_from: all that decides the result, as JSON takes it.
        measure: gives the hits; called where the file is missing, does not read, or was made from something else.

    Returns:
        The hits, and whether they were measured now.
    """
    identity = json.dumps(made_from, sort_keys=True)
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:  # NumPy leaves a broken one open
            kept = {name: file[name] for name in file.files}
        if str(kept["made_from"]) == identity:
            return _unpacked(kept), False
        logging.info("%s was made from something else; measuring it again", path)
    except FileNotFoundError:
        pass
    except _UNREADABLE as error:
        logging.warning("%s does not read (%s); measuring it again", path, error)
    hits = measure()
    arrays: dict[str, Any] = {"made_from": np.array(identity), **_packed(hits)}
    write_atomically(path, lambda temporary: np.savez_compressed(temporary, **arrays))
    return hits, True


def _packed(hits: Hits) -> dict[str, np.ndarray]:
    """Arrays of a file: `right.cam` and so on, eight thresholds a byte."""
    arrays = {"index": hits.index, "tuned": np.array(json.dumps(hits.tuned))}
    for kind in ("places", "trivial"):
        arrays |= {f"{kind}.{name}": value for name, value in getattr(hits, kind).items()}
    for kind in ("right", "wrong"):
        arrays |= {f"{kind}.{name}": np.packbits(value, axis=1) for name, value in getattr(hits, kind).items()}
    return arrays


def _unpacked(arrays: dict[str, np.ndarray]) -> Hits:
    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in ("places", "trivial", "right", "wrong")}
    for key, value in arrays.items():
        kind, _, name = key.partition(".")
        if kind in ("right", "wrong"):
            value = np.unpackbits(value, axis=1, count=len(THRESHOLDS)).astype(bool)
        if name:
            found[kind][name] = value
    return Hits(arrays["index"], **found, tuned=json.loads(str(arrays["tuned"])))


def share_figure(values: np.ndarray, *, seed: int, resamples: int) -> Figure:
    """Mean over images and its 95 % percentile bootstrap interval, for values that are few different numbers.

    Drawing n images with replacement and counting how often each number comes is one multinomial draw, so 50,000
    images take milliseconds in the place of a second; the distribution is that of `bootstrap_interval`.

    Args:
        values: `[n]`, right or wrong, or the difference of two of them on the same image.
        seed: the same seed gives the same interval.
        resamples: how often n images are drawn.

    Returns:
        The mean with its interval.

    Examples:
        >>> share_figure(np.array([1, 1, 1, 1]), seed=0, resamples=100)
        Figure(value=1.0, low=1.0, high=1.0)
        >>> figure = share_figure(np.arange(100) < 30, seed=0, resamples=1000)
        >>> 0.2 < figure.low < figure.value < figure.high < 0.4
        True
    """
    levels, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    low, high = np.quantile(drawn @ levels / len(values), [0.025, 0.975])
    return Figure(float(counts @ levels / len(values)), float(low), float(high))
