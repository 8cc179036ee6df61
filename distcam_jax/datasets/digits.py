"""Handwritten digits on cluttered canvases: a data set with exact boxes that needs no download.

Each canvas is a 64 × 64 RGB image with one handwritten digit (the 8 × 8 digits that ship with scikit-learn, enlarged
smoothly) at a random size and place, among strokes of the same colours that are no digits. The box is tight around the
digit's visible ink, so localisation can be scored without any annotator.

The splits share no source digit: of each class, 70 % of the digits go to `train`, 10 % to `validation`, 20 % to `test`.
"""

import dataclasses
import functools
import io
import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int, UInt8

from distcam_jax.datasets import _builders

CANVAS = 64
SPLITS = ("train", "validation", "test")

_SHARES = (0.7, 0.1, 0.2)  # of every class's source digits, in the order of SPLITS
_SIDES = (25.0, 41.0)  # longer side of the digit's ink, pixels
_TURN = 8.0  # degrees, either way
_FAINT = 8  # ink of a source digit's pixel, of 16, that is seen when it is alone
_VISIBLE = 0.25  # opacity from which a pixel counts as ink
_CLEARANCE = 2  # pixels without a stroke around the digit's box
_TILE = 36  # side of the square that holds one stroke, seam included
_MARGIN = _TILE // 2
_STROKES = (3, 6)  # strokes a canvas
_LENGTHS = (9.0, 18.0)  # of a stroke, pixels
_WIDTHS = (1.8, 3.4)
_SUBPIXEL = 4  # bits behind the point in OpenCV's drawing coordinates

_FINER = 3  # strokes are drawn this much larger and averaged


def _rgb(*colours: str) -> Float[np.ndarray, "c 3"]:
    """#rrggbb -> floats in 0..255."""
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], np.float32)


_GROUNDS = _rgb("#22366b", "#17505f", "#3d2c6e", "#532a5c", "#1c5449", "#343f5e", "#5e2f4a", "#234a78")
_INKS = _rgb("#ffd166", "#ff8a70", "#6fe3c1", "#8ecbff", "#cbb2ff", "#ffa3c7", "#fff1cf", "#c5e882")

_T = np.linspace(-0.5, 0.5, 17)
_PATHS = (  # paths of about unit length
    [np.stack([_T, 0 * _T], -1)],  # line
    [np.stack([np.sin(1.7 * _T), np.cos(1.7 * _T) - 1], -1) / 1.7],  # arc
    [np.stack([_T, 0.11 * np.sin(4 * np.pi * _T)], -1)],  # wave
    [np.stack([_T[::4], [0.12, -0.12, 0.12, -0.12, 0.12]], -1)],  # zigzag
    [np.array([[-0.22, 0], [0.22, 0]]), np.array([[0, -0.22], [0, 0.22]])],  # cross
    [np.array([[s, 0], [s, 0]]) for s in (-0.36, 0.0, 0.36)],  # dots
)


@dataclasses.dataclass
class DigitsConfig(tfds.core.BuilderConfig):
    """How many canvases a split has, and the seed of every random choice.

    A longer split starts with the canvases of a shorter one.

    Raises:
      ValueError: an option is not a whole number, or the seed is negative, or a size is below 1.
    """

    name: str = ""
    seed: int = dataclasses.field(default=0, kw_only=True)
    train_size: int = dataclasses.field(default=8000, kw_only=True)
    validation_size: int = dataclasses.field(default=500, kw_only=True)
    test_size: int = dataclasses.field(default=1000, kw_only=True)

    def __post_init__(self):
        for option, least in (("seed", 0), ("train_size", 1), ("validation_size", 1), ("test_size", 1)):
            value = getattr(self, option)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{option}: got {value!r}, want a whole number, at least {least}")
        self.name = f"seed{self.seed}_{self.train_size}_{self.validation_size}_{self.test_size}"


