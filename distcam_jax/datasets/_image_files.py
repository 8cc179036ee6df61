"""Size and completeness of encoded images, from their bytes alone: decoding a million images would take an hour."""

import struct

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers whose segment tells the size
_SCAN = 0xDA
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers that no length follows


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG or PNG file, in stored pixels: the EXIF orientation does not count.

    Args:
      data: the bytes of the file.

    Raises:
      ValueError: what is wrong with the file, such as `truncated (317 bytes, without an end mark)`.

    Examples:
      >>> import cv2, numpy as np
      >>> image_size(cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))[1].tobytes())
      (30, 20)
    """
    if data.startswith(_JPEG_START):
        size = _jpeg_size(data)
    elif data.startswith(_PNG_SIGNATURE):
        size = struct.unpack(">II", data[16:24]) if b"IEND" in data[-(2**16) :] else None
    else:
        raise ValueError(f"no JPEG or PNG file ({len(data)} bytes)")
    if size is None:
        raise ValueError(f"truncated ({len(data)} bytes, without an end mark)")
    if min(size) < 1:
        raise ValueError(f"damaged, {size[0]} x {size[1]} pixels")
    return size


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Reads the size from the segments before the scan; None where they or the end mark behind it are missing.

    Segments are skipped by their lengths, because a thumbnail in one of them has a size and an end mark of its own.
    """
    position, size = 2, None
    while (position := data.find(b"\xff", position)) >= 0 and position + 9 <= len(data):
        marker = data[position + 1]
        if marker == _SCAN:
            return size if data.find(_JPEG_END, position) >= 0 else None
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            size = width, height
        if marker in (0x00, 0xFF):  # stuffing, fill
            position += 1
        elif marker in _BARE:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
