"""The geometry functions, checked on pictures whose pixel values say where they came from."""

import numpy as np
import pytest

from distcam_jax.geometry import (
    center_crop,
    flip_horizontal,
    pad_and_crop,
    random_resized_crop,
    resize_image,
)
from tests.pictures import BOX, NO_BOXES, coordinate_image


def boxed_image(height, width, box):
    """Returns a black picture whose box is white."""
    image = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = (int(v) for v in box)
    image[y0:y1, x0:x1] = 255
    return image


def white_extent(image):
    """Returns the box of the pixels that are more than half white."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def triangle_resize(image, height, width):
    """Averages with a triangle around every new pixel's centre; it reaches one pixel, the larger of old and new."""
    result = image.astype(float)
    for axis, length in ((0, height), (1, width)):
        factor = result.shape[axis] / length
        reach = max(1.0, factor)
        lines = []
        for i in range(length):
            distances = np.abs(np.arange(result.shape[axis]) + 0.5 - (i + 0.5) * factor)
            weights = np.maximum(0.0, 1 - distances / reach)
            lines.append(np.tensordot(weights / weights.sum(), result, axes=(0, axis)))
        result = np.stack(lines, axis=axis)
    return result


def waves(height, width):
    """Returns a smooth picture with an edge."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([127 + 100 * np.sin(x / 9 + y / 31), 127 + 100 * np.cos(y / 7), 0 * x + 80], axis=-1)
    image[:, width // 2 :, 2] = 180
    return image.astype(np.uint8)


def test_resize_image_by_half_is_the_triangle_filter():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    resized, _ = resize_image(image, NO_BOXES, (20, 30))
    np.testing.assert_allclose(resized[1:-1, 1:-1], triangle_resize(image, 20, 30)[1:-1, 1:-1], atol=2)


@pytest.mark.parametrize(
    ("shape", "size", "mean", "largest"),
    [
        ((150, 220), (137, 200), 0.6, 6),
        ((150, 220), (100, 110), 0.6, 6),
        ((375, 250), (112, 112), 0.6, 6),
        ((400, 1000), (50, 60), 1.2, 10),
        ((100, 60), (40, 90), 0.6, 6),
        ((40, 50), (111, 160), 0.6, 3),
    ],
)
def test_resize_image_is_close_to_the_triangle_filter(shape, size, mean, largest):
    image = waves(*shape)
    resized, _ = resize_image(image, NO_BOXES, size)
    errors = np.abs(resized - triangle_resize(image, *size))
    assert errors.mean() < mean
    assert errors.max() < largest


@pytest.mark.parametrize("factor", [1.1, 1.2, 1.5, 2.0, 2.7, 3.5, 6.3])
def test_resize_image_averages_noise_about_as_the_triangle_filter_does(factor):
    image = np.random.default_rng(0).integers(0, 256, (240, 240, 3), dtype=np.uint8)
    side = round(240 / factor)
    oracle = triangle_resize(image, side, side)
    errors = resize_image(image, NO_BOXES, (side, side))[0] - oracle
    assert errors.std() < 0.4 * oracle.std()  # from 1.5 on, the area average has 0.41 to 0.82


@pytest.mark.parametrize("shape", [(31, 17), (40, 90), (33, 33), (100, 400)])
@pytest.mark.parametrize("value", [1, 77, 128, 254, 255])
def test_resize_image_keeps_the_brightness(shape, value):
    resized, _ = resize_image(np.full((*shape, 3), value, np.uint8), NO_BOXES, (29, 31))
    np.testing.assert_array_equal(resized, np.full((29, 31, 3), value))


def test_resize_image_of_the_right_size_is_the_image_itself():
    image = waves(20, 30)
    resized, _ = resize_image(image, NO_BOXES, (20, 30))
    np.testing.assert_array_equal(resized, image)


def test_resize_image_sees_nothing_outside_of_a_view():
    image = np.zeros((50, 70, 3), np.uint8)
    image[10:40, 20:60] = 200
    view = image[10:40, 20:60]
    np.testing.assert_array_equal(resize_image(view, NO_BOXES, (20, 25))[0], np.full((20, 25, 3), 200))


def test_resize_image_interpolates_at_half_pixel_centres():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 100
    resized, _ = resize_image(image, NO_BOXES, (1, 4))
    np.testing.assert_array_equal(resized[0, :, 0], [0, 25, 75, 100])


def test_resize_image_shrinks_one_axis_and_enlarges_the_other():
    image = np.zeros((2, 64, 3), np.uint8)
    image[:, ::4] = 200  # plain bilinear at x = 1.5, 5.5 would never see these columns
    resized, boxes = resize_image(image, np.array([[4.0, 0.0, 8.0, 1.0]], np.float32), (6, 16))
    assert resized.shape == (6, 16, 3)
    np.testing.assert_allclose(resized[:, 1:-1], 50, atol=1)
    np.testing.assert_array_equal(boxes, [[1, 0, 2, 3]])


def test_resize_image_takes_boxes_along():
    image = boxed_image(60, 100, BOX[0])
    resized, boxes = resize_image(image, BOX, (120, 50))
    np.testing.assert_array_equal(boxes, [[10, 24, 26, 60]])
    assert white_extent(resized) == [10, 24, 26, 60]


def test_resize_image_clips_boxes_and_drops_empty_ones():
    boxes = np.array([[-5.0, 2.0, 4.0, 99.0], [30.0, 1.0, 40.0, 2.0], [3.0, 3.0, 3.0, 5.0]], np.float32)
    _, kept = resize_image(np.zeros((10, 20, 3), np.uint8), boxes, (10, 20))
    np.testing.assert_array_equal(kept, [[0, 2, 4, 10]])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (40, 60), (1, 1), (224, 300)])
def test_center_crop_keeps_the_aspect_and_the_centre(height, width):
    boxes = np.array([[0.4 * width, 0.3 * height, 0.6 * width, 0.7 * height]], np.float32)
    cropped, moved = center_crop(np.zeros((height, width, 3), np.uint8), boxes, (224, 224))
    factor = 256 / min(height, width)
    half_sizes = np.array([0.1 * width, 0.2 * height]) * factor
    expected = np.clip([[*(112 - half_sizes), *(112 + half_sizes)]], 0, 224)
    assert cropped.shape == (224, 224, 3)
    np.testing.assert_allclose(moved, expected, atol=1.0)


@pytest.mark.parametrize(
    ("shape", "resized", "corner"),
    [
        ((375, 500), (256, 341), (16, 58)),
        ((500, 333), (384, 256), (80, 16)),
        ((256, 256), (256, 256), (16, 16)),
        ((224, 300), (256, 342), (16, 59)),
        ((40, 60), (256, 384), (16, 80)),
        ((333, 499), (256, 383), (16, 80)),
        ((1000, 1333), (256, 341), (16, 58)),
        ((231, 500), (256, 554), (16, 165)),
    ],
)
def test_center_crop_cuts_where_torchvision_does(shape, resized, corner):
    """Size after `Resize(256)`, and top and left of `CenterCrop(224)`, of torchvision 0.29.1."""
    rows, columns = shape
    centre = np.array([columns, rows, columns, rows]) / 2 + [-4, -4, 4, 4]  # small enough to be left whole
    _, boxes = center_crop(np.zeros((rows, columns, 3), np.uint8), centre[None].astype(np.float32), (224, 224))
    factors = np.array([resized[1] / columns, resized[0] / rows] * 2)
    np.testing.assert_allclose(boxes[0], centre * factors - [corner[1], corner[0]] * 2, atol=1e-3)


def test_center_crop_has_torchvisions_pixels():
    """`Resize(256)` and `CenterCrop(224)` of a Pillow image, torchvision 0.29.1; a shift of one pixel differs by 8."""
    y, x = np.mgrid[:300, :451]
    image = np.stack([127 + 100 * np.sin(x / 9 + y / 31), 127 + 100 * np.cos(y / 7), (3 * x + 5 * y) % 256], axis=-1)
    cropped, _ = center_crop(image.astype(np.uint8), NO_BOXES, (224, 224))
    golden = [
        [[27, 37, 120], [79, 37, 61], [178, 37, 30], [226, 37, 200]],
        [[183, 214, 192], [226, 214, 133], [173, 214, 75], [75, 214, 16]],
        [[167, 41, 9], [70, 41, 206], [27, 41, 148], [80, 41, 89]],
        [[27, 208, 80], [85, 208, 21], [183, 208, 219], [226, 208, 160]],
    ]
    np.testing.assert_allclose(cropped[::56, ::56], golden, atol=3)
    np.testing.assert_allclose(cropped.mean(axis=(0, 1)), [127.77, 126.92, 127.51], atol=0.2)


def test_center_crop_of_a_wide_image_cuts_the_sides_only():
    cropped, _ = center_crop(coordinate_image(100, 200), NO_BOXES, (100, 100), fraction=1.0)
    np.testing.assert_array_equal(cropped, coordinate_image(100, 200)[:, 50:150])


def test_center_crop_covers_a_target_that_is_not_square():
    cropped, boxes = center_crop(coordinate_image(100, 100), BOX, (100, 40), fraction=1.0)
    np.testing.assert_array_equal(cropped, coordinate_image(100, 100)[:, 30:70])
    np.testing.assert_array_equal(boxes, [[0, 12, 22, 30]])


def test_center_crop_takes_boxes_along():
    image = boxed_image(120, 200, [80, 40, 120, 64])
    cropped, boxes = center_crop(image, np.array([[80.0, 40.0, 120.0, 64.0]], np.float32), (105, 105))
    np.testing.assert_allclose(boxes[0], [32, 32, 72, 56], atol=0.5)
    np.testing.assert_allclose(white_extent(cropped), boxes[0], atol=0.5)


def test_random_resized_crop_takes_boxes_along():
    box = np.array([[30.0, 20.0, 60.0, 45.0]], np.float32)
    image = boxed_image(80, 120, box[0])
    seen = set()
    for seed in range(40):
        cropped, boxes = random_resized_crop(image, box, np.random.default_rng(seed), (96, 64))
        assert cropped.shape == (96, 64, 3)
        if len(boxes):
            np.testing.assert_allclose(white_extent(cropped), boxes[0], atol=1.0)
        else:
            assert cropped.max() < 128
        seen.add(tuple(boxes.ravel().tolist()))
    assert len(seen) > 30


def test_random_resized_crop_draws_areas_and_aspects_in_their_ranges():
    generator = np.random.default_rng(0)
    areas, aspects, lefts = [], [], []
    for _ in range(300):
        cropped, _ = random_resized_crop(
            coordinate_image(200, 250), NO_BOXES, generator, (32, 32), scale=(0.2, 0.6), ratio=(0.5, 2.0)
        )
        red, green = cropped[..., 0].astype(float), cropped[..., 1].astype(float)
        width, height = (red[0, -1] - red[0, 0]) * 32 / 31, (green[-1, 0] - green[0, 0]) * 32 / 31
        areas.append(width * height / (200 * 250))
        aspects.append(width / height)
        lefts.append(red[0, 0] / 250)
    assert 0.18 < min(areas) < 0.25
    assert 0.55 < max(areas) < 0.63
    assert abs(np.mean(areas) - 0.4) < 0.03
    assert 0.47 < min(aspects) < 0.6
    assert 1.7 < max(aspects) < 2.1
    assert abs(np.mean(np.log(aspects))) < 0.1  # uniform in the aspect itself would give 0.16
    assert min(lefts) < 0.05
    assert max(lefts) > 0.4


def test_random_resized_crop_falls_back_to_the_centre():
    image = coordinate_image(10, 200)
    cropped, _ = random_resized_crop(
        image, NO_BOXES, np.random.default_rng(0), (10, 20), scale=(1.0, 1.0), ratio=(0.5, 2.0)
    )
    np.testing.assert_array_equal(cropped, image[:, 90:110])


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_random_resized_crop_takes_tiny_images(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    for seed in range(20):
        cropped, _ = random_resized_crop(image, NO_BOXES, np.random.default_rng(seed), (8, 6), scale=(0.01, 1.0))
        np.testing.assert_array_equal(cropped, np.full((8, 6, 3), 77))


@pytest.mark.parametrize("step", ["crop", "center_crop", "pad", "flip", "resize"])
def test_every_step_gives_a_picture_of_its_own_and_leaves_its_arguments_alone(step):
    image, boxes = coordinate_image(60, 90), BOX.copy()
    run = {
        "crop": lambda: random_resized_crop(image, boxes, np.random.default_rng(1), (30, 30)),
        "center_crop": lambda: center_crop(image, boxes, (30, 30)),
        "pad": lambda: pad_and_crop(image, boxes, np.random.default_rng(1), padding=5),
        "flip": lambda: flip_horizontal(image, boxes),
        "resize": lambda: resize_image(image, boxes, (30, 30)),
    }
    result, moved = run[step]()
    assert result.flags.c_contiguous
    assert (result.dtype, moved.dtype) == (np.uint8, np.float32)
    assert not np.shares_memory(result, image)
    np.testing.assert_array_equal(image, coordinate_image(60, 90))
    np.testing.assert_array_equal(boxes, BOX)


def test_pad_and_crop_shifts_uniformly_and_brings_in_black():
    image, generator, shifts = coordinate_image(20, 30), np.random.default_rng(0), []
    for _ in range(400):
        shifted, _ = pad_and_crop(image, NO_BOXES, generator, padding=2)
        dx, dy = 15 - int(shifted[10, 14, 0]), 11 - int(shifted[10, 14, 1])
        oracle = np.zeros_like(image)
        oracle[max(0, dy) : 20 + min(0, dy), max(0, dx) : 30 + min(0, dx)] = image[
            max(0, -dy) : 20 - max(0, dy), max(0, -dx) : 30 - max(0, dx)
        ]
        np.testing.assert_array_equal(shifted, oracle)
        shifts.append((dx, dy))
    assert set(shifts) == {(dx, dy) for dx in range(-2, 3) for dy in range(-2, 3)}


def test_pad_and_crop_takes_boxes_along():
    image = boxed_image(60, 100, [0, 12, 52, 30])
    for seed in range(20):
        shifted, boxes = pad_and_crop(
            image, np.array([[0.0, 12.0, 52.0, 30.0]], np.float32), np.random.default_rng(seed), padding=10
        )
        assert white_extent(shifted) == boxes[0].tolist()


def test_pad_and_crop_without_padding_changes_nothing():
    image = coordinate_image(5, 7)
    np.testing.assert_array_equal(pad_and_crop(image, NO_BOXES, np.random.default_rng(0), padding=0)[0], image)


def test_flip_horizontal_takes_boxes_along():
    image = boxed_image(60, 100, BOX[0])
    mirrored, boxes = flip_horizontal(image, BOX)
    assert white_extent(mirrored) == boxes[0].tolist() == [48, 12, 80, 30]
    np.testing.assert_array_equal(mirrored, np.fliplr(image))


@pytest.mark.parametrize(
    ("image", "boxes", "size", "message"),
    [
        (np.zeros((4, 4), np.uint8), NO_BOXES, (2, 2), "image must be uint8 \\[h, w, 3\\]"),
        (np.zeros((4, 4, 3), np.float32), NO_BOXES, (2, 2), "got float32 \\[4, 4, 3\\]"),
        (np.zeros((0, 4, 3), np.uint8), NO_BOXES, (2, 2), "not empty"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros(4, np.float32), (2, 2), "boxes must be float \\[m, 4\\]"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4), np.int64), (2, 2), "boxes must be float"),
        (np.zeros((4, 4, 3), np.uint8), NO_BOXES, (0, 2), "size must be"),
        (np.zeros((4, 4, 3), np.uint8), NO_BOXES, (2, 2, 2), "size must be"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_resize_image_names_the_bad_argument(image, boxes, size, message):
    with pytest.raises(ValueError, match=message):
        resize_image(image, boxes, size)


@pytest.mark.parametrize("fraction", [0.0, 1.1, float("nan")])
def test_center_crop_refuses_a_bad_fraction(fraction):
    with pytest.raises(ValueError, match="fraction must lie in"):
        center_crop(coordinate_image(4, 4), NO_BOXES, (2, 2), fraction=fraction)
