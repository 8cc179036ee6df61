"""Pictures of the report: heatmaps over images, sizes, boxes."""

import jax.numpy as jnp
import numpy as np
import pytest

from distcam_jax import report
from distcam_jax.report import overlays

GRAY = np.full((64, 64, 3), 0.5, np.float32)


def test_overlay_heatmap_hot_corner_is_red_and_cold_is_blue():
    picture = report.overlay_heatmap(GRAY, np.array([[0.0, 0.0], [0.0, 3.0]]), alpha=1.0).astype(int)
    red, green, blue = picture[-1, -1]
    assert red > 150 > 80 > max(green, blue)
    red, green, blue = picture[0, 0]
    assert blue > 150 > 100 > max(red, green)


def test_overlay_heatmap_subtracts_no_minimum_and_clips_negative_values():
    table = overlays.color_table()
    half = report.overlay_heatmap(GRAY, np.repeat([[1.0], [2.0]], 2, 1), alpha=1.0)
    np.testing.assert_array_equal(half[0, 0], table[128])  # 1 of 2, not the lowest
    negative = report.overlay_heatmap(GRAY, np.repeat([[-50.0], [2.0]], 2, 1), alpha=1.0)
    np.testing.assert_array_equal(negative[0, 0], table[0])
    np.testing.assert_array_equal(negative[-1, 0], table[255])


def test_overlay_heatmap_of_a_uniform_map_is_all_high():
    picture = report.overlay_heatmap(GRAY, np.full((3, 5), 1e-20, np.float32), alpha=1.0)
    np.testing.assert_array_equal(picture, np.broadcast_to(overlays.color_table()[255], picture.shape))


@pytest.mark.parametrize(
    "heatmap", [np.zeros((2, 2)), -np.eye(2), np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]])]
)
def test_overlay_heatmap_without_heat_is_the_plain_image(heatmap):
    assert not report.has_heat(heatmap)
    np.testing.assert_array_equal(report.overlay_heatmap(GRAY, heatmap), np.full((320, 320, 3), 128))


def test_overlay_heatmap_blends_by_alpha():
    for alpha in (0.0, 0.25, 1.0):
        wanted = (1 - alpha) * 128 + alpha * overlays.color_table()[255].astype(float)
        got = report.overlay_heatmap(GRAY, np.ones((2, 2)), alpha=alpha)[5, 5]
        assert np.abs(got - wanted).max() <= 0.5


def test_overlay_heatmap_shares_a_scale():
    picture = report.overlay_heatmap(GRAY, np.ones((2, 2)), alpha=1.0, maximum=4.0)
    np.testing.assert_array_equal(picture[0, 0], overlays.color_table()[64])


def test_overlay_heatmap_takes_uint8_and_jax_arrays_and_keeps_its_arguments():
    image, heatmap = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8), np.eye(4, dtype=np.float32)
    before = image.copy(), heatmap.copy()
    from_numpy = report.overlay_heatmap(image, heatmap)
    np.testing.assert_array_equal(from_numpy, report.overlay_heatmap(jnp.asarray(image), jnp.asarray(heatmap)))
    bfloat16 = jnp.asarray(heatmap, jnp.bfloat16)
    np.testing.assert_array_equal(from_numpy, report.overlay_heatmap(image, bfloat16))
    assert from_numpy.shape == (320, 480, 3)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(heatmap, before[1])


def test_overlay_heatmap_extreme_values_stay_finite():
    heatmap = np.array([[-3e38, 1e-38], [3e38, 0]], np.float32)
    picture = report.overlay_heatmap(GRAY, heatmap, alpha=1.0)
    np.testing.assert_array_equal(picture[-1, 0], overlays.color_table()[255])


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("image", "heatmap", "options", "message"),
    [
        (GRAY[..., 0], np.eye(2), {}, "image must be"),
        (GRAY, np.ones(4), {}, "heatmap must be"),
        (GRAY, np.ones((0, 4)), {}, "heatmap must be"),
        (GRAY, np.eye(2), {"alpha": 1.5}, "alpha"),
        (GRAY, np.eye(2), {"colormap": "rainbows"}, "'rainbows' is unknown; valid are"),
    ],
)
def test_overlay_heatmap_names_the_bad_argument(image, heatmap, options, message):
    with pytest.raises(ValueError, match=message):
        report.overlay_heatmap(image, heatmap, **options)


def test_to_uint8_rounds_half_up_and_clips():
    values = np.array([-0.5, 0.0, 0.5, 1 / 255, 1.0, 2.0, np.nan])
    image = np.stack([values] * 3, -1)[None]
    assert overlays.to_uint8(image)[0, :, 0].tolist() == [0, 0, 128, 1, 255, 255, 0]


def test_enlarge_keeps_the_squares_of_tiny_images():
    tiny = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(overlays.enlarge(tiny), tiny.repeat(40, 0).repeat(40, 1))


@pytest.mark.parametrize("size", [(1, 1), (64, 48), (224, 224), (500, 375), (4000, 10), (256, 128)])
def test_display_size_keeps_the_aspect_and_the_limits(size):
    height, width = overlays.display_size(*size)
    assert max(height, width) <= 640
    assert min(height, width) >= 192 or max(height, width) == 640
    assert abs(height / width - size[0] / size[1]) <= 0.5 * size[0] / size[1]


def test_draw_boxes_colors_the_outline_alone():
    image = np.zeros((20, 30, 3), np.uint8)
    picture = report.draw_boxes(image, [[5, 3, 25, 17]], (1, 2, 3), thickness=2, halo=False)
    for y in range(20):
        for x in range(30):
            inside = 5 <= x < 25 and 3 <= y < 17
            core = 7 <= x < 23 and 5 <= y < 15
            assert picture[y, x].tolist() == ([1, 2, 3] if inside and not core else [0, 0, 0])
    assert not image.any()


def test_draw_boxes_cuts_at_the_border_and_leaves_empty_boxes_out():
    image = np.zeros((6, 6, 3), np.uint8)
    boxes = np.array([[-9, -9, 3, 99], [4, 4, 4, 6], [np.nan, 0, 2, 2], [0, 0, 0, 0]])
    picture = report.draw_boxes(image, boxes, (9, 9, 9), thickness=1, halo=False)[..., 0]
    wanted = np.zeros((6, 6), int)
    wanted[:, :3] = 9
    wanted[1:5, 1] = 0
    np.testing.assert_array_equal(picture, wanted)


def test_draw_boxes_halo_darkens_both_sides():
    image = np.full((20, 20, 3), 255, np.uint8)
    picture = report.draw_boxes(image, [[5, 5, 15, 15]], (255, 0, 0), thickness=2)
    assert picture[10, 5].tolist() == picture[10, 6].tolist() == [255, 0, 0]
    assert max(picture[10, 4].max(), picture[10, 7].max()) < 150
    assert picture[10, 3].tolist() == picture[10, 8].tolist() == [255, 255, 255]
