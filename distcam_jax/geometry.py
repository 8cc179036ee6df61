"""Geometry of one image and its boxes on the host: resize, crop, pad and flip with OpenCV.

The contract of every function here:

* `image` is uint8 `[h, w, 3]` and is never changed in place; where nothing is to be done, it is the result itself.
* `boxes` is float `[m, 4]` of x0, y0, x1, y1 in pixels with an exclusive end; `np.zeros((0, 4), np.float32)` where
  there are none. Boxes move with the pixels, are clipped to the picture, and are dropped where nothing of them is left.
* The result is `(image, boxes)`, uint8 and float32.
* `size` is `(height, width)` of the result. Random functions draw from a `np.random.Generator` only.
"""

import math
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

CROP_ATTEMPTS = 10


def resize_image(
    image: UInt8[np.ndarray, "h w 3"], boxes: Float[np.ndarray, "m 4"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "height width 3"], Float32[np.ndarray, "n 4"]]:
    """Resizes straight to `size`; the aspect is not kept.

    Bilinear with half-pixel centres. Where an axis shrinks by a factor f, plain bilinear would skip pixels, so that it
    is smoothed first: by the taps (1 - 1/f)/2, 1/f, (1 - 1/f)/2, and where f is about 3 or more by averaging whole
    blocks before that. Together this comes close to the triangle filter of Pillow's bilinear resize, on which the
    published ImageNet weights rest: closer than the area average (`INTER_AREA`) wherever f is above 1.3, about as close
    below, and more than twice as fast. `benchmarks/RESULTS.md` has the figures.

    Args:
      image: uint8 `[h, w, 3]`.
      boxes: `[m, 4]`, pixels of `image`, exclusive end.
      size: height and width of the result in pixels.

    Returns:
      The image `[height, width, 3]` and the boxes `[n, 4]` in its pixels, n <= m.

    Raises:
      ValueError: an argument of the wrong shape or dtype, or a size below 1.

    Examples:
      >>> image = np.zeros((4, 8, 3), np.uint8)
      >>> resized, boxes = resize_image(image, np.array([[2.0, 1.0, 4.0, 3.0]], np.float32), (8, 8))
      >>> resized.shape, boxes.tolist()
      ((8, 8, 3), [[2.0, 2.0, 4.0, 6.0]])
    """
    _check_image(image, boxes)
    height, width = check_size(size, "size")
    rows, columns = image.shape[:2]
    factors = np.array([width / columns, height / rows] * 2)
    return np.ascontiguousarray(_resample(image, height, width)), _clip_boxes(boxes * factors, height, width)


def center_crop(
    image: UInt8[np.ndarray, "h w 3"],
    boxes: Float[np.ndarray, "m 4"],
    size: tuple[int, int],
    *,
    fraction: float = 0.875,
) -> tuple[UInt8[np.ndarray, "height width 3"], Float32[np.ndarray, "n 4"]]:
    """Resizes with the aspect kept, so that `size` covers `fraction` of the tighter axis, and cuts out the centre.

    With the defaults and `size` 224: the shorter side becomes 256, the longer one is rounded down, and the central
    224 x 224 window is cut at a rounded offset, as the published ImageNet evaluations do.

    Args:
      image: uint8 `[h, w, 3]`; a smaller image than `size` is enlarged.
      boxes: `[m, 4]`, pixels of `image`, exclusive end.
      size: height and width of the result in pixels.
      fraction: part of the tighter axis that stays, in (0, 1].

    Returns:
      The image `[height, width, 3]` and the boxes `[n, 4]` in its pixels, n <= m.

    Raises:
      ValueError: an argument of the wrong shape or dtype, a size below 1, or a fraction outside (0, 1].

    Examples:
      >>> image = np.zeros((300, 600, 3), np.uint8)
      >>> cropped, boxes = center_crop(image, np.array([[0.0, 0.0, 600.0, 300.0]], np.float32), (224, 224))
      >>> cropped.shape, boxes.tolist()
      ((224, 224, 3), [[0.0, 0.0, 224.0, 224.0]])
    """
    _check_image(image, boxes)
    height, width = check_size(size, "size")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction!r}")
    rows, columns = image.shape[:2]
    whole_height, whole_width = round(height / fraction), round(width / fraction)
    # The axis that needs the larger factor is exact; the other one is rounded down and still covers its target.
    if whole_height * columns >= whole_width * rows:
        whole_width = whole_height * columns // rows
    else:
        whole_height = whole_width * rows // columns
    resized, boxes = resize_image(image, boxes, (whole_height, whole_width))
    left, top = round((whole_width - width) / 2), round((whole_height - height) / 2)
    cropped, boxes = _cut(resized, boxes, (left, top, left + width, top + height))
    return np.ascontiguousarray(cropped), boxes


