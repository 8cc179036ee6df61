"""What changes the colours of an image and leaves its geometry: colour jitter and random erasing, on the host.

The contract of every function here: `image` is RGB uint8 `[h, w, 3]` and is never changed in place; the result is RGB
uint8 of the same shape. Boxes stay as they are. Random functions draw from a `np.random.Generator` only, and draw
nothing that they do not need.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from distcam_jax.geometry import check_ratio, check_scale

COLOR_JITTER: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
"""The options of `color_jitter` and the values that stand where one is left out: 0 leaves that quality alone."""

RANDOM_ERASING: dict[str, Any] = {"probability": 0.5, "area": (0.02, 0.4), "aspect": (0.3, 10 / 3), "fill": "random"}
"""The options of `random_erasing` and the values that stand where one is left out, those of its paper."""

ERASING_ATTEMPTS = 100

Strength = int | float | tuple | list | None


def adjust_brightness(image: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    """Multiplies every value by a factor.

    Args:
      image: RGB uint8 `[h, w, 3]`.
      factor: at least 0; 0 gives black, 1 the image.

    Returns:
      RGB uint8 `[h, w, 3]`, rounded and clipped.

    Examples:
      >>> adjust_brightness(np.full((1, 1, 3), 100, np.uint8), 1.5).tolist()
      [[[150, 150, 150]]]
    """
    return _map_values(image, factor * np.arange(256.0))


def adjust_contrast(image: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    """Moves every value away from the mean luma of the whole image, or towards it.

    Args:
      image: RGB uint8 `[h, w, 3]`.
      factor: at least 0; 0 gives an even grey, 1 the image.

    Returns:
      RGB uint8 `[h, w, 3]`, rounded and clipped.

    Examples:
      >>> adjust_contrast(np.array([[[100] * 3, [200] * 3]], np.uint8), 0.5)[0, :, 0].tolist()
      [125, 175]
    """
    mean = float(_luma(image).mean())
    return _map_values(image, mean + factor * (np.arange(256.0) - mean))


def adjust_saturation(image: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    """Moves every pixel away from the grey of its own luma, or towards it.

    Args:
      image: RGB uint8 `[h, w, 3]`.
      factor: at least 0; 0 gives a grey image, 1 the image.

    Returns:
      RGB uint8 `[h, w, 3]`, rounded and clipped.

    Examples:
      >>> adjust_saturation(np.array([[[255, 0, 0]]], np.uint8), 0.0).tolist()
      [[[76, 76, 76]]]
    """
    grey = cv2.cvtColor(_luma(image), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(image, factor, grey, 1 - factor, 0), np.uint8)


def adjust_hue(image: UInt8[np.ndarray, "h w 3"], turn: float) -> UInt8[np.ndarray, "h w 3"]:
    """Turns the hue of every pixel on the circle of the HSV model; saturation and value stay.

    Computed in float32: with 8 bits for each of hue, saturation and value, an image comes back changed by several
    levels even where the hue is not turned.

    Args:
      image: RGB uint8 `[h, w, 3]`.
      turn: part of a full circle, from -0.5 to 0.5; 1/3 makes red green.

    Returns:
      RGB uint8 `[h, w, 3]`, rounded.

    Examples:
      >>> adjust_hue(np.array([[[200, 0, 0]]], np.uint8), 1 / 3).tolist()
      [[[0, 200, 0]]]
    """
    hsv = cv2.cvtColor(np.divide(image, np.float32(255), dtype=np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(360 * turn)) % np.float32(360)
    return np.asarray(cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), alpha=255), np.uint8)


_ADJUSTMENTS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def color_jitter(
    image: UInt8[np.ndarray, "h w 3"],
    generator: np.random.Generator,
    *,
    brightness: Strength = 0.0,
    contrast: Strength = 0.0,
    saturation: Strength = 0.0,
    hue: Strength = 0.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Changes brightness, contrast, saturation and hue by random factors, in random order.

    The options mean what they mean in torchvision's `ColorJitter`. The image is rounded after each of the four.

    Args:
      image: RGB uint8 `[h, w, 3]`.
      generator: the source of randomness.
      brightness: s for a factor uniform in `[max(0, 1 - s), 1 + s]`, or the (smallest, largest) factor; 0 is off.
      contrast: the same for the contrast.
      saturation: the same for the saturation.
      hue: s in 0 to 0.5 for a turn uniform in `[-s, s]`, or the (smallest, largest) turn, each in -0.5 to 0.5; in
        parts of the circle.

    Returns:
      RGB uint8 `[h, w, 3]`.

    Raises:
      ValueError: an option out of range.

    Examples:
      >>> image = np.full((2, 2, 3), 100, np.uint8)
      >>> color_jitter(image, np.random.default_rng(0), brightness=(1.2, 1.2)).max()
      np.uint8(120)
    """
    given = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    ranges = [(_ADJUSTMENTS[name], bounds) for name, bounds in check_color_jitter(given).items() if bounds is not None]
    for i in generator.permutation(len(ranges)) if len(ranges) > 1 else range(len(ranges)):
        adjust, bounds = ranges[i]
        image = adjust(image, generator.uniform(*bounds))
    return image


