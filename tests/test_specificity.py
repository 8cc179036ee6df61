"""Pointing games and the likeness of maps against OpenCV, SciPy, plain loops and values by hand."""

import cv2
import numpy as np
import pytest
import scipy.stats

from distcam_jax.specificity import (
    box_mask,
    compose_pair,
    energy_inside,
    half_masks,
    heat_difference,
    map_correlation,
    map_similarity,
    points_inside,
    swap_test,
)

MEASURES = (points_inside, energy_inside, heat_difference)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def resized(heatmap, size):
    return cv2.resize(heatmap, size[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float64)


# ---- compose_pair, half_masks, box_mask


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_compose_pair_fills_the_halves_of_its_masks(axis):
    a, b = random(0, 3, 4, 6, 3), random(1, 3, 4, 6, 3)
    picture = np.asarray(compose_pair(a, b, axis=axis))
    assert picture.shape == ((3, 4, 12, 3) if axis == "horizontal" else (3, 8, 6, 3))
    first, second = half_masks(picture.shape[1:3], axis=axis)
    np.testing.assert_array_equal(picture[:, first], a.reshape(3, -1, 3))
    np.testing.assert_array_equal(picture[:, second], b.reshape(3, -1, 3))


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_compose_pair_squeezed_shows_each_photograph_whole(axis):
    a, b = random(0, 4, 6, 3), random(1, 4, 6, 3)
    picture = compose_pair(a, b, axis=axis, layout="squeeze")
    half = (3, 4) if axis == "horizontal" else (6, 2)  # width, height
    parts = [cv2.resize(one, half, interpolation=cv2.INTER_AREA) for one in (a, b)]
    np.testing.assert_allclose(picture, np.concatenate(parts, axis=1 if axis == "horizontal" else 0), atol=1e-6)


def test_box_mask_is_the_union_of_the_boxes():
    boxes = np.array([[0.0, 0.0, 1.4, 2.0], [1.6, 1.0, 9.0, 3.0]])
    assert box_mask(boxes, (3, 4)).astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 1, 1], [0, 0, 1, 1]]
    assert not box_mask(np.zeros((0, 4)), (3, 4)).any()


# ---- points_inside


def test_points_inside_finds_the_maximum_of_the_resized_map():
    heatmaps, size = random(0, 40, 3, 4), (18, 24)
    boxes = [[3, 2, 15, 14], [0, 0, 9, 18], [12, 0, 24, 18], [8, 6, 24, 9]]
    masks = np.stack([box_mask(np.array([boxes[i % 4]]), size) for i in range(40)])
    scores = points_inside(heatmaps, masks)
    expected = [mask.flat[np.argmax(resized(one, size))] for one, mask in zip(heatmaps, masks, strict=True)]
    np.testing.assert_array_equal(scores, expected)
    assert 0.2 < np.mean(scores) < 0.8


@pytest.mark.parametrize("value", [0.0, 0.3, -7.1, 1e30])
def test_points_inside_of_a_constant_map_is_the_share_of_the_mask(value):
    mask = box_mask(np.array([[0, 0, 5, 4]]), (20, 10))
    assert float(points_inside(np.full((7, 7), value, np.float32), mask)) == pytest.approx(20 / 200)


def test_points_inside_shares_equal_maxima():
    # Mirrored peaks, which interpolation may round apart; three of the four lie in the upper half.
    heatmap = np.array([[0.1, 0.7, 0.1, 0.7, 0.1], [0.2, 0.3, 0.2, 0.3, 0.2]], np.float32)
    left = box_mask(np.array([[0, 0, 35, 20]]), (20, 70))
    right = box_mask(np.array([[35, 0, 70, 20]]), (20, 70))
    assert [float(points_inside(heatmap, mask)) for mask in (left, right)] == [0.5, 0.5]
    assert points_inside(np.array([[1.0, 1.0, 0.0, 1.0]]), half_masks((1, 4))).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_points_inside_tells_close_values_apart():
    assert points_inside(np.array([[1.0, 1.00001]], np.float32), half_masks((1, 2))).tolist() == [0.0, 1.0]


# ---- energy_inside, heat_difference


