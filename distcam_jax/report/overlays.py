"""Heatmaps and boxes drawn on images.

Images are `[h, w, 3]`, RGB, uint8 or floats in [0, 1]; results are uint8 and large enough to be looked at. Boxes are
`x0, y0, x1, y1` in pixels, exclusive end. Nothing here changes its arguments.
"""

import base64
import functools
from collections.abc import Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from jaxtyping import Array, Num, Shaped, UInt8

DISPLAY_SHORT_SIDE = 320  # smaller images are enlarged to this
DISPLAY_LONG_SIDE = 640  # larger ones are shrunk to this
TRUE_BOX_COLOR = (255, 255, 255)  # white and magenta: the two that the colour map does not use
DERIVED_BOX_COLOR = (255, 45, 215)
NO_HEAT = "no positive value"  # what stands under a map without heat
PIXEL_ART_SIDE = 32  # below this an image is shown pixel by pixel: interpolation would only invent detail


def display_size(height: int, width: int) -> tuple[int, int]:
    """Returns the height and width, in pixels, at which an image of this size is shown.

    Args:
        height: height of the image, at least 1.
        width: width of the image, at least 1.

    Returns:
        Height and width of the same aspect. The short side is at least 320 unless the long side would pass 640.

    Example:
        >>> display_size(64, 64), display_size(224, 224), display_size(1000, 2000)
        ((320, 320), (320, 320), (320, 640))
    """
    factor = min(max(1.0, DISPLAY_SHORT_SIDE / min(height, width)), DISPLAY_LONG_SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def to_uint8(image: Shaped[Array | np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an image to uint8; values outside [0, 1] are clipped and NaN becomes black.

    Args:
        image: uint8, or floats in [0, 1].

    Returns:
        A copy with values 0 to 255.

    Example:
        >>> to_uint8(np.array([[[0.0, 0.5, 1.0]]])).tolist()
        [[[0, 128, 255]]]
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"image must be [h, w, 3], got shape {pixels.shape}")
    if pixels.dtype == np.uint8:
        return pixels.copy()
    scaled = np.nan_to_num(pixels.astype(np.float32), posinf=1.0, neginf=0.0).clip(0.0, 1.0) * 255.0
    return np.floor(scaled + 0.5).astype(np.uint8)


def enlarge(
    image: Shaped[Array | np.ndarray, "h w 3"], *, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Resizes an image to the size at which it is shown.

    Args:
        image: uint8, or floats in [0, 1].
        size: height and width of the result; by default `display_size`.

    Returns:
        The image as uint8. Images under 32 pixels keep their square pixels, larger ones are interpolated.

    Example:
        >>> enlarge(np.zeros((64, 96, 3))).shape
        (320, 480, 3)
    """
    pixels = to_uint8(image)
    height, width = display_size(*pixels.shape[:2]) if size is None else size
    if height < pixels.shape[0]:
        interpolation = cv2.INTER_AREA
    elif min(pixels.shape[:2]) < PIXEL_ART_SIDE:
        interpolation = cv2.INTER_NEAREST
    else:
        interpolation = cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=interpolation), dtype=np.uint8)


def has_heat(heatmap: Shaped[Array | np.ndarray, "h w"]) -> bool:
    """Tells whether a heatmap can be shown: all values finite and at least one positive.

    Args:
        heatmap: values of any range.

    Returns:
        False for a map that protocol `ilsvrc` gives the empty box.

    Example:
        >>> has_heat(np.array([[-1.0, 2.0]])), has_heat(np.array([[-1.0, 0.0]])), has_heat(np.array([[np.nan, 2.0]]))
        (True, False, False)
    """
    values = np.asarray(heatmap).astype(np.float64)
    return bool(np.isfinite(values).all() and (values > 0).any())


def overlay_heatmap(
    image: Shaped[Array | np.ndarray, "h w 3"],
    heatmap: Shaped[Array | np.ndarray, "a b"],
    *,
    alpha: float = 0.5,
    colormap: str = "turbo",
    maximum: float | None = None,
    size: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Blends a heatmap over an image: red where it is high, blue where it is low.

    As in protocol `ilsvrc` the map is enlarged bilinearly and divided by its maximum; no minimum is subtracted, and
    negative values are shown as zero. A map without heat (see `has_heat`) gives the plain image.

    Args:
        image: uint8, or floats in [0, 1].
        heatmap: values of any range and any size, stretched over the whole image.
        alpha: weight of the heatmap's colours, from 0 to 1.
        colormap: name of a matplotlib colour map.
        maximum: the value that gets the colour of the maximum, so that several maps can share a scale; by default
            the map's own.
        size: height and width of the picture; by default `display_size`.

    Returns:
        The picture.

    Raises:
        ValueError: for an image that is not `[h, w, 3]`, a map that is not `[a, b]`, a bad alpha, or an unknown
            colour map.

    Example:
        >>> picture = overlay_heatmap(np.zeros((64, 64, 3)), np.array([[1.0, 0.0], [0.0, 0.0]]))
        >>> picture.shape, bool(picture[0, 0, 0] > picture[0, 0, 2]), bool(picture[-1, -1, 2] > picture[-1, -1, 0])
        ((320, 320, 3), True, True)
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    values = np.asarray(heatmap).astype(np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"heatmap must be [h, w] and not empty, got shape {values.shape}")
    picture = enlarge(image, size=size)
    table = color_table(colormap)
    if not has_heat(values):
        return picture
    height, width = picture.shape[:2]
    heat = np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR))
    top = heat.max() if maximum is None else maximum
    if not top > 0:
        return picture
    colors = table[np.rint((heat / top).clip(0.0, 1.0) * 255.0).astype(np.intp)]
    return np.rint((1.0 - alpha) * picture + alpha * colors).astype(np.uint8)


@functools.cache
def color_table(colormap: str = "turbo") -> UInt8[np.ndarray, "256 3"]:
    """Returns the 256 colours of a colour map, from low to high.

    Args:
        colormap: name of a matplotlib colour map.

    Returns:
        RGB values. Turbo is cut by 6 % at both ends, which are nearly black, so that low is blue and high is red.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> color_table("gray")[[0, 255]].tolist()
        [[0, 0, 0], [255, 255, 255]]
    """
    if colormap not in matplotlib.colormaps:
        raise ValueError(f"colormap {colormap!r} is unknown; valid are {', '.join(sorted(matplotlib.colormaps))}")
    ends = (0.06, 0.94) if colormap == "turbo" else (0.0, 1.0)
    table = matplotlib.colormaps[colormap](np.linspace(*ends, 256), bytes=True)[:, :3].copy()
    table.flags.writeable = False  # the cache hands out one and the same array
    return table


def draw_boxes(
    image: UInt8[np.ndarray, "h w 3"],
    boxes: Num[Array | np.ndarray, "m 4"] | Sequence[Any],
    color: tuple[int, int, int],
    *,
    thickness: int | None = None,
    halo: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws the outlines of boxes, inside the boxes.

    Args:
        image: the picture to draw on; it is not changed.
        boxes: `x0, y0, x1, y1` in pixels of this picture, exclusive end: the outline's last column is x1 − 1. Boxes
            are rounded and cut at the border; empty ones and those with a NaN are left out.
        color: RGB, 0 to 255.
        thickness: of the line in pixels; by default 1 for each 90 pixels of the short side, at least 1.
        halo: puts a thin dark line on either side, so that the outline shows on any background.

    Returns:
        A copy with the outlines.

    Raises:
        ValueError: for an image that is not uint8 `[h, w, 3]`, or boxes that are not `[m, 4]`.

    Example:
        >>> draw_boxes(np.zeros((4, 5, 3), np.uint8), [[1, 0, 4, 3]], (9, 9, 9), thickness=1, halo=False)[..., 0]
        array([[0, 9, 9, 9, 0],
               [0, 9, 0, 9, 0],
               [0, 9, 9, 9, 0],
               [0, 0, 0, 0, 0]], dtype=uint8)
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image must be uint8 [h, w, 3], got {image.dtype} {image.shape}")
    corners = np.asarray(boxes, dtype=np.float64)
    if corners.size and (corners.ndim != 2 or corners.shape[-1] != 4):
        raise ValueError(f"boxes must be [m, 4], got shape {corners.shape}")
    height, width = image.shape[:2]
    thickness = max(1, round(min(height, width) / 90)) if thickness is None else thickness
    picture = image.copy()
    for box in corners.reshape(-1, 4):
        if not np.isfinite(box).all():
            continue
        x0, y0, x1, y1 = np.rint(box.clip(0, [width, height, width, height])).astype(int)
        if x0 < x1 and y0 < y1:
            if halo:
                edge = max(1, thickness // 4)
                _outline(picture, (x0 - edge, y0 - edge, x1 + edge, y1 + edge), thickness + 2 * edge, (16, 16, 16), 0.6)
            _outline(picture, (x0, y0, x1, y1), thickness, color, 1.0)
    return picture


def _outline(picture, box, thickness, color, alpha) -> None:
    """Blends a frame of the given thickness, which lies inside the box, into the picture."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = box
    frame = np.zeros((height, width), dtype=bool)
    frame[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    frame[max(y0 + thickness, 0) : max(y1 - thickness, 0), max(x0 + thickness, 0) : max(x1 - thickness, 0)] = False
    picture[frame] = np.rint((1 - alpha) * picture[frame] + alpha * np.asarray(color, dtype=np.float64))


def data_uri(picture: UInt8[np.ndarray, "h w 3"], *, kind: str = "jpeg", quality: int = 88) -> str:
    """Encodes a picture as a `data:` address, so that a page needs no other file.

    Args:
        picture: RGB.
        kind: "jpeg", whose colours are kept at full resolution, or thin boxes would smear; "webp", half as large, for
            many small pictures without boxes; or "png", which keeps every pixel.
        quality: 1 to 100; a PNG has none.

    Returns:
        Text that starts with `data:image/` and the kind.

    Raises:
        ValueError: for an unknown kind.

    Example:
        >>> data_uri(np.zeros((8, 8, 3), np.uint8))[:23]
        'data:image/jpeg;base64,'
    """
    options = {
        "jpeg": [
            *(cv2.IMWRITE_JPEG_QUALITY, quality),
            *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        ],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
        "png": [],
    }
    if kind not in options:
        raise ValueError(f"kind {kind!r} is unknown; valid are {', '.join(options)}")
    done, encoded = cv2.imencode(f".{kind}", picture[..., ::-1], options[kind])
    if not done:
        raise ValueError(f"the picture of shape {picture.shape} could not be encoded as {kind}")
    return f"data:image/{kind};base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
