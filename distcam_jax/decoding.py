"""Reading one example of a source: the checks of what it holds, and the decoding of its image with OpenCV."""

import operator
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float32, Int, UInt8

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_END, _JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers whose segment tells the size
_JPEG_BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}  # markers that no length follows


@runtime_checkable
class Source(Protocol):
    """Random access to encoded examples, in an object that can be pickled.

    An example is a dict of

    * `image`: the encoded bytes of a JPEG, a PNG or anything else that OpenCV reads,
    * `label`: an integer,
    * `boxes`: float32 `[m, 4]` of x0, y0, x1, y1 in pixels of the stored image, exclusive end; may be absent or None,
    * `file_name`: a string that errors show; may be absent.
    """

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Returns the example at a position, a mapping."""
        ...


class Rows:
    """Some examples of a source, themselves a source.

    Args:
      source: the examples, see `Source`.
      rows: their positions.
    """

    def __init__(self, source: Source, rows: Sequence[int] | np.ndarray):
        self._source = source
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._source[int(self._rows[index])]


class Part(Rows):
    """Some neighbouring examples of a source, themselves a source.

    Args:
      source: the examples, see `Source`.
      start: position of the first.
      stop: position after the last; None, or one beyond the end, is the end.
    """

    def __init__(self, source: Source, start: int, stop: int | None = None):
        super().__init__(source, range(len(source))[start:stop])


def decode_image(encoded: bytes, file_name: str = "") -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a JPEG, PNG or any other image that OpenCV reads.

    Grey and CMYK become RGB, 16 bits become 8, alpha is dropped. The EXIF orientation is ignored, because boxes are
    given in stored pixels. A file that ends early is refused: some versions of OpenCV fill its rest with grey.

    Args:
      encoded: the bytes of the file.
      file_name: the name that an error shows.

    Returns:
      RGB, uint8 `[h, w, 3]`.

    Raises:
      ValueError: the bytes are empty, end early or cannot be decoded; one line with the name and what to do.

    Examples:
      >>> encoded = cv2.imencode(".png", np.full((2, 3, 3), (0, 0, 255), np.uint8))[1].tobytes()
      >>> decode_image(encoded)[0, 0].tolist()
      [255, 0, 0]
    """
    flaw, image = _find_flaw(encoded), None
    if flaw is None:
        try:
            mode = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), mode)
        except cv2.error:
            image = None
    if image is None:
        name = f"image {file_name!r}" if file_name else "image without a file name"
        flaw = flaw or "is damaged or of an unknown format"
        raise ValueError(f"{name} {flaw} ({len(encoded)} bytes): fetch the file again or take it out of the data set")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_example(source: Source, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int, Float32[np.ndarray, "m 4"], str]:
    """Reads, checks and decodes one example.

    Args:
      source: the examples, see `Source`.
      index: position in the source.

    Returns:
      RGB uint8 `[h, w, 3]`, label, boxes float32 `[m, 4]` in pixels of the image, and the name for errors.

    Raises:
      ValueError: the example is no mapping, lacks a key, holds a wrong type or cannot be decoded; one line names it.

    Examples:
      >>> encoded = cv2.imencode(".png", np.zeros((2, 3, 3), np.uint8))[1].tobytes()
      >>> image, label, boxes, name = read_example([{"image": encoded, "label": 7, "file_name": "a.png"}], 0)
      >>> image.shape, label, boxes.shape, name
      ((2, 3, 3), 7, (0, 4), 'a.png')
    """
    example = source[index]
    if not isinstance(example, Mapping) or not {"image", "label"} <= set(example):
        found = sorted(example) if isinstance(example, Mapping) else type(example).__name__
        raise ValueError(f"source[{index}] must be a mapping with 'image' and 'label', got {found}")
    name = example.get("file_name", f"source[{index}]")
    name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    encoded = example["image"]
    if not isinstance(encoded, bytes):
        raise ValueError(f"image {name!r} must be given as the bytes of its file, got {type(encoded).__name__}")
    label = _check_label(example["label"], name)
    boxes = _check_boxes(example.get("boxes"), name)
    return decode_image(encoded, name), label, boxes, name