def test_energy_inside_is_the_share_of_positive_heat():
    heatmaps, size = random(0, 6, 3, 4), (12, 20)
    masks = half_masks(size)
    for one, shares in zip(heatmaps, energy_inside(heatmaps[:, None], masks), strict=True):
        heat = np.maximum(resized(one, size), 0)
        np.testing.assert_allclose(shares, [heat[mask].sum() / heat.sum() for mask in masks], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-35, 1e-5, 1e35])
def test_energy_inside_and_heat_difference_do_not_depend_on_the_scale(scale):
    heatmap, masks = random(1, 3, 4), half_masks((12, 20))
    for measure in (energy_inside, heat_difference):
        np.testing.assert_allclose(measure(heatmap * np.float32(scale), masks), measure(heatmap, masks), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_energy_inside_without_positive_heat_is_the_share_of_the_mask(value):
    mask = box_mask(np.array([[0, 0, 5, 4]]), (20, 10))
    assert float(energy_inside(np.full((5, 5), value, np.float32), mask)) == pytest.approx(0.1)


def test_heat_difference_counts_negative_heat():
    heatmaps, size = random(0, 6, 3, 4), (12, 20)
    mask = box_mask(np.array([[0, 0, 7, 12]]), size)
    for one, found in zip(heatmaps, heat_difference(heatmaps, mask), strict=True):
        heat = resized(one, size)
        assert float(found) == pytest.approx((heat[mask].mean() - heat[~mask].mean()) / np.abs(heat).mean(), rel=1e-4)


@pytest.mark.parametrize("mask", [np.zeros((4, 4), bool), np.ones((4, 4), bool)])
def test_heat_difference_without_an_inside_or_an_outside_is_zero(mask):
    assert float(heat_difference(random(0, 2, 2), mask)) == 0
    assert heat_difference(np.zeros((2, 2), np.float32), half_masks((4, 4))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("measure", MEASURES)
def test_measures_of_a_spoilt_map_are_zero_and_leave_others_alone(measure, value):
    heatmaps, mask = random(0, 2, 3, 3), box_mask(np.array([[0, 0, 6, 9]]), (9, 9))
    alone, spoilt = measure(heatmaps, mask), heatmaps.copy()
    spoilt[0, 1, 1] = value
    assert measure(spoilt, mask).tolist() == [0.0, alone[1]]


# ---- swap_test


def test_swap_test_compares_the_two_maps_and_not_the_halves():
    left, right = np.array([[9.0, 1.0]]), np.array([[6.0, 4.0]])
    mask_left, mask_right = half_masks((4, 8))
    # Both are hotter on the left, the second one relatively less.
    assert [float(swap_test(a, b, mask_left)) for a, b in ((left, right), (right, left))] == [1.0, 0.0]
    assert [float(swap_test(a, b, mask_right)) for a, b in ((left, right), (right, left))] == [0.0, 1.0]


def test_swap_test_does_not_see_the_scale_of_a_map():
    maps, mask = random(0, 5, 3, 4), half_masks((12, 20))[0]
    assert swap_test(maps, 7 * maps, mask).tolist() == [0.5] * 5


def test_swap_test_with_a_spoilt_map_is_zero():
    maps = np.ones((2, 3, 4), np.float32)
    spoilt = maps.copy()
    spoilt[0, 0, 0] = np.nan
    assert swap_test(maps, spoilt, half_masks((3, 4))[0]).tolist() == [0.0, 0.5]


# ---- map_similarity


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_map_similarity_is_that_of_scipy(kind, levels):
    draw = np.random.default_rng(levels).integers(0, levels, size=(2, 4, 5, 6)).astype(np.float32)
    a, b = draw[0] + 3 * draw[1], draw[1] ** 2
    expected = [getattr(scipy.stats, f"{kind}r")(x.ravel(), y.ravel())[0] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(map_similarity(a, b, kind=kind), expected, atol=2e-6)


def test_map_similarity_spearman_does_not_see_a_rising_function():
    maps = random(0, 3, 7, 7)
    np.testing.assert_allclose(map_similarity(maps, np.exp(3 * maps)), 1, atol=1e-6)
    np.testing.assert_allclose(map_similarity(maps, -maps), -1, atol=1e-6)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_map_similarity_with_a_constant_map_is_zero(kind):
    # The mean of 0.3 is not 0.3 to the last bit, so that rounding errors would correlate.
    constant = np.full((7, 7), 0.3, np.float32)
    assert float(map_similarity(constant, random(0, 7, 7), kind=kind)) == 0
    assert float(map_similarity(constant, constant, kind=kind)) == 0


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_map_similarity_with_nan_is_nan_and_leaves_others_alone(kind):
    a, b = random(0, 2, 3, 3), random(1, 2, 3, 3)
    alone, spoilt = map_similarity(a, b, kind=kind), a.copy()
    spoilt[0, 0, 0] = np.nan
    found = map_similarity(spoilt, b, kind=kind)
    assert np.isnan(found[0])
    assert found[1] == alone[1]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_map_similarity_pearson_does_not_see_the_scale(scale):
    a, b = random(0, 5, 5), random(1, 5, 5)
    found = map_similarity(a * np.float32(scale), b, kind="pearson")
    assert float(found) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-5)


def test_map_similarity_broadcasts():
    a, b = random(0, 2, 1, 3, 3), random(1, 4, 3, 3)
    found = map_similarity(a, b)
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found[1, 2], map_similarity(a[1, 0], b[2]), atol=1e-7)


# ---- map_correlation


def test_map_correlation_is_the_mean_over_pairs_of_maps_that_vary():
    maps = random(0, 3, 4, 5, 5)
    maps[1, 2] = 0.3  # one constant: three pairs are left
    maps[2, :3] = 0.7  # one that varies: none
    correlations, pairs = map_correlation(maps)
    assert pairs.tolist() == [6, 3, 0]
    for i, kept in ((0, [0, 1, 2, 3]), (1, [0, 1, 3])):
        table = np.corrcoef(maps[i, kept].reshape(len(kept), -1).astype(np.float64))
        assert float(correlations[i]) == pytest.approx(table[np.triu_indices(len(kept), 1)].mean(), abs=1e-6)
    assert np.isnan(correlations[2])


def test_map_correlation_of_maps_that_differ_in_scale_is_one():
    one = random(0, 1, 5, 5)
    correlation, pairs = map_correlation(np.concatenate([one, 3 * one + 2, 0.1 * one]))
    assert (float(correlation), int(pairs)) == (pytest.approx(1, abs=1e-6), 3)


# ---- bad input


MAP, MASK = np.ones((2, 2), np.float32), np.ones((4, 4), bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compose_pair(np.ones((2, 2, 3)), np.ones((2, 4, 3))), "with w = 2 as in image_a"),
        (lambda: compose_pair(np.ones((1, 2, 2, 3)), np.ones((5, 2, 2, 3))), "image_a, image_b: want one shape"),
        (lambda: compose_pair(np.ones((2, 2, 3)), np.ones((2, 2, 3)), axis="both"), "axis: want one of 'horizontal'"),
        (lambda: compose_pair(np.ones((2, 2, 3)), np.ones((2, 2, 3)), layout="a"), "layout: want one of 'wide'"),
        (lambda: compose_pair(np.ones((2, 3, 3)), np.ones((2, 3, 3)), layout="squeeze"), "layout: want an even side"),
        (lambda: half_masks((4, 3)), r"size: want an even side to halve, got \(4, 3\)"),
        (lambda: half_masks((3, 4), axis="vertical"), "size: want an even side"),
        (lambda: half_masks((0, 4)), "height: want a positive integer"),
        (lambda: box_mask(np.ones(4), (2, 2)), r"boxes_xyxy: want shape \[m, 4\]"),
        (lambda: points_inside(MAP, MASK.astype(int)), "masks: want booleans"),
        (lambda: energy_inside(np.ones((3, 2, 2)), np.ones((2, 4, 4), bool)), "heatmaps, masks: want leading axes"),
        (lambda: points_inside(np.ones((2, 2), int), MASK), "heatmaps: want a floating type"),
        (lambda: map_similarity(MAP, MAP, kind="kendall"), "kind: want one of 'spearman', 'pearson', got 'kendall'"),
        (lambda: map_similarity(MAP, np.ones((2, 3))), "maps_b: want axes"),
        (lambda: map_correlation(np.ones((1, 2, 2))), "maps: want at least 2 of each image"),
    ],
)
def test_functions_name_the_bad_argument(call, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        call()
