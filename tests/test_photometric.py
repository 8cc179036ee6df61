"""Colour jitter and random erasing, beside NumPy and the standard library's colorsys."""

import colorsys

import numpy as np
import pytest

from distcam_jax.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    check_color_jitter,
    check_random_erasing,
    color_jitter,
    random_erasing,
)

NOISE = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])


def clip(values):
    return np.clip(np.rint(values), 0, 255)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
def test_adjust_brightness_multiplies(factor):
    np.testing.assert_array_equal(adjust_brightness(NOISE, factor), clip(NOISE * factor))


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
def test_adjust_contrast_spreads_about_the_mean_luma(factor):
    mean = (NOISE @ LUMA).mean()
    np.testing.assert_allclose(adjust_contrast(NOISE, factor), clip(mean + factor * (NOISE - mean)), atol=1)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
def test_adjust_saturation_spreads_about_the_pixels_luma(factor):
    grey = (NOISE @ LUMA)[..., None]
    np.testing.assert_allclose(adjust_saturation(NOISE, factor), clip(grey + factor * (NOISE - grey)), atol=1)


@pytest.mark.parametrize("turn", [-0.5, -0.3, 0.0, 0.1, 0.5])
def test_adjust_hue_turns_as_colorsys_does(turn):
    oracle = np.empty(NOISE.shape)
    for place in np.ndindex(NOISE.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(NOISE[place] / 255))
        oracle[place] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    np.testing.assert_allclose(adjust_hue(NOISE, turn), 255 * oracle, atol=0.6)


@pytest.mark.parametrize(
    ("adjust", "factor", "golden"),
    [
        (adjust_brightness, 1.2, [[240.0, 120.0, 60.0], [36.0, 36.0, 36.0]]),
        (adjust_contrast, 0.5, [[138.54, 88.54, 63.54], [53.54, 53.54, 53.54]]),
        (adjust_saturation, 1.3, [[222.75, 92.75, 27.75], [30.0, 30.0, 30.0]]),
        (adjust_hue, 0.2, [[120.0, 200.0, 50.0], [30.0, 30.0, 30.0]]),
        (adjust_hue, -0.4, [[50.0, 60.0, 200.0], [30.0, 30.0, 30.0]]),
    ],
)
def test_adjustments_have_torchvisions_values(adjust, factor, golden):
    """The function of the same name in torchvision 0.29.1, on a tensor of floats."""
    image = np.array([[[200, 100, 50], [30, 30, 30]]], np.uint8)
    np.testing.assert_allclose(adjust(image, factor)[0], golden, atol=0.8)


@pytest.mark.parametrize("adjust", [adjust_brightness, adjust_contrast, adjust_saturation])
def test_adjustments_by_one_change_nothing_and_leave_their_argument(adjust):
    before = NOISE.copy()
    np.testing.assert_array_equal(adjust(NOISE, 1.0), NOISE)
    adjust(NOISE, 0.4)
    np.testing.assert_array_equal(NOISE, before)


def test_color_jitter_without_options_is_the_image_and_draws_nothing():
    generator = np.random.default_rng(0)
    assert color_jitter(NOISE, generator, brightness=(1.0, 1.0)) is NOISE
    assert generator.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_color_jitter_draws_factors_uniformly_from_the_range():
    image, generator = np.full((1, 1, 3), 100, np.uint8), np.random.default_rng(0)
    values = [int(color_jitter(image, generator, brightness=0.4)[0, 0, 0]) for _ in range(400)]
    assert (min(values), max(values)) == (60, 140)
    assert abs(np.mean(values) - 100) < 4
    assert abs(np.std(values) - 80 / np.sqrt(12)) < 2


def test_color_jitter_cuts_the_range_off_at_zero():
    image, generator = np.full((1, 1, 3), 100, np.uint8), np.random.default_rng(0)
    values = [int(color_jitter(image, generator, brightness=1.5)[0, 0, 0]) for _ in range(400)]
    assert min(values) < 5
    assert np.mean(np.array(values) < 30) < 0.2  # were negative factors drawn and clipped, more would be black


def test_color_jitter_turns_hue_both_ways():
    image, generator = np.array([[[200, 0, 0]]], np.uint8), np.random.default_rng(0)
    turned = np.array([color_jitter(image, generator, hue=0.1)[0, 0] for _ in range(200)])
    assert (turned[:, 0] == 200).all()
    assert 110 < turned[:, 1].max() <= 121  # 0.1 of the circle is 0.6 of the way from red to yellow
    assert 110 < turned[:, 2].max() <= 121
    assert 60 < (turned[:, 1] > 0).sum() < 140


def test_color_jitter_applies_its_steps_in_random_order():
    image = np.array([[[200, 200, 200], [40, 40, 40]]], np.uint8)
    brighter_first = adjust_contrast(adjust_brightness(image, 2.0), 0.5)
    spread_first = adjust_brightness(adjust_contrast(image, 0.5), 2.0)
    assert (brighter_first != spread_first).any()
    seen = [
        color_jitter(image, np.random.default_rng(seed), brightness=(2.0, 2.0), contrast=(0.5, 0.5)).tobytes()
        for seed in range(60)
    ]
    assert set(seen) == {brighter_first.tobytes(), spread_first.tobytes()}
    assert 15 < seen.count(spread_first.tobytes()) < 45


def erased_boxes(shape, count, **options):
    """Returns left, top, right, bottom of the rectangles erased from white pictures; None where nothing was."""
    image, generator, boxes = np.full((*shape, 3), 255, np.uint8), np.random.default_rng(0), []
    for _ in range(count):
        erased = (random_erasing(image, generator, fill=0.0, **options) == 0).all(axis=-1)
        rows, columns = np.nonzero(erased)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None
        assert box is None or erased[box[1] : box[3], box[0] : box[2]].all()
        boxes.append(box)
    assert (image == 255).all()
    return boxes