def read_labels(source: Source) -> Int[np.ndarray, " n"]:
    """The classes of all examples; reads each of them once, and decodes no image.

    Args:
      source: the examples, see `Source`.

    Returns:
      Labels `[n]`.

    Examples:
      >>> read_labels([{"image": b"", "label": 7}, {"image": b"", "label": 3}]).tolist()
      [7, 3]
    """
    return np.array([source[index]["label"] for index in range(len(source))])


def _check_label(label: Any, name: str) -> int:
    try:
        number = operator.index(label)
    except TypeError:
        raise ValueError(f"label of image {name!r} must be an integer, got {label!r}") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"label of image {name!r} must fit in 32 bits, got {number}")
    return number


def _check_boxes(boxes: Any, name: str) -> np.ndarray:
    if boxes is None:
        return np.zeros((0, 4), np.float32)
    array = np.asarray(boxes, np.float32)
    if array.size == 0:
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise ValueError(f"boxes of image {name!r} must be finite numbers [m, 4], got {array.tolist()}")
    return array


def _find_flaw(encoded: bytes) -> str | None:
    """Says what is wrong with the bytes of a file, as far as can be seen without decoding them."""
    if not encoded:
        return "is empty"
    ends_early = "ends early"
    if encoded.startswith(_JPEG_START):
        return None if _has_jpeg_end(encoded) else ends_early
    if encoded.startswith(_PNG_SIGNATURE):
        return None if b"IEND" in encoded[-(2**16) :] else ends_early
    return None


def _has_jpeg_end(encoded: bytes) -> bool:
    """Says whether an end marker follows the first scan, in which a marker's two bytes cannot stand for anything else.

    What stands before the scan does not count, because a thumbnail in it has an end marker of its own.
    """
    for marker, position in _jpeg_markers(encoded):
        if marker == _JPEG_SCAN:
            return encoded.rfind(_JPEG_END, position) >= 0  # from the end, where it stands in a whole file
    return False


def _jpeg_markers(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Walks through a JPEG's markers, with their positions; segments are skipped by their lengths."""
    position = 2
    while (position := encoded.find(b"\xff", position)) >= 0 and position + 4 <= len(encoded):
        marker = encoded[position + 1]
        if marker in (0x00, 0xFF):  # stuffing, fill
            position += 1
            continue
        yield marker, position
        bare = marker in _JPEG_BARE_MARKERS
        position += 2 if bare else 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")


def image_size(encoded: bytes) -> tuple[int, int]:
    """Width and height of a JPEG or PNG file, in stored pixels: the EXIF orientation does not count.

    They are read without decoding, which would take an hour for a million images.

    Args:
      encoded: the bytes of the file.

    Raises:
      ValueError: what is wrong with the file, such as `truncated (317 bytes, without an end mark)`.

    Examples:
      >>> image_size(cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))[1].tobytes())
      (30, 20)
    """
    is_jpeg = encoded.startswith(_JPEG_START)
    if not (is_jpeg or encoded.startswith(_PNG_SIGNATURE)):
        raise ValueError(f"no JPEG or PNG file ({len(encoded)} bytes)")
    size = None
    if _find_flaw(encoded) is None:
        size = _jpeg_size(encoded) if is_jpeg else struct.unpack(">II", encoded[16:24])
    if size is None:
        raise ValueError(f"truncated ({len(encoded)} bytes, without an end mark)")
    if min(size) < 1:
        raise ValueError(f"damaged, {size[0]} x {size[1]} pixels")
    return size


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """The size that the last frame before the scan tells; None where there is no frame."""
    size = None
    for marker, position in _jpeg_markers(encoded):
        if marker == _JPEG_SCAN:
            break
        if marker in _JPEG_FRAMES and position + 9 <= len(encoded):
            height, width = struct.unpack(">HH", encoded[position + 5 : position + 9])
            size = width, height
    return size