def random_erasing(
    image: UInt8[np.ndarray, "h w 3"],
    generator: np.random.Generator,
    *,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 10 / 3),
    fill: Any = "random",
) -> UInt8[np.ndarray, "h w 3"]:
    """Paints over one random rectangle, at times.

    Area and aspect are uniform in their ranges; the first of 100 draws that fits the image is placed uniformly. Where
    none fits, the image stays.

    Args:
      image: RGB uint8 `[h, w, 3]`.
      generator: the source of randomness.
      probability: how often a rectangle is erased at all.
      area: smallest and largest area of the rectangle as parts of the image's, in (0, 1].
      aspect: smallest and largest height / width of the rectangle, both positive.
      fill: `"random"` for noise, uniform and independent for every value; or one number, or one for each of red, green
        and blue, in [0, 1], the units of the images that the pipeline gives out. A recipe that erases after the
        normalisation with a value v has its like here in `fill = v * std + mean`: 0.596, 0.558, 0.497 for a v of
        0.485, 0.456, 0.406, where mean and std are ImageNet's. `fill` is rounded to a multiple of 1/255.

    Returns:
      RGB uint8 `[h, w, 3]`.

    Raises:
      ValueError: an option out of range.

    References:
      Zhong et al., Random erasing data augmentation, AAAI 2020, Algorithm 1.

    Examples:
      >>> image = np.full((20, 20, 3), 255, np.uint8)
      >>> erased = random_erasing(image, np.random.default_rng(0), probability=1.0, area=(0.25, 0.25), fill=0.0)
      >>> bool(90 <= (erased[..., 0] == 0).sum() <= 110)
      True
    """
    given = {"probability": probability, "area": area, "aspect": aspect, "fill": fill}
    options = check_random_erasing(given)
    if generator.random() >= options["probability"]:
        return image
    rows, columns = image.shape[:2]
    for _ in range(ERASING_ATTEMPTS):
        pixels = rows * columns * generator.uniform(*options["area"])
        height_over_width = generator.uniform(*options["aspect"])
        height, width = round(math.sqrt(pixels * height_over_width)), round(math.sqrt(pixels / height_over_width))
        if 1 <= height <= rows and 1 <= width <= columns:
            top = int(generator.integers(0, rows - height + 1))
            left = int(generator.integers(0, columns - width + 1))
            erased = image.copy()
            erased[top : top + height, left : left + width] = _fill_values(generator, options["fill"], height, width)
            return erased
    return image


