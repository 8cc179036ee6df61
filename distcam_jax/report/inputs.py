"""Checks of what a user hands to `write_report`: arrays of any framework, on the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DATA_FORMATS = ("NHWC", "NCHW")


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """The checked arguments of `write_report`, channels last, as NumPy arrays.

    Attributes:
        images: `[n, H, W, 3]`, uint8 or float32 in [0, 1].
        features: `[n, h, w, k]`, float32.
        prototypes: `[c, k]`, float32.
        class_names: c names.
        labels: `[n]`, or None.
        boxes: n arrays `[m, 4]`, empty where an image has none, or None.
        class_weights: `[c, k]`, float32, or None.
        file_names: n names.
    """

    images: np.ndarray
    features: np.ndarray
    prototypes: np.ndarray
    class_names: list[str]
    labels: np.ndarray | None
    boxes: list[np.ndarray] | None
    class_weights: np.ndarray | None
    file_names: list[str]


def check_inputs(
    images, features, prototypes, class_names, labels, boxes, class_weights, file_names, data_format: str
) -> ReportInputs:
    """Checks and converts the arguments of `write_report`.

    Args:
        images: as there.
        features: as there.
        prototypes: as there.
        class_names: as there.
        labels: as there.
        boxes: as there.
        class_weights: as there.
        file_names: as there.
        data_format: as there.

    Returns:
        The arguments, channels last.

    Raises:
        ValueError: naming the argument, what it got and what it wants.

    Example:
        >>> inputs = check_inputs(np.zeros((2, 3, 8, 8)), np.ones((2, 5, 4, 4)), np.ones((3, 5)), "abc",
        ...                       None, None, None, None, "NCHW")
        >>> inputs.images.shape, inputs.features.shape
        ((2, 8, 8, 3), (2, 4, 4, 5))
    """
    if data_format not in DATA_FORMATS:
        raise ValueError(f"data_format must be one of {', '.join(DATA_FORMATS)}, got {data_format!r}")
    images = _check_images(images, data_format)
    prototypes = _floats("prototypes", prototypes, 2, "[c, k]")
    features = _check_features(features, prototypes, len(images), data_format)
    names = [str(name) for name in class_names]
    if len(names) != len(prototypes):
        raise ValueError(f"class_names must have one name a prototype: got {len(names)} for {len(prototypes)}")
    empty = [name for name, row in zip(names, prototypes, strict=True) if not row.any()]
    if empty:
        raise ValueError(f"prototypes must not be all zeros, as those of {empty[:5]} are: leave empty classes out")
    if class_weights is not None:
        class_weights = _floats("class_weights", class_weights, 2, "[c, k]")
        if class_weights.shape != prototypes.shape:
            raise ValueError(
                f"class_weights must be shaped as prototypes, {prototypes.shape}, got {class_weights.shape}"
            )
    return ReportInputs(
        images,
        features,
        prototypes,
        names,
        _check_labels(labels, len(images), len(names)),
        _check_boxes(boxes, len(images)),
        class_weights,
        _check_file_names(file_names, len(images)),
    )


def _floats(name: str, values: Any, ndim: int, shape: str) -> np.ndarray:
    """Converts to float32 and checks the number of axes, that there is something, and that all is finite."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiuV" or (array.dtype.kind == "V" and array.dtype.names):  # V: bfloat16
        raise ValueError(f"{name} must be numbers, got dtype {array.dtype}")
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name} must be {shape} and not empty, got shape {array.shape}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        bad = np.unique(np.argwhere(~np.isfinite(array))[:, 0])
        raise ValueError(f"{name} must be finite, got NaN or infinite values at index {bad[:5].tolist()}")
    return array


def _check_images(images: Any, data_format: str) -> np.ndarray:
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise ValueError("images must be [n, H, W, 3], all of one size: resize them first") from error
    if array.ndim != 4 or not array.size:
        raise ValueError(f"images must be [n, H, W, 3] and not empty, got shape {array.shape}")
    axis = 1 if data_format == "NCHW" else 3
    if array.shape[axis] != 3:
        wanted = "[n, 3, H, W]" if axis == 1 else "[n, H, W, 3]"
        other = DATA_FORMATS[axis == 3]
        hint = f'; pass data_format="{other}" if images and features are {other}' if array.shape[4 - axis] == 3 else ""
        raise ValueError(f'images must be {wanted} with data_format="{data_format}", got shape {array.shape}{hint}')
    array = np.moveaxis(array, axis, 3)
    if array.dtype == np.uint8:
        return array
    array = _floats("images", array, 4, "[n, H, W, 3]")
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"images must be uint8 or floats in [0, 1], got values from {low:.3g} to {high:.3g}: "
            "undo the normalisation, or divide by 255"
        )
    return array


def _check_features(features: Any, prototypes: np.ndarray, n: int, data_format: str) -> np.ndarray:
    array = _floats("features", features, 4, "[n, h, w, k]")
    axis = 1 if data_format == "NCHW" else 3
    channels = prototypes.shape[1]
    if array.shape[axis] != channels:
        other = DATA_FORMATS[axis == 3]
        hint = (
            f'; pass data_format="{other}" if images and features are {other}'
            if channels == array.shape[4 - axis]
            else ""
        )
        raise ValueError(
            f"features and prototypes must have the same channels: got {array.shape[axis]} (axis {axis} of shape "
            f'{array.shape} with data_format="{data_format}") and {channels}{hint}'
        )
    if len(array) != n:
        raise ValueError(f"features must have one map an image: got {len(array)} for {n} images")
    return np.ascontiguousarray(np.moveaxis(array, axis, 3))


def _check_labels(labels: Any, n: int, classes: int) -> np.ndarray | None:
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise ValueError(f"labels must be [n] integers with n = {n}, got {array.dtype} {array.shape}")
    if array.min() < 0 or array.max() >= classes:
        raise ValueError(f"labels must be in [0, {classes}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _check_boxes(boxes: Sequence[Any] | None, n: int) -> list[np.ndarray] | None:
    if boxes is None:
        return None
    if len(boxes) != n:
        raise ValueError(f"boxes must have one array [m, 4] an image: got {len(boxes)} for {n} images")
    checked = []
    for index, image_boxes in enumerate(boxes):
        array = np.zeros((0, 4)) if image_boxes is None else np.asarray(image_boxes, dtype=np.float64)
        array = array.reshape(0, 4) if not array.size else array
        if array.ndim != 2 or array.shape[1] != 4:
            raise ValueError(f"boxes[{index}] must be [m, 4] of x0, y0, x1, y1, got shape {array.shape}")
        if not (np.isfinite(array).all() and (array[:, 2:] > array[:, :2]).all()):
            raise ValueError(f"boxes[{index}] must have x0 < x1 and y0 < y1 (exclusive end), got {array.tolist()}")
        checked.append(array)
    return checked


def _check_file_names(file_names: Sequence[Any] | None, n: int) -> list[str]:
    if file_names is None:
        return [f"image {index}" for index in range(n)]
    if len(file_names) != n:
        raise ValueError(f"file_names must have one name an image: got {len(file_names)} for {n} images")
    return [str(name) for name in file_names]
