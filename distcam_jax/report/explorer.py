"""The explorer: images, classes, methods and thresholds to choose from in the browser, and how the page holds them."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import cv2
import numpy as np
from jaxtyping import Array, Num, Shaped

from distcam_jax.report.overlays import (
    DERIVED_BOX_COLOR,
    NO_HEAT,
    PIXEL_ART_SIDE,
    TRUE_BOX_COLOR,
    color_table,
    data_uri,
    display_size,
    to_uint8,
)

_WEBP_QUALITY = 75  # about 10 kB for a photograph of 224 by 224
_SCRIPTS = ("explorer_boxes", "explorer_data", "explorer_draw", "explorer_list", "explorer_view", "explorer")
_STARTS = ("true", "predicted")


@dataclass(frozen=True, eq=False)
class ExplorerImage:
    """One image of the explorer, and the classes whose maps it has.

    Attributes:
        picture: uint8, or floats in [0, 1].
        classes: names of the classes that can be asked for, each once: such as the true one, the predicted one, and
            the next nearest.
        file_name: or another name for the image.
        true_class: its name, or None where it is not known.
        predicted_class: its name, or None.
        distance: of the image to the predicted class, or None.
        distances: of the image to each of `classes`, or None.
        true_boxes: `x0, y0, x1, y1` in pixels of the image, exclusive end, or None.
        image_size: width and height of the original image, which boxes refer to, where `picture` is a reduced copy
            (a thousand whole photographs fill the memory); None where it is the original.

    Raises:
        ValueError: naming the field, for a wrong shape or size, no class, a class given twice, or a bad box.

    Example:
        >>> image = ExplorerImage(np.zeros((64, 96, 3)), ["zebra", "horse"], "a.jpg", true_class="zebra")
        >>> image.classes
        ['zebra', 'horse']
    """

    picture: Shaped[Array | np.ndarray, "_ _ 3"]
    classes: Sequence[str]
    file_name: str = ""
    true_class: str | None = None
    predicted_class: str | None = None
    distance: float | None = None
    distances: Sequence[Any] | Num[np.ndarray, "_"] | None = None
    true_boxes: Num[Array | np.ndarray, "_ 4"] | Sequence[Any] | None = None
    image_size: Sequence[Any] | Num[np.ndarray, "2"] | None = None

    def __post_init__(self):
        shape = np.shape(self.picture)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"picture must be [h, w, 3] and not empty, got shape {shape}")
        classes = list(self.classes)
        if isinstance(self.classes, str) or not classes or len(set(classes)) < len(classes):
            raise ValueError(f"classes must be at least one name, each once, got {self.classes!r}")
        if self.distances is not None and len(self.distances) != len(classes):
            raise ValueError(f"distances must be one a class: got {len(self.distances)} for {len(classes)} classes")
        if self.image_size is not None and (len(self.image_size) != 2 or not min(self.image_size) >= 1):
            raise ValueError(f"image_size must be a positive width and height, got {self.image_size}")
        self._box_list()

    def _box_list(self) -> list[list[float]]:
        """Returns the true boxes as lists."""
        boxes = np.zeros((0, 4)) if self.true_boxes is None else np.asarray(self.true_boxes, np.float64)
        boxes = boxes.reshape(0, 4) if not boxes.size else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"true_boxes must be [m, 4] of x0, y0, x1, y1, got shape {boxes.shape}")
        if not np.isfinite(boxes).all():
            raise ValueError(f"true_boxes must be finite, got {boxes.tolist()}")
        return boxes.tolist()


@dataclass(frozen=True, eq=False)
class ExplorerMethod:
    """One way to make heatmaps, with its maps of every image.

    Attributes:
        title: such as "Dist-CAM".
        maps: for each image the maps `[c, h, w]` of its classes, in their order; kept as float32. Maps that are not
            finite, or have no positive value, are shown as such.
        threshold: fraction of a map's maximum from which the user starts, in [0, 1].

    Raises:
        ValueError: for an empty title or a threshold outside [0, 1].

    Example:
        >>> ExplorerMethod("Dist-CAM", [np.ones((2, 7, 7))], threshold=0.35).title
        'Dist-CAM'
    """

    title: str
    maps: Sequence[Shaped[Array | np.ndarray, "_ _ _"]] | Shaped[np.ndarray, "_ _ _ _"]
    threshold: float = 0.2

    def __post_init__(self):
        if not self.title:
            raise ValueError("title must not be empty")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")


@dataclass(frozen=True, eq=False)
class Explorer:
    """Images to question in the browser: whose map of which class by which method, cut at which threshold.

    The boxes are those of protocol `ilsvrc`. A picture costs about 15 kB of the page and a map value 5 bytes: 1,000
    images with 12 maps of 14 by 14 each make 27 MB.

    Attributes:
        images: in the order in which they are listed.
        methods: in the order in which they are offered; the first is shown first.
        input_size: side in pixels of the square to which maps are enlarged before they are cut.
        start: whose map is shown first, that of the "true" or of the "predicted" class.
        text: a sentence below the heading.
        picture_side: pictures with a longer side are shrunk to this; boxes stay in pixels of the original.

    Raises:
        ValueError: naming the field, where maps do not fit the images, titles repeat, or a value is out of range.

    Example:
        >>> image = ExplorerImage(np.zeros((64, 64, 3)), ["zebra", "horse"])
        >>> Explorer([image], [ExplorerMethod("Dist-CAM", [np.ones((2, 7, 7))])]).input_size
        224
    """

    images: Sequence[ExplorerImage]
    methods: Sequence[ExplorerMethod]
    input_size: int = 224
    start: str = "true"
    text: str = "Choose an image, ask for a class and a method, and move the threshold: region, box and IoU follow."
    picture_side: int = 224

    def __post_init__(self):
        titles = [method.title for method in self.methods]
        if not len(self.images):
            raise ValueError("images must not be empty")
        if not titles or len(set(titles)) < len(titles):
            raise ValueError(f"methods must be at least one, with different titles, got {titles}")
        if self.input_size < 1 or self.picture_side < 1:
            raise ValueError(f"input_size and picture_side must be at least 1: {self.input_size}, {self.picture_side}")
        if self.start not in _STARTS:
            raise ValueError(f"start must be one of {', '.join(_STARTS)}, got {self.start!r}")
        for method in self.methods:
            self._check_maps(method)

    def _check_maps(self, method: ExplorerMethod) -> None:
        if len(method.maps) != len(self.images):
            raise ValueError(
                f"maps of {method.title!r} must be one array an image: got {len(method.maps)} for {len(self.images)}"
            )
        size = tuple(np.shape(method.maps[0])[1:])
        for index, (image, maps) in enumerate(zip(self.images, method.maps, strict=True)):
            wanted = (len(image.classes), *size)
            if np.shape(maps) != wanted or len(wanted) != 3 or 0 in wanted:
                raise ValueError(
                    f"maps of {method.title!r} must be [c, h, w], one a class and all of one size: "
                    f"got shape {np.shape(maps)} for the {len(image.classes)} classes of image {index}"
                )


def explorer_payload(explorer: Explorer, *, alpha: float = 0.5, colormap: str = "turbo") -> dict[str, Any]:
    """Turns an explorer into plain data for the browser.

    Args:
        explorer: what to show.
        alpha: weight of the heatmaps' colours over the images, 0 to 1.
        colormap: name of a matplotlib colour map.

    Returns:
        Numbers, strings, lists and dicts. An image's `maps` are little-endian float32 in base64: methods, then
        classes, then rows. Classes are positions in `class_names`.

    Example:
        >>> image = ExplorerImage(np.zeros((64, 96, 3)), ["zebra"], "a.jpg", predicted_class="horse")
        >>> payload = explorer_payload(Explorer([image], [ExplorerMethod("Dist-CAM", [np.ones((1, 2, 2))])]))
        >>> payload["class_names"], payload["images"][0]["width"], payload["images"][0]["predicted"]
        (['zebra', 'horse'], 96, 1)
    """
    names: dict[str, int] = {}
    for image in explorer.images:
        for name in (*image.classes, image.true_class, image.predicted_class):
            if name is not None:
                names.setdefault(name, len(names))
    images = [_image_payload(explorer, index, names) for index in range(len(explorer.images))]
    for image, identity in zip(images, _identities([image["name"] for image in images]), strict=True):
        image["id"] = identity
    methods = [
        {
            "title": method.title,
            "threshold": float(method.threshold),
            "height": np.shape(method.maps[0])[1],
            "width": np.shape(method.maps[0])[2],
        }
        for method in explorer.methods
    ]
    return {
        "input_size": int(explorer.input_size),
        "start": explorer.start,
        "alpha": float(alpha),
        "colors": base64.b64encode(color_table(colormap).tobytes()).decode("ascii"),
        "true_color": "rgb({}, {}, {})".format(*TRUE_BOX_COLOR),
        "derived_color": "rgb({}, {}, {})".format(*DERIVED_BOX_COLOR),
        "no_heat": NO_HEAT,
        "class_names": list(names),
        "methods": methods,
        "images": images,
    }


def _image_payload(explorer: Explorer, index: int, names: dict[str, int]) -> dict[str, Any]:
    """Returns one image as plain data."""
    image = explorer.images[index]
    pixels = to_uint8(image.picture)
    width, height = map(int, pixels.shape[1::-1] if image.image_size is None else image.image_size)
    shown = display_size(height, width)
    maps = [np.asarray(method.maps[index]).astype("<f4").tobytes() for method in explorer.methods]
    return {
        "name": image.file_name or image.true_class or image.predicted_class or f"image {index}",
        "width": width,
        "height": height,
        "shown": [shown[1], shown[0]],
        "pixelated": min(height, width) < PIXEL_ART_SIDE,
        "picture": _picture_uri(pixels, explorer.picture_side, exact=min(height, width) < PIXEL_ART_SIDE),
        "true": None if image.true_class is None else names[image.true_class],
        "predicted": None if image.predicted_class is None else names[image.predicted_class],
        "distance": _finite(image.distance),
        "classes": [names[name] for name in image.classes],
        "distances": None if image.distances is None else [_finite(distance) for distance in image.distances],
        "boxes": image._box_list(),
        "maps": base64.b64encode(b"".join(maps)).decode("ascii"),
    }


def _identities(names: list[str]) -> list[str]:
    """Returns names that differ, for addresses: equal ones are numbered."""
    taken, identities = set(), []
    for name in names:
        identity, number = name, 1
        while identity in taken:
            number += 1
            identity = f"{name} ({number})"
        taken.add(identity)
        identities.append(identity)
    return identities


def _finite(value) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _picture_uri(pixels: np.ndarray, side: int, *, exact: bool) -> str:
    """Encodes a picture as a `data:` address: WebP, or PNG where single pixels are to be seen."""
    height, width = pixels.shape[:2]
    if max(height, width) > side:
        factor = side / max(height, width)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    return data_uri(pixels, kind="png" if exact else "webp", quality=_WEBP_QUALITY)


def json_for_script(payload: Any) -> str:
    r"""Writes JSON that can stand in a script element: no name in it can end the element or open another.

    Args:
        payload: numbers, strings, lists and dicts; NaN and infinity are refused.

    Returns:
        JSON text without `<`, `>` and `&`.

    Raises:
        ValueError: for a number that JSON does not know.

    Example:
        >>> json_for_script("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def explorer_script() -> str:
    """Returns the explorer's program, which sees nothing of other scripts and leaves nothing behind.

    Example:
        >>> "</script" in explorer_script()
        False
    """
    folder = resources.files("distcam_jax.report") / "templates"
    parts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS]
    return '\n(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def script_hash(script: str) -> str:
    """Returns the hash by which a content security policy allows one script and no other.

    Args:
        script: the text between the tags.

    Example:
        >>> script_hash("")
        'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