def random_resized_crop(
    image: UInt8[np.ndarray, "h w 3"],
    boxes: Float[np.ndarray, "m 4"],
    generator: np.random.Generator,
    size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.35, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[UInt8[np.ndarray, "height width 3"], Float32[np.ndarray, "n 4"]]:
    """Cuts out a random window of random area and aspect and resizes it to `size`.

    The window's area is uniform in `scale`, the logarithm of its aspect (width / height) is uniform in `ratio`; the
    first of 10 draws that fits the image is placed uniformly. Where none fits, it is the largest central window with
    an aspect in `ratio`.

    Args:
      image: uint8 `[h, w, 3]`.
      boxes: `[m, 4]`, pixels of `image`, exclusive end.
      generator: the source of randomness.
      size: height and width of the result in pixels.
      scale: smallest and largest area of the window as parts of the image's, in (0, 1].
      ratio: smallest and largest aspect of the window, both positive.

    Returns:
      The image `[height, width, 3]` and the boxes `[n, 4]` in its pixels, n <= m.

    Raises:
      ValueError: an argument of the wrong shape, dtype or range.

    References:
      Szegedy et al., Going deeper with convolutions, CVPR 2015, section 6.

    Examples:
      >>> image = np.zeros((40, 60, 3), np.uint8)
      >>> boxes = np.array([[0.0, 0.0, 60.0, 40.0]], np.float32)
      >>> cropped, boxes = random_resized_crop(image, boxes, np.random.default_rng(0), (32, 32))
      >>> cropped.shape, boxes.tolist()
      ((32, 32, 3), [[0.0, 0.0, 32.0, 32.0]])
    """
    _check_image(image, boxes)
    check_scale(scale)
    check_ratio(ratio)
    window = _sample_window(generator, image.shape[0], image.shape[1], scale, ratio)
    return resize_image(*_cut(image, boxes, window), size)


def pad_and_crop(
    image: UInt8[np.ndarray, "h w 3"],
    boxes: Float[np.ndarray, "m 4"],
    generator: np.random.Generator,
    *,
    padding: int = 4,
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "n 4"]]:
    """Shifts the image by up to `padding` pixels along each axis; black comes in at the edges, the size stays.

    Args:
      image: uint8 `[h, w, 3]`.
      boxes: `[m, 4]`, pixels of `image`, exclusive end.
      generator: the source of randomness.
      padding: largest shift in pixels, at least 0; every shift in `-padding .. padding` is equally likely.

    Returns:
      The image `[h, w, 3]` and the boxes `[n, 4]` in its pixels, n <= m.

    Raises:
      ValueError: an argument of the wrong shape or dtype, or a negative padding.

    Examples:
      >>> image = np.zeros((32, 32, 3), np.uint8)
      >>> shifted, _ = pad_and_crop(image, np.zeros((0, 4), np.float32), np.random.default_rng(0), padding=4)
      >>> shifted.shape
      (32, 32, 3)
    """
    _check_image(image, boxes)
    check_padding(padding)
    rows, columns = image.shape[:2]
    left, top = (int(offset) for offset in generator.integers(0, 2 * padding + 1, size=2))
    padded = cv2.copyMakeBorder(image, padding, padding, padding, padding, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    shifted, boxes = _cut(np.asarray(padded, np.uint8), boxes + padding, (left, top, left + columns, top + rows))
    return np.ascontiguousarray(shifted), boxes


def flip_horizontal(
    image: UInt8[np.ndarray, "h w 3"], boxes: Float[np.ndarray, "m 4"]
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "n 4"]]:
    """Mirrors left and right.

    Args:
      image: uint8 `[h, w, 3]`.
      boxes: `[m, 4]`, pixels of `image`, exclusive end.

    Returns:
      The image `[h, w, 3]` and the boxes `[n, 4]` in its pixels, n <= m.

    Raises:
      ValueError: an argument of the wrong shape or dtype.

    Examples:
      >>> image = np.zeros((4, 10, 3), np.uint8)
      >>> flip_horizontal(image, np.array([[0.0, 1.0, 3.0, 2.0]], np.float32))[1].tolist()
      [[7.0, 1.0, 10.0, 2.0]]
    """
    _check_image(image, boxes)
    rows, columns = image.shape[:2]
    mirrored = np.stack([columns - boxes[:, 2], boxes[:, 1], columns - boxes[:, 0], boxes[:, 3]], axis=1)
    return np.asarray(cv2.flip(image, 1), np.uint8), _clip_boxes(mirrored, rows, columns)


def check_size(size: int | tuple[int, int], argument: str = "image_size") -> tuple[int, int]:
    """Checks a picture size and gives it as height and width.

    Args:
      size: one side of a square, or height and width, in pixels, each at least 1.
      argument: the name that an error shows.

    Returns:
      Height and width.

    Raises:
      ValueError: anything else.

    Examples:
      >>> check_size(224), check_size((256, 128))
      ((224, 224), (256, 128))
    """
    sides: Any = (size, size) if _is_integer(size) else size
    if not (isinstance(sides, tuple | list) and len(sides) == 2 and all(_is_integer(s) and s >= 1 for s in sides)):
        raise ValueError(f"{argument} must be a positive integer or (height, width) of such, got {size!r}")
    return int(sides[0]), int(sides[1])