class Digits(_builders.LocalBuilder, skip_registration=True):
    """Builder of the digits; see `DigitsConfig` for its options and `distcam_jax.datasets.load_dataset` for its use."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = SPLITS
    BUILDER_CONFIGS = [DigitsConfig()]  # noqa: RUF012 (the base class declares it so)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.local_info(
            "One handwritten digit on a cluttered 64 x 64 canvas.",
            source_index=tfds.features.Scalar(dtype=np.int64, doc="of the digit in sklearn.datasets.load_digits"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        from sklearn.datasets import load_digits  # takes two seconds, and prepared data does without

        self.set_classes({name: name for name in "0123456789"})
        digits: Any = load_digits()
        sources = split_sources(digits.target, self.builder_config.seed)
        return {split: self._generate_examples(split, sources[split], digits) for split in SPLITS}

    def _generate_examples(self, split: str, sources: Int[np.ndarray, " m"], digits: Any) -> Iterator[tuple[str, dict]]:
        for i in range(getattr(self.builder_config, f"{split}_size")):
            source = int(sources[i % len(sources)])
            generator = np.random.default_rng([self.builder_config.seed, SPLITS.index(split), i])
            image, boxes = draw_canvas(generator, digits.images[source])
            file_name = f"{split}_{i:05d}.png"
            _, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            yield (
                file_name,
                {
                    "image": io.BytesIO(png.tobytes()),
                    "label": int(digits.target[source]),
                    "boxes": boxes,
                    "file_name": file_name,
                    "source_index": source,
                },
            )


def split_sources(labels: Int[np.ndarray, " n"], seed: int) -> dict[str, Int[np.ndarray, " m"]]:
    """Deals the source digits to the splits, class by class.

    Args:
      labels: the class of each source digit.
      seed: of the shuffle within a class.

    Returns:
      split -> indices into `labels`: no index is in two splits, every class is shared out 70 / 10 / 20, and the classes
      take turns, so that any beginning of the list is balanced.

    Examples:
      >>> sources = split_sources(np.repeat(np.arange(2), 10), seed=0)
      >>> {split: len(indices) for split, indices in sources.items()}
      {'train': 14, 'validation': 2, 'test': 4}
    """
    generator = np.random.default_rng(seed)
    dealt: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for label in np.unique(labels):
        indices = generator.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(_SHARES)[:-1] * len(indices)).astype(int)
        for split, part in zip(SPLITS, np.split(indices, ends), strict=True):
            dealt[split] += enumerate(part.tolist())
    turns = {split: sorted(pairs, key=lambda pair: pair[0]) for split, pairs in dealt.items()}
    return {split: np.array([index for _, index in pairs]) for split, pairs in turns.items()}


def draw_canvas(
    generator: np.random.Generator, digit: Float[np.ndarray, "8 8"]
) -> tuple[UInt8[np.ndarray, "64 64 3"], Float[np.ndarray, "1 4"]]:
    """Draws one digit and its clutter.

    Args:
      generator: source of every random choice: ground, colours, strokes, and the digit's size, turn and place.
      digit: ink of the source digit, 0 (none) to 16 (full), as in `sklearn.datasets.load_digits().images`.

    Returns:
      The RGB canvas, and the box x0, y0, x1, y1 (pixels, exclusive end) around the ink that can be seen. The longer
      side of the box is 25 to 41 pixels, give or take two.

    Raises:
      ValueError: the digit has another shape, or no ink that could be seen.

    Examples:
      >>> bar = np.zeros((8, 8))
      >>> bar[1:7, 3:5] = 16
      >>> image, boxes = draw_canvas(np.random.default_rng(0), bar)
      >>> image.shape, boxes.shape
      ((64, 64, 3), (1, 4))
    """
    if digit.shape != (8, 8) or not np.max(digit) >= _FAINT:
        raise ValueError(
            f"digit: got shape {digit.shape}, most ink {np.max(digit)}; want (8, 8), at least {_FAINT} of 16"
        )
    glyph = _glyph(generator, digit)
    height, width = glyph.shape
    x0, y0 = (int(generator.integers(1, CANVAS - side)) for side in (width, height))
    x1, y1 = x0 + width, y0 + height
    opacity, ink_index, taken = (np.zeros((CANVAS + 2 * _MARGIN,) * 2, dtype) for dtype in (np.float32, np.uint8, bool))
    ink_index[:] = generator.integers(len(_INKS))
    top, left = y0 + _MARGIN, x0 + _MARGIN
    opacity[top : top + height, left : left + width] = glyph
    taken[top : top + height, left : left + width] = True
    _add_strokes(generator, opacity, ink_index, taken)
    inside = slice(_MARGIN, _MARGIN + CANVAS)
    ground = _ground(generator)
    canvas = ground + opacity[inside, inside, None] * (_INKS[ink_index[inside, inside]] - ground)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), np.array([[x0, y0, x1, y1]], np.float32)


def _glyph(generator: np.random.Generator, digit: Float[np.ndarray, "8 8"]) -> Float[np.ndarray, "h w"]:
    """Enlarges and turns a digit; returns its opacity in 0..1, cropped to the ink that can be seen."""
    rows, columns = np.nonzero(digit >= _FAINT / 2)
    centre = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    extent = max(np.ptp(columns), np.ptp(rows)) + 1
    scale = generator.uniform(*_SIDES) / extent
    matrix = cv2.getRotationMatrix2D(centre, generator.uniform(-_TURN, _TURN), scale)
    matrix[:, 2] += CANVAS / 2 - np.array(centre)
    large = cv2.warpAffine(digit.astype(np.float32) / 16, matrix, (CANVAS, CANVAS), flags=cv2.INTER_CUBIC)
    opacity = _smoothstep(large, 0.3, 0.6)
    ys, xs = np.nonzero(opacity >= _VISIBLE)
    return opacity[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def _smoothstep(values: Float[np.ndarray, "h w"], low: float, high: float) -> Float[np.ndarray, "h w"]:
    """Maps low..high smoothly to 0..1."""
    ramp = np.clip((values - low) / (high - low), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _ground(generator: np.random.Generator) -> Float[np.ndarray, "64 64 3"]:
    """Paints a dark ground: a slant gradient of one colour to another, soft clouds and a little grain."""
    first, second = generator.choice(_GROUNDS, 2, replace=False)
    angle = generator.uniform(0, 2 * math.pi)
    steps = np.linspace(-0.5, 0.5, CANVAS, dtype=np.float32)
    slope = 0.5 + 0.7 * (math.cos(angle) * steps[None] + math.sin(angle) * steps[:, None])
    canvas = first + np.clip(slope, 0, 1)[..., None] * (second - first)
    clouds = generator.uniform(0.6, 1.25, (5, 5)).astype(np.float32)
    canvas *= cv2.resize(clouds, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)[..., None]
    return canvas + 3 * generator.standard_normal((CANVAS, CANVAS, 1), np.float32)


def _add_strokes(
    generator: np.random.Generator,
    opacity: Float[np.ndarray, "side side"],
    ink_index: UInt8[np.ndarray, "side side"],
    taken: Bool[np.ndarray, "side side"],
) -> None:
    """Puts strokes where nothing is yet, into arrays that are the canvas with a margin around it."""
    strokes, surroundings = _stroke_bank()
    wanted = generator.integers(*_STROKES, endpoint=True)
    for x, y, choice in generator.integers(0, (CANVAS, CANVAS, len(strokes)), (40, 3)):
        if taken[y + _MARGIN, x + _MARGIN]:  # spares most of the closer looks
            continue
        window = slice(y, y + _TILE), slice(x, x + _TILE)
        if (taken[window] & surroundings[choice]).any():
            continue
        opacity[window] += strokes[choice]
        ink_index[window][surroundings[choice]] = generator.integers(len(_INKS))
        taken[window] |= surroundings[choice]
        wanted -= 1
        if not wanted:
            return


@functools.cache
def _stroke_bank() -> tuple[Float[np.ndarray, "n side side"], Bool[np.ndarray, "n side side"]]:
    """Draws strokes that are no digits: their opacity, and the pixels that they and a narrow seam around them take."""
    generator = np.random.default_rng(0)
    strokes = np.stack([_draw_stroke(generator, _PATHS[i % len(_PATHS)]) for i in range(512)])
    around = np.ones((2 * _CLEARANCE + 1,) * 2, np.uint8)
    surroundings = np.stack([cv2.dilate(stroke, around) > 0 for stroke in strokes])
    return strokes, surroundings


def _draw_stroke(
    generator: np.random.Generator, paths: list[Float[np.ndarray, "p 2"]]
) -> Float[np.ndarray, "side side"]:
    """Turns and enlarges a path and draws it in the middle of a square; larger and then averaged, for smooth edges."""
    angle = generator.uniform(0.3, 1.1) * generator.choice([-1, 1])  # never upright, as a one is
    turned = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned *= generator.uniform(*_LENGTHS)
    points = [np.rint((path @ turned + _MARGIN) * (_FINER * 2**_SUBPIXEL)).astype(np.int32) for path in paths]
    fine = np.zeros((_FINER * _TILE, _FINER * _TILE), np.uint8)
    cv2.polylines(fine, points, False, 255, round(_FINER * generator.uniform(*_WIDTHS)), cv2.LINE_8, _SUBPIXEL)
    return cv2.resize(fine, (_TILE, _TILE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