def test_random_erasing_draws_areas_aspects_and_places_in_their_ranges():
    boxes = np.array(erased_boxes((200, 200), 400, probability=1.0, area=(0.02, 0.1), aspect=(0.5, 2.0)))
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, aspects = widths * heights / 200**2, heights / widths
    assert 0.018 < areas.min() < 0.024
    assert 0.096 < areas.max() < 0.103
    assert abs(areas.mean() - 0.06) < 0.004
    assert 0.48 < aspects.min() < 0.55
    assert 1.9 < aspects.max() < 2.06
    assert abs(aspects.mean() - 1.25) < 0.07  # width / height, or a uniform logarithm, would give 1 or 1.08
    assert boxes.min() < 3
    assert boxes.max() > 197
    assert abs((boxes[:, 0] + boxes[:, 2]).mean() - 200) < 12


def test_random_erasing_erases_as_often_as_it_says():
    boxes = erased_boxes((20, 20), 400, probability=0.25)
    assert 70 < sum(box is not None for box in boxes) < 130
    assert not any(erased_boxes((20, 20), 20, probability=0.0))


def test_random_erasing_leaves_an_image_that_no_rectangle_fits():
    assert erased_boxes((10, 100), 5, probability=1.0, area=(0.9, 0.9), aspect=(1.0, 1.0)) == [None] * 5


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_random_erasing_takes_tiny_images(shape):
    assert len(erased_boxes(shape, 20, probability=1.0)) == 20


def test_random_erasing_fills_with_values_of_the_pipelines_images():
    """The re-identification recipe: raw values 0.485, 0.456, 0.406 after the normalisation with ImageNet's figures."""
    raw, mean, std = np.array([[0.485, 0.456, 0.406], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    image, generator = np.zeros((20, 20, 3), np.uint8), np.random.default_rng(0)
    erased = random_erasing(image, generator, probability=1.0, fill=tuple((raw * std + mean).tolist()))
    inside = erased[erased.any(axis=-1)].astype(np.float32) / 255
    np.testing.assert_allclose((inside - mean) / std, np.broadcast_to(raw, inside.shape), atol=0.5 / 255 / 0.224 + 1e-4)


def test_random_erasing_fills_with_one_value_or_noise():
    image = np.full((60, 60, 3), 7, np.uint8)
    grey = random_erasing(image, np.random.default_rng(0), probability=1.0, fill=0.5)
    assert set(np.unique(grey)) == {7, 128}
    noise = random_erasing(image, np.random.default_rng(0), probability=1.0, area=(0.4, 0.4), aspect=(1.0, 1.0))
    inside = noise[(noise != 7).any(axis=-1)].astype(float)
    assert abs(inside.mean() - 127.5) < 5
    assert abs(inside.std() - 256 / np.sqrt(12)) < 3
    assert abs(np.corrcoef(inside[:, 0], inside[:, 1])[0, 1]) < 0.1  # every channel has its own


def test_check_color_jitter_gives_ranges():
    checked = check_color_jitter({"brightness": 0.4, "contrast": 1.5, "saturation": [0, 1], "hue": 0})
    assert checked == {"brightness": (0.6, 1.4), "contrast": (0.0, 2.5), "saturation": (0.0, 1.0), "hue": None}
    assert check_color_jitter(checked) == checked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"brightness": -0.1}, "color_jitter\\['brightness'\\] must be a number of at least 0 or two"),
        ({"contrast": (1.2, 0.8)}, "color_jitter\\['contrast'\\] must be .* got \\(1.2, 0.8\\)"),
        ({"contrast": (-0.2, 0.8)}, "color_jitter\\['contrast'\\]"),
        ({"saturation": float("nan")}, "color_jitter\\['saturation'\\]"),
        ({"saturation": True}, "color_jitter\\['saturation'\\]"),
        ({"hue": 0.6}, "color_jitter\\['hue'\\] must be a number in \\[0, 0.5\\] or two in \\[-0.5, 0.5\\]"),
        ({"hue": (-0.6, 0.0)}, "color_jitter\\['hue'\\]"),
        ({"hue": "all"}, "color_jitter\\['hue'\\]"),
        ({"gamma": 1.0}, "has no option \\['gamma'\\]; its options are \\['brightness', 'contrast', 'hue', 'sat"),
    ],
)
def test_check_color_jitter_names_the_bad_value(options, message):
    with pytest.raises(ValueError, match=message):
        check_color_jitter(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, "random_erasing\\['probability'\\] must lie in \\[0, 1\\], got 1.5"),
        ({"probability": "often"}, "random_erasing\\['probability'\\]"),
        ({"area": (0.02, 1.4)}, "random_erasing\\['area'\\] must be .* got \\(0.02, 1.4\\)"),
        ({"area": 0.2}, "random_erasing\\['area'\\]"),
        ({"aspect": (3.3, 0.3)}, "random_erasing\\['aspect'\\] must be"),
        ({"fill": 124.0}, "random_erasing\\['fill'\\] must be 'random', or one or three numbers in \\[0, 1\\]"),
        ({"fill": (0.5, 0.5)}, "random_erasing\\['fill'\\]"),
        ({"fill": "noise"}, "random_erasing\\['fill'\\]"),
        ({"scale": (0.1, 0.2)}, "has no option \\['scale'\\]; its options are \\['area', 'aspect', 'fill', 'prob"),
    ],
)
def test_check_random_erasing_names_the_bad_value(options, message):
    with pytest.raises(ValueError, match=message):
        check_random_erasing(options)
