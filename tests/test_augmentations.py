"""The geometry functions, checked on pictures whose pixel values say where they came from."""

import numpy as np
import pytest

from distcam_jax.augmentations import (
    augment,
    center_crop,
    check_augmentation,
    flip_horizontal,
    pad_and_crop,
    random_resized_crop,
    resize_image,
)

NO_BOXES = np.zeros((0, 4), np.float32)
BOX = np.array([[20.0, 12.0, 52.0, 30.0]], np.float32)


def coordinate_image(height, width):
    """Returns a picture with x + 1 in red and y + 1 in green; blue is 0 (0 in red is what padding brings in)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)[None] + 1
    image[..., 1] = np.arange(height)[:, None] + 1
    return image


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


def test_resize_image_averages_whole_blocks():
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    resized, _ = resize_image(image, NO_BOXES, (2, 2))
    oracle = image.reshape(2, 3, 2, 4, 3).astype(float).mean(axis=(1, 3))
    np.testing.assert_allclose(resized, oracle, atol=0.51)


def test_resize_image_interpolates_at_half_pixel_centres():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 100
    resized, _ = resize_image(image, NO_BOXES, (1, 4))
    np.testing.assert_array_equal(resized[0, :, 0], [0, 25, 75, 100])


def test_resize_image_shrinks_one_axis_and_enlarges_the_other():
    image = np.zeros((2, 8, 3), np.uint8)
    image[:, ::4] = 200  # plain bilinear at x = 1.5, 5.5 would never see these columns
    resized, boxes = resize_image(image, np.array([[4.0, 0.0, 8.0, 1.0]], np.float32), (6, 2))
    assert resized.shape == (6, 2, 3)
    np.testing.assert_array_equal(resized[..., 1], 50)
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


def test_augment_without_augmentation_is_the_straight_resize():
    image = coordinate_image(40, 60)
    result, boxes = augment(image, BOX, np.random.default_rng(0), (20, 20), None)
    oracle, oracle_boxes = resize_image(image, BOX, (20, 20))
    np.testing.assert_array_equal(result, oracle)
    np.testing.assert_array_equal(boxes, oracle_boxes)


@pytest.mark.parametrize(("flip", "smallest", "largest"), [(True, 70, 130), (False, 0, 0)])
@pytest.mark.parametrize("kind", ["random_resized_crop", "pad_crop"])
def test_augment_mirrors_every_second_image(kind, flip, smallest, largest):
    generator, mirrored = np.random.default_rng(0), 0
    for _ in range(200):
        image, _ = augment(coordinate_image(30, 40), NO_BOXES, generator, (30, 40), {"kind": kind, "flip": flip})
        mirrored += int(image[15, 10, 0]) > int(image[15, 30, 0])
    assert smallest <= mirrored <= largest


def test_check_augmentation_takes_lists_and_whole_numbers():
    checked = check_augmentation({"kind": "random_resized_crop", "scale": [0.5, 1], "ratio": [1, 2]})
    assert checked == {"kind": "random_resized_crop", "scale": (0.5, 1.0), "ratio": (1.0, 2.0), "flip": True}
    assert all(type(v) is float for v in checked["scale"] + checked["ratio"])


def test_augment_hands_its_options_on():
    image, generator = coordinate_image(100, 100), np.random.default_rng(0)
    whole = {"kind": "random_resized_crop", "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": False}
    np.testing.assert_array_equal(augment(image, NO_BOXES, generator, (100, 100), whole)[0], image)
    still = {"kind": "pad_crop", "padding": 0, "flip": False}
    np.testing.assert_array_equal(augment(image, NO_BOXES, generator, (100, 100), still)[0], image)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (
            {"kind": "mixup"},
            "augmentation\\['kind'\\] must be one of \\['pad_crop', 'random_resized_crop'\\], got 'mixup'",
        ),
        ({"flip": True}, "got None"),
        (
            {"kind": "pad_crop", "scale": (0.5, 1.0)},
            "has no option \\['scale'\\]; its options are \\['flip', 'padding'\\]",
        ),
        ({"kind": "pad_crop", "padding": -1}, "padding must be a number of pixels, at least 0, got -1"),
        ({"kind": "pad_crop", "padding": 1.5}, "padding must be"),
        ({"kind": "pad_crop", "flip": 1}, "flip must be True or False, got 1"),
        ({"kind": "random_resized_crop", "scale": (0.5, 1.5)}, "scale must be"),
        ({"kind": "random_resized_crop", "scale": (0.0, 1.0)}, "scale must be"),
        ({"kind": "random_resized_crop", "scale": 0.5}, "scale must be"),
        ({"kind": "random_resized_crop", "ratio": (2.0, 0.5)}, "ratio must be"),
        ({"kind": "random_resized_crop", "ratio": (0.5, float("inf"))}, "ratio must be"),
        ({"kind": "random_resized_crop", "ratio": (float("nan"), 1.0)}, "ratio must be"),
    ],
)
def test_check_augmentation_names_the_bad_value(augmentation, message):
    with pytest.raises(ValueError, match=message):
        check_augmentation(augmentation)


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