def check_scale(scale: Any, argument: str = "scale") -> tuple[float, float]:
    """Checks a range of areas, given as parts of the image's area.

    Args:
      scale: smallest and largest part, `0 < a <= b <= 1`.
      argument: the name that an error shows.

    Returns:
      The two as floats.

    Raises:
      ValueError: anything else.

    Examples:
      >>> check_scale([0.08, 1])
      (0.08, 1.0)
    """
    if not (_is_range(scale) and scale[1] <= 1):
        raise ValueError(
            f"{argument} must be (smallest, largest) part of the image's area, 0 < a <= b <= 1, got {scale!r}"
        )
    return float(scale[0]), float(scale[1])


def check_ratio(ratio: Any, argument: str = "ratio") -> tuple[float, float]:
    """Checks a range of aspects, that is of quotients of two sides.

    Args:
      ratio: smallest and largest aspect, `0 < a <= b`, both finite.
      argument: the name that an error shows.

    Returns:
      The two as floats.

    Raises:
      ValueError: anything else.

    Examples:
      >>> check_ratio((0.75, 2))
      (0.75, 2.0)
    """
    if not _is_range(ratio):
        raise ValueError(f"{argument} must be (smallest, largest) aspect, 0 < a <= b, got {ratio!r}")
    return float(ratio[0]), float(ratio[1])


def check_padding(padding: Any) -> int:
    """Checks a largest shift in pixels.

    Args:
      padding: an integer of at least 0.

    Returns:
      It.

    Raises:
      ValueError: anything else.

    Examples:
      >>> check_padding(4)
      4
    """
    if not (_is_integer(padding) and padding >= 0):
        raise ValueError(f"padding must be a number of pixels, at least 0, got {padding!r}")
    return int(padding)


def _resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes as `resize_image` says; an image of the right size is the result itself."""
    if image.shape[:2] == (height, width):
        return image
    # Whole blocks leave a factor between 1.5 and 3, for which three taps do.
    rows, columns = (max(1, round(old / new / 2)) for old, new in zip(image.shape[:2], (height, width), strict=True))
    if rows > 1 or columns > 1:
        smaller = image.shape[1] // columns, image.shape[0] // rows
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    vertical, horizontal = _shrinking_taps(image.shape[0] / height), _shrinking_taps(image.shape[1] / width)
    if vertical[0] or horizontal[0]:
        image = cv2.sepFilter2D(image, -1, horizontal, vertical, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _shrinking_taps(factor: float) -> np.ndarray:
    """Gives the three taps before a bilinear resize that shrinks by `factor`; 0, 1, 0 where it enlarges.

    They are multiples of 1/256, with which OpenCV computes: any others would change the brightness.
    """
    side = round(128 * (1 - 1 / max(1.0, factor))) / 256
    return np.array([side, 1 - 2 * side, side], np.float32)


def _sample_window(
    generator: np.random.Generator, rows: int, columns: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Gives x0, y0, x1, y1 of a random window inside an image of `rows` x `columns` pixels."""
    for _ in range(CROP_ATTEMPTS):
        area = rows * columns * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= width <= columns and 1 <= height <= rows:
            left = int(generator.integers(0, columns - width + 1))
            top = int(generator.integers(0, rows - height + 1))
            return left, top, left + width, top + height
    aspect = min(max(columns / rows, ratio[0]), ratio[1])
    width, height = max(1, min(columns, round(rows * aspect))), max(1, min(rows, round(columns / aspect)))
    left, top = (columns - width) // 2, (rows - height) // 2
    return left, top, left + width, top + height


def _cut(image: np.ndarray, boxes: np.ndarray, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the window x0, y0, x1, y1, which lies inside the image; the result is a view, which OpenCV can resize."""
    left, top, right, bottom = window
    moved = boxes - np.array([left, top, left, top], boxes.dtype)
    return image[top:bottom, left:right], _clip_boxes(moved, bottom - top, right - left)


def _clip_boxes(boxes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Clips boxes to the picture and drops those of which nothing is left."""
    if not len(boxes):
        return np.zeros((0, 4), np.float32)
    clipped = np.clip(boxes, 0, np.array([columns, rows] * 2)).astype(np.float32)
    kept = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    return clipped[kept]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_range(value: Any) -> bool:
    """Says whether `value` is two finite numbers in ascending order, the first above 0."""
    numbers = isinstance(value, tuple | list) and len(value) == 2
    numbers = numbers and all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in value)
    return bool(numbers and 0 < value[0] <= value[1] < math.inf)


def _check_image(image: np.ndarray, boxes: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [h, w, 3], not empty, got {image.dtype} {list(image.shape)}")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind != "f":
        raise ValueError(f"boxes must be float [m, 4], got {boxes.dtype} {list(boxes.shape)}")
