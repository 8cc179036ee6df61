"""Average precision of pixels against a loop that counts all pixels anew at every threshold, and by hand."""

import dataclasses

import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.localization import PROTOCOLS, PixelCounts, count_pixels, pixel_average_precision
from tests import wsol_reference


def tiny(**changes):
    return dataclasses.replace(PROTOCOLS["wsol-v1"], **({"input_size": 2} | changes))


def images(seed, n=3, side=7):
    """Maps that are brighter on the object, the masks of the object and those to ignore, which overlap it."""
    random = np.random.default_rng(seed)
    masks, ignored = np.zeros((2, n, 224, 224), bool)
    for mask, ignore in zip(masks, ignored, strict=True):
        for target in (mask, ignore):
            y, x = random.integers(0, 150, size=2)
            target[y : y + random.integers(20, 74), x : x + random.integers(20, 74)] = True
    cells = masks.reshape(n, side, 224 // side, side, 224 // side).mean(axis=(2, 4))
    return cells + random.random((n, side, side)), masks, ignored


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ignores", [False, True])
def test_pixel_average_precision_matches_the_reference_routine(ignores, seed):
    heatmaps, masks, ignored = images(seed)
    heatmaps[1] = np.round(heatmaps[1] * 3)
    if seed == 1:
        heatmaps[2] = 0.3  # a constant map scores 0 everywhere
    expected = wsol_reference.pixel_average_precision(heatmaps, masks, ignored if ignores else np.zeros_like(masks))
    found = pixel_average_precision(heatmaps, masks, ignored if ignores else None)
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0.05 < found < 0.95


def test_pixel_average_precision_counts_thresholds_and_the_maximum():
    # The object's pixel at 0.5 is in the bin of the threshold 0.5 with a background pixel at 0.7; its other one at 1.
    heatmap = np.array([[[1.0, 0.7], [0.5, 0.0]]])
    masks = np.array([[[True, False], [True, False]]])
    counts = count_pixels(heatmap, masks, protocol=tiny(thresholds=(0.0, 0.5)))
    assert counts.object_pixels.tolist() == [0, 1, 1]
    assert counts.background_pixels.tolist() == [1, 1, 0]
    assert counts.precision.tolist() == [1.0, 2 / 3, 0.5]
    assert counts.recall.tolist() == [0.5, 1.0, 1.0]
    assert counts.average_precision == pytest.approx(1 * 0.5 + 2 / 3 * 0.5)


def test_pixel_average_precision_ignores_the_region_but_not_the_object_in_it():
    heatmap = np.array([[[1.0, 0.7], [0.5, 0.0]]])
    masks = np.array([[[1, 0], [1, 0]]])
    ignored = np.array([[[1, 255], [0, 0]]], np.uint8)
    counts = count_pixels(heatmap, masks, ignored, protocol=tiny(thresholds=(0.0, 0.5)))
    assert counts.object_pixels.tolist() == [0, 1, 1]
    assert counts.background_pixels.tolist() == [1, 0, 0]
    assert counts.average_precision == 1.0


def test_count_pixels_adds_up_over_batches():
    heatmaps, masks, ignored = images(7, n=4)
    whole = count_pixels(heatmaps, masks, ignored)
    first, second = (count_pixels(heatmaps[part], masks[part], ignored[part]) for part in (slice(1), slice(1, 4)))
    np.testing.assert_array_equal((first + second).object_pixels, whole.object_pixels)
    np.testing.assert_array_equal((second + first).background_pixels, whole.background_pixels)
    assert (first + second).average_precision == whole.average_precision
    assert abs(first.average_precision + 3 * second.average_precision - 4 * whole.average_precision) > 1e-3


def test_count_pixels_takes_the_nearest_pixels_of_masks_of_any_size():
    heatmap = np.array([[[1.0, 0.0], [0.0, 0.0]]])
    wide = np.zeros((3, 8), bool)
    wide[0, 0] = True  # nearest pixels are those at 0 and 4, in the rows 0 and 1
    missed = np.zeros((3, 8), bool)
    missed[2, 1:4] = missed[0, 4] = True
    counts = count_pixels(np.tile(heatmap, (2, 1, 1)), [wide, missed], protocol=tiny(thresholds=(0.0,)))
    assert counts.object_pixels.tolist() == [1, 1]
    assert counts.background_pixels.tolist() == [5, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_count_pixels_scores_a_spoilt_map_zero(value):
    heatmaps = np.array([[[1.0, 0.0], [0.0, 0.0]]] * 2)
    heatmaps[1, 1, 1] = value
    counts = count_pixels(heatmaps, np.ones((2, 2, 2), bool), protocol=tiny())
    assert counts.object_pixels[[0, -1]].tolist() == [7, 1]


def test_count_pixels_accepts_jax_arrays():
    heatmaps, masks, ignored = images(3)
    expected = count_pixels(heatmaps.astype(np.float32), masks, ignored)
    on_device = count_pixels(jnp.asarray(heatmaps, jnp.float32), jnp.asarray(masks), jnp.asarray(ignored))
    np.testing.assert_array_equal(on_device.object_pixels, expected.object_pixels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heatmaps": np.ones((2, 2))}, r"heatmaps must have shape \[n, h, w\]"),
        ({"masks": np.ones((2, 2, 2), bool)}, "masks must have one entry an image, got 2 for 1 heatmaps"),
        ({"masks": np.ones((1, 2, 2))}, r"masks\[0\] must be bool or whole numbers .* got float64 \(2, 2\)"),
        ({"masks": [np.ones((0, 2), bool)]}, r"masks\[0\] must be bool"),
        ({"ignore_masks": np.ones((1, 2), bool)}, r"ignore_masks\[0\] must be .* got bool \(2,\)"),
        ({"masks": np.zeros((1, 2, 2), bool)}, "masks must hold at least one pixel of an object"),
        ({"protocol": "ilsvrc"}, "protocol must have scaling='minmax'"),
        ({"protocol": tiny(thresholds=(0.1, 0.2))}, "thresholds that rise from 0"),
        ({"protocol": tiny(thresholds=(0.0, 1.0))}, "all below 1"),
        ({"protocol": "voc"}, "got 'voc'"),
    ],
)
def test_pixel_average_precision_names_the_bad_argument(changes, message, without_type_checks):
    arguments = {"heatmaps": np.eye(2)[None], "masks": np.ones((1, 2, 2), bool), "ignore_masks": None}
    arguments |= {"protocol": "wsol-v1"} | changes
    options = {"protocol": arguments.pop("protocol")}
    with pytest.raises(ValueError, match=message):
        pixel_average_precision(*arguments.values(), **options)


def test_pixel_counts_of_other_thresholds_do_not_add_up():
    counts = PixelCounts(np.array([0.0]), np.array([1, 1]), np.array([1, 0]))
    with pytest.raises(ValueError, match="thresholds must be the same"):
        counts + PixelCounts(np.array([0.0, 0.5]), np.array([1, 1, 0]), np.array([1, 0, 0]))
