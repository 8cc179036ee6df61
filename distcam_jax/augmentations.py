"""The training augmentation of one image and its boxes, given as plain values as they stand in a config.

The geometry comes first (`distcam_jax.geometry`), then the colour jitter, then the random erasing
(`distcam_jax.photometric`). What is off draws no random numbers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from distcam_jax.geometry import (
    check_padding,
    check_ratio,
    check_scale,
    flip_horizontal,
    pad_and_crop,
    random_resized_crop,
    resize_image,
)
from distcam_jax.photometric import check_color_jitter, check_random_erasing, color_jitter, random_erasing

_COMMON = {"flip": True, "color_jitter": None, "random_erasing": None}

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "random_resized_crop": {"scale": (0.35, 1.0), "ratio": (3 / 4, 4 / 3), **_COMMON},
    "pad_crop": {"padding": 4, **_COMMON},
}
"""The kinds of training augmentation with their options and the values that stand where an option is left out."""


def augment(
    image: UInt8[np.ndarray, "h w 3"],
    boxes: Float[np.ndarray, "m 4"],
    generator: np.random.Generator,
    size: tuple[int, int],
    augmentation: Mapping[str, Any] | None,
) -> tuple[UInt8[np.ndarray, "height width 3"], Float32[np.ndarray, "n 4"]]:
    """Applies an augmentation given as plain values, as it stands in a config.

    Args:
      image: uint8 `[h, w, 3]`.
      boxes: `[m, 4]`, pixels of `image`, exclusive end.
      generator: the source of randomness.
      size: height and width of the result in pixels.
      augmentation: None resizes straight to `size`. Otherwise `kind` and its options, see `AUGMENTATIONS`:
        `random_resized_crop` (`scale`, `ratio`) or `pad_crop` (resize to `size`, then shift by up to `padding`
        pixels). Both take `flip`, which mirrors every second image on average, `color_jitter`, None or the options of
        `distcam_jax.photometric.color_jitter`, and `random_erasing`, None or those of
        `distcam_jax.photometric.random_erasing`.

    Returns:
      The image `[height, width, 3]` and the boxes `[n, 4]` in its pixels, n <= m.

    Raises:
      ValueError: an unknown kind or option, or an argument of the wrong shape, dtype or range.

    Examples:
      >>> image, generator = np.zeros((40, 60, 3), np.uint8), np.random.default_rng(0)
      >>> augment(image, np.zeros((0, 4), np.float32), generator, (32, 16), {"kind": "pad_crop"})[0].shape
      (32, 16, 3)
    """
    if augmentation is None:
        return resize_image(image, boxes, size)
    options = check_augmentation(augmentation)
    if options["kind"] == "random_resized_crop":
        crop_options = {"scale": options["scale"], "ratio": options["ratio"]}
        image, boxes = random_resized_crop(image, boxes, generator, size, **crop_options)
    else:
        image, boxes = pad_and_crop(*resize_image(image, boxes, size), generator, padding=options["padding"])
    if options["flip"] and generator.random() < 0.5:
        image, boxes = flip_horizontal(image, boxes)
    if options["color_jitter"] is not None:
        image = color_jitter(image, generator, **options["color_jitter"])
    if options["random_erasing"] is not None:
        image = random_erasing(image, generator, **options["random_erasing"])
    return image, boxes


def check_augmentation(augmentation: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the values of an augmentation and fills in the options that are left out.

    Args:
      augmentation: `kind` and its options, see `AUGMENTATIONS`.

    Returns:
      `kind` and every option of that kind, as plain floats and integers; may be checked again.

    Raises:
      ValueError: an unknown kind or option (the valid ones are listed), or a value out of range.

    Examples:
      >>> check_augmentation({"kind": "pad_crop", "padding": 10})
      {'kind': 'pad_crop', 'padding': 10, 'flip': True, 'color_jitter': None, 'random_erasing': None}
    """
    given = dict(augmentation)
    kind = given.pop("kind", None)
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augmentation['kind'] must be one of {sorted(AUGMENTATIONS)}, got {kind!r}")
    defaults = AUGMENTATIONS[kind]
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(f"augmentation {kind!r} has no option {unknown}; its options are {sorted(defaults)}")
    options = {**defaults, **given}
    return {"kind": kind, **{name: _OPTION_CHECKS[name](value) for name, value in options.items()}}


def _check_flip(flip: Any) -> bool:
    if not isinstance(flip, bool):
        raise ValueError(f"flip must be True or False, got {flip!r}")
    return flip


_OPTION_CHECKS: dict[str, Callable[[Any], Any]] = {
    "scale": check_scale,
    "ratio": check_ratio,
    "padding": check_padding,
    "flip": _check_flip,
    "color_jitter": lambda options: None if options is None else check_color_jitter(options),
    "random_erasing": lambda options: None if options is None else check_random_erasing(options),
}