def check_color_jitter(options: Mapping[str, Any]) -> dict[str, tuple[float, float] | None]:
    """Checks the options of `color_jitter`.

    Args:
      options: some of `brightness`, `contrast`, `saturation` and `hue`.

    Returns:
      All four, each as the (smallest, largest) factor or turn, or None where it is off; may be checked again.

    Raises:
      ValueError: an unknown option (the valid ones are listed), or a value out of range.

    Examples:
      >>> check_color_jitter({"brightness": 0.25})
      {'brightness': (0.75, 1.25), 'contrast': None, 'saturation': None, 'hue': None}
    """
    given = _fill_in("color_jitter", options, COLOR_JITTER)
    return {name: _check_strength(name, value) for name, value in given.items()}


def check_random_erasing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the options of `random_erasing` and fills in those that are left out.

    Args:
      options: some of `probability`, `area`, `aspect` and `fill`.

    Returns:
      All four as plain floats; `fill` as three of them or `"random"`.

    Raises:
      ValueError: an unknown option (the valid ones are listed), or a value out of range.

    Examples:
      >>> check_random_erasing({"aspect": (0.5, 2), "fill": 0})
      {'probability': 0.5, 'area': (0.02, 0.4), 'aspect': (0.5, 2.0), 'fill': (0.0, 0.0, 0.0)}
    """
    given = _fill_in("random_erasing", options, RANDOM_ERASING)
    probability = given["probability"]
    if not (_is_number(probability) and 0 <= probability <= 1):
        raise ValueError(f"random_erasing['probability'] must lie in [0, 1], got {probability!r}")
    return {
        "probability": float(probability),
        "area": check_scale(given["area"], "random_erasing['area']"),
        "aspect": check_ratio(given["aspect"], "random_erasing['aspect']"),
        "fill": _check_fill(given["fill"]),
    }


def _fill_in(argument: str, options: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        raise ValueError(f"{argument} must be None or a dict of options {sorted(defaults)}, got {options!r}")
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ValueError(f"{argument} has no option {unknown}; its options are {sorted(defaults)}")
    return {**defaults, **options}


def _check_strength(name: str, value: Any) -> tuple[float, float] | None:
    """Gives the (smallest, largest) factor or turn, or None where nothing would change."""
    low, high, neutral = (-0.5, 0.5, 0.0) if name == "hue" else (0.0, math.inf, 1.0)
    if value is None:
        return None
    bounds = value
    if _is_number(value) and value >= 0:
        bounds = (-value, value) if name == "hue" else (max(0.0, 1 - value), 1 + value)
    pair = isinstance(bounds, tuple | list) and len(bounds) == 2 and all(map(_is_number, bounds))
    if not (pair and low <= bounds[0] <= bounds[1] <= high):
        wants = "a number in [0, 0.5] or two in [-0.5, 0.5]" if name == "hue" else "a number of at least 0 or two"
        raise ValueError(f"color_jitter[{name!r}] must be {wants}, the smaller first, got {value!r}")
    return None if bounds[0] == bounds[1] == neutral else (float(bounds[0]), float(bounds[1]))


def _check_fill(fill: Any) -> tuple[float, ...] | str:
    if isinstance(fill, str) and fill == "random":
        return "random"
    values = [fill] * 3 if _is_number(fill) else fill
    if not (
        isinstance(values, tuple | list) and len(values) == 3 and all(_is_number(v) and 0 <= v <= 1 for v in values)
    ):
        raise ValueError(f"random_erasing['fill'] must be 'random', or one or three numbers in [0, 1], got {fill!r}")
    return tuple(map(float, values))


def _fill_values(generator: np.random.Generator, fill: tuple[float, ...] | str, height: int, width: int) -> np.ndarray:
    if isinstance(fill, str):
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.rint(255 * np.array(fill)).astype(np.uint8)


def _map_values(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Replaces every value by its entry in a table of 256, rounded and clipped."""
    return np.asarray(cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8)), np.uint8)


def _luma(image: np.ndarray) -> np.ndarray:
    """Gives 0.299 red + 0.587 green + 0.114 blue, uint8 `[h, w]`."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
