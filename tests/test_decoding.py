"""Decoding and the checks of an example, on files that the tests encode themselves."""

import struct

import cv2
import numpy as np
import pytest

from distcam_jax.decoding import decode_image, read_example

SMOOTH = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8), (50, 40))


def encode(image, extension=".png", *options):
    """Encodes RGB, grey or RGBA."""
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]
    return cv2.imencode(extension, image, list(options))[1].tobytes()


def with_exif(jpeg, payload):
    """Puts an APP1 segment behind the start marker."""
    segment = b"Exif\x00\x00" + payload
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def rotated_exif():
    """Returns a TIFF header whose only entry is orientation 6 (turn by 90 degrees)."""
    return b"MM\x00\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)


def test_decode_image_png_is_exact_rgb():
    decoded = decode_image(encode(SMOOTH))
    np.testing.assert_array_equal(decoded, SMOOTH)
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("progressive", [0, 1])
def test_decode_image_jpeg_is_close(progressive):
    encoded = encode(SMOOTH, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    assert np.abs(decode_image(encoded).astype(int) - SMOOTH).mean() < 3


def test_decode_image_grey_gets_three_channels():
    grey = SMOOTH[..., 0]
    np.testing.assert_array_equal(decode_image(encode(grey)), np.stack([grey] * 3, axis=-1))


def test_decode_image_drops_alpha_without_blending():
    transparent = np.concatenate([SMOOTH, np.zeros((40, 50, 1), np.uint8)], axis=-1)
    np.testing.assert_array_equal(decode_image(encode(transparent)), SMOOTH)


def test_decode_image_reduces_16_bits():
    deep = SMOOTH.astype(np.uint16) * 257
    np.testing.assert_allclose(decode_image(encode(deep)), SMOOTH, atol=1)


def test_decode_image_cmyk_becomes_rgb(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "cmyk.jpg"
    image_module.new("RGB", (16, 16), (200, 50, 20)).convert("CMYK").save(path, quality=95)
    assert np.abs(decode_image(path.read_bytes()).astype(int) - [200, 50, 20]).max() <= 4


def test_decode_image_cmyk_is_close_to_pillow(tmp_path):
    """Adobe's CMYK stores the inks inverted; read the other way round, the picture would be its negative."""
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "cmyk.jpg"
    cyan, magenta, yellow = (SMOOTH[..., i] for i in range(3))
    inks = np.stack([cyan, magenta, yellow, SMOOTH[::-1, :, 0] // 2], axis=-1)
    planes = [image_module.fromarray(np.ascontiguousarray(inks[..., i])) for i in range(4)]
    image_module.merge("CMYK", planes).save(path, quality=98, subsampling=0)
    assert b"Adobe" in path.read_bytes()[:100]
    oracle = np.asarray(image_module.open(path).convert("RGB")).astype(int)
    errors = np.abs(decode_image(path.read_bytes()).astype(int) - oracle)
    assert errors.max() <= 3
    assert oracle.std() > 30


def test_decode_image_grey_jpeg_is_close_to_pillow(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "grey.jpg"
    image_module.fromarray(SMOOTH[..., 0]).save(path, quality=98)
    oracle = np.asarray(image_module.open(path).convert("RGB")).astype(int)
    np.testing.assert_allclose(decode_image(path.read_bytes()), oracle, atol=1)


def test_read_example_goes_by_the_bytes_and_not_by_the_name():
    image, *_ = read_example([{"image": encode(SMOOTH), "label": 0, "file_name": "n02105855_2933.JPEG"}], 0)
    np.testing.assert_array_equal(image, SMOOTH)


def test_decode_image_ignores_exif_orientation():
    encoded = with_exif(encode(SMOOTH, ".jpg"), rotated_exif())
    turned = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert turned.shape == (50, 40, 3)  # the header is a true one: OpenCV obeys it unless told otherwise
    assert decode_image(encoded).shape == (40, 50, 3)


@pytest.mark.parametrize(
    ("encoded", "flaw"),
    [
        (b"", "is empty"),
        (b"no image at all", "is damaged or of an unknown format"),
        (encode(SMOOTH, ".jpg")[:-2], "ends early"),
        (encode(SMOOTH, ".jpg")[:-200], "ends early"),
        (encode(SMOOTH, ".jpg")[:40], "ends early"),
        (encode(SMOOTH, ".jpg")[:-300] + bytes(300), "ends early"),
        (encode(SMOOTH)[:-12], "ends early"),
        (encode(SMOOTH)[:-500], "ends early"),
        (encode(SMOOTH)[:8], "ends early"),
        (with_exif(encode(SMOOTH, ".jpg"), encode(SMOOTH[:9, :9], ".jpg"))[:-300], "ends early"),
    ],
    ids=[
        "empty",
        "text",
        "jpeg-no-end-marker",
        "jpeg-cut",
        "jpeg-header-only",
        "jpeg-filled-up-with-zeros",
        "png-no-end-chunk",
        "png-cut",
        "png-signature-only",
        "jpeg-cut-after-a-whole-thumbnail",
    ],
)
def test_decode_image_names_a_broken_file(encoded, flaw):
    with pytest.raises(ValueError, match=rf"^image 'cat\.jpg' {flaw} \({len(encoded)} bytes\): fetch .*$") as error:
        decode_image(encoded, "cat.jpg")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_decode_image_allows_bytes_after_the_end(extension):
    encoded = encode(SMOOTH, extension)
    np.testing.assert_array_equal(decode_image(encoded + bytes(100)), decode_image(encoded))


def test_decode_image_allows_a_thumbnail_and_fill_bytes():
    encoded = encode(SMOOTH, ".jpg")
    filled = encoded[:2] + b"\xff\xff" + encoded[2:]
    np.testing.assert_array_equal(decode_image(filled), decode_image(encoded))
    with_thumbnail = with_exif(encoded, encode(SMOOTH[:9, :9], ".jpg"))
    np.testing.assert_array_equal(decode_image(with_thumbnail), decode_image(encoded))


def test_read_example_passes_labels_boxes_and_names():
    example = {"image": encode(SMOOTH), "label": np.int64(3), "boxes": [[1, 2, 3, 4]], "file_name": b"a/b.png"}
    image, label, boxes, name = read_example([None, example], 1)
    np.testing.assert_array_equal(image, SMOOTH)
    assert (label, type(label), name) == (3, int, "a/b.png")
    np.testing.assert_array_equal(boxes, np.array([[1, 2, 3, 4]], np.float32), strict=True)


@pytest.mark.parametrize("boxes", [None, [], np.zeros((0, 4))])
def test_read_example_without_boxes_gives_none(boxes):
    example = {"image": encode(SMOOTH), "label": 0, "boxes": boxes}
    np.testing.assert_array_equal(read_example([example], 0)[2], np.zeros((0, 4), np.float32), strict=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 1.0}, "label of image 'a.png' must be an integer, got 1.0"),
        ({"label": "cat"}, "label of image 'a.png' must be an integer, got 'cat'"),
        ({"label": 2**31}, "label of image 'a.png' must fit in 32 bits"),
        ({"image": SMOOTH}, "image 'a.png' must be given as the bytes of its file, got ndarray"),
        ({"boxes": [1.0, 2.0, 3.0, 4.0]}, "boxes of image 'a.png' must be finite numbers \\[m, 4\\]"),
        ({"boxes": [[1.0, 2.0, 3.0, float("nan")]]}, "boxes of image 'a.png' must be finite"),
        ({"image": b""}, "image 'a.png' is empty"),
    ],
)
def test_read_example_names_the_bad_value(change, message):
    with pytest.raises(ValueError, match=message):
        read_example([{"image": encode(SMOOTH), "label": 0, "file_name": "a.png", **change}], 0)


@pytest.mark.parametrize(("example", "found"), [({"image": b""}, "\\['image'\\]"), ((b"", 0), "tuple")])
def test_read_example_names_what_is_missing(example, found):
    with pytest.raises(ValueError, match=f"source\\[0\\] must be a mapping with 'image' and 'label', got {found}"):
        read_example([example], 0)


def test_read_example_without_a_name_gives_the_position():
    with pytest.raises(ValueError, match="image 'source\\[1\\]' is empty"):
        read_example([None, {"image": b"", "label": 0}], 1)
