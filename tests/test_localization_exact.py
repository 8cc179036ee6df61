"""Every threshold and every IoU of many kinds of maps, against the protocols restated in plain words."""

import dataclasses

import cv2
import ml_dtypes
import numpy as np
import pytest

from distcam_jax.localization import PROTOCOLS, evaluate_boxes
from distcam_jax.localization.heatmaps import boxes_per_level
from tests.wsol_reference import ilsvrc_best_ious, wsol_best_ious, wsol_best_ious_quickly, wsol_boxes, wsol_map

MAPS_OF_A_KIND = 12
WSOL = {"wsol-v1": False, "wsol-v2": True}


def smooth(random, side, sigma):
    return cv2.GaussianBlur(random.normal(size=(side, side)), (0, 0), sigma)


def rectangles(random):
    """Nested rectangles of few values, some hollow: holes, regions in holes, regions of one area."""
    heatmap = np.zeros((224, 224))
    for _ in range(8):
        x, y, r = (*random.integers(0, 200, size=2), random.integers(1, 40))
        heatmap[y : y + r, x : x + r] = random.integers(1, 4)
        if r > 4 and random.random() < 0.7:
            heatmap[y + 1 : y + r - 1, x + 1 : x + r - 1] = random.integers(0, 3)
    return heatmap


def rings(random):
    """Diamonds one pixel thick with a whisker: their hole has the same area and another box; some hold another."""
    heatmap = np.zeros((224, 224))
    rows, columns = np.mgrid[:224, :224]
    for _ in range(5):
        x, y, r = (*random.integers(30, 190, size=2), random.integers(1, 25))
        distance = abs(rows - y) + abs(columns - x)
        heatmap[distance == r] = random.integers(1, 4)
        heatmap[distance == r - 5] = random.integers(1, 3)
        heatmap[y, x + r : min(x + r + random.integers(1, 30), 224)] = 3
    return heatmap


def two_peaks(random):
    rows, columns = np.mgrid[:14, :14]
    centres, heights = random.uniform(0, 13, size=(2, 2)), (1.0, random.choice([1.0, 0.6]))
    return sum(
        h * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 6) for (y, x), h in zip(centres, heights, strict=True)
    )


def towers(random):
    """Three towers of equal width, one on a wide foot: first it is the largest, further up the order decides."""
    heatmap = np.zeros((224, 224))
    y, x = random.integers(50, 150, size=2)
    for step in range(40):
        heatmap[y - 40 + step : y + 49 - step, x - 40 + step : x + 49 - step] = 1 + step / 40
    heatmap[y : y + 9, x : x + 9] = heatmap[2:11, 200:209] = heatmap[200:209, 2:11] = 3
    heatmap[222, 20:220] = np.linspace(0.02, 3, 200)  # a line without area, so that every level occurs
    return heatmap[:: random.choice([1, -1])]


def crater(random):
    """A ring of uneven height around a pit: a hole opens and breaks out with no maximum in between."""
    rows, columns = np.mgrid[:14, :14] - 6.5
    angle = np.arctan2(rows, columns) + random.uniform(0, 6)
    return np.exp(-(((np.hypot(rows, columns) - 4) / 1.5) ** 2)) * (1 + 0.4 * np.cos(angle))


def with_value(random, value):
    heatmap = random.random((7, 7))
    heatmap[tuple(random.integers(0, 7, size=2))] = value
    return heatmap


KINDS = {
    "random": lambda random: random.random([(7, 7), (3, 5), (9, 4)][random.integers(3)]),
    "smooth": lambda random: smooth(random, 14, 1.5),
    "fine": lambda random: smooth(random, 28, 1.5),
    "full_size": lambda random: smooth(random, 224, random.uniform(6, 12)),
    "plateaus": lambda random: np.round(smooth(random, 224, 9) * 60),
    "after_relu": lambda random: np.maximum(smooth(random, 14, 1.0), 0),
    "float32": lambda random: smooth(random, 7, 1.0).astype(np.float32),
    "bfloat16": lambda random: smooth(random, 7, 1.0).astype(ml_dtypes.bfloat16),
    "negative": lambda random: -5 - random.random((7, 7)),
    "constant": lambda random: np.full((7, 7), random.normal()),
    "nan": lambda random: with_value(random, np.nan),
    "infinite": lambda random: with_value(random, random.choice([np.inf, -np.inf])),
    "huge": lambda random: smooth(random, 7, 1.0) * 1e305,
    "tiny": lambda random: smooth(random, 7, 1.0) * 1e-305,
    "narrow": lambda random: 1 + 1e-12 * smooth(random, 7, 1.0),
    "single_cell": lambda random: with_value(random, 40.0) // 40,
    "single_pixels": lambda random: (random.random((224, 224)) > 0.9997).astype(float),
    "ties": lambda random: random.integers(0, 4, size=(9, 9)).astype(float),
    "checkers": lambda random: (random.random((16, 16)) > 0.5).astype(float).repeat(14, 0).repeat(14, 1),
    "two_peaks": two_peaks,
    "rectangles": rectangles,
    "rings": rings,
    "towers": towers,
    "crater": crater,
}


def boxes_of(random, width, height):
    """One to three boxes, some at the border, some partly outside the image."""
    corners = np.sort(random.integers([0, 0], [width, height], size=(random.integers(1, 4), 2, 2)), axis=1)
    corners[:, 1] += 1
    corners[0, 0, random.integers(2)] = random.choice([0, -7])
    if random.random() < 0.5:
        corners[-1, 1] = np.array([width, height]) + random.choice([0, 9])
    return corners.reshape(-1, 4)


def images_of(kind, count):
    random = np.random.default_rng(sum(map(ord, kind)))
    for _ in range(count):
        size = random.integers(40, 600, size=2)
        yield KINDS[kind](random), boxes_of(random, *size), size


def scores_of(heatmap, boxes, size, protocol):
    return evaluate_boxes(np.asarray(heatmap)[None], [boxes], size[None], protocol).best_iou[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WSOL)
def test_evaluate_boxes_wsol_is_the_reference_to_the_last_digit(name, kind):
    for heatmap, boxes, size in images_of(kind, MAPS_OF_A_KIND):
        expected = wsol_best_ious_quickly(heatmap, boxes, size.tolist(), WSOL[name])
        np.testing.assert_array_equal(scores_of(heatmap, boxes, size, name), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WSOL)
def test_boxes_per_level_are_all_of_the_reference(name, kind):
    # The best IoU tells little of the boxes that are not the best.
    for heatmap, _, _ in images_of(kind, MAPS_OF_A_KIND // 3):
        boxes, starts, mask_of_threshold = boxes_per_level(np.asarray(heatmap).astype(np.float64), PROTOCOLS[name])
        boxes = [sorted(level.tolist()) for level in np.split(boxes, starts[1:])]
        levels = (wsol_map(heatmap) * 255).astype(np.uint8)
        for threshold, mask in list(zip(PROTOCOLS[name].thresholds, mask_of_threshold, strict=True))[::3]:
            assert boxes[mask] == sorted(wsol_boxes(levels, int(threshold * levels.max()), WSOL[name]))


@pytest.mark.parametrize("name", WSOL)
def test_evaluate_boxes_wsol_is_the_reference_where_no_mask_is_left_out(name):
    heatmap, boxes, size = next(images_of("fine", 1))
    expected = wsol_best_ious(heatmap, boxes, size.tolist(), WSOL[name])
    np.testing.assert_array_equal(scores_of(heatmap, boxes, size, name), expected)
    assert len(np.unique(expected)) > 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thresholds", [(0.2,), tuple(np.linspace(0, 1, 21))])
def test_evaluate_boxes_ilsvrc_is_the_protocol_to_the_last_digit(thresholds, kind):
    for index, (heatmap, boxes, size) in enumerate(images_of(kind, MAPS_OF_A_KIND)):
        input_size = (224, 64, 57)[index % 3]
        protocol = dataclasses.replace(PROTOCOLS["ilsvrc"], thresholds=thresholds, input_size=input_size)
        expected = ilsvrc_best_ious(heatmap, boxes, size.tolist(), thresholds, input_size)
        np.testing.assert_array_equal(scores_of(heatmap, boxes, size, protocol), expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("scaling", ["max", "minmax"])
@pytest.mark.parametrize("components", ["largest_region", "largest_contour", "all_contours"])
def test_evaluate_boxes_of_many_thresholds_is_that_of_each_alone(components, scaling, eight_bit, strict):
    # Alone, a mask is searched as a whole; among many, most are told from their neighbours.
    changes = dict(components=components, scaling=scaling, eight_bit=eight_bit, strict=strict, input_size=48)
    protocol = dataclasses.replace(PROTOCOLS["ilsvrc"], thresholds=np.linspace(0, 1, 41), **changes)
    for kind in ("random", "smooth", "after_relu", "negative", "rings"):
        for heatmap, boxes, size in images_of(kind, 2):
            each = [dataclasses.replace(protocol, thresholds=(t,)) for t in protocol.thresholds]
            expected = np.concatenate([scores_of(heatmap, boxes, size, alone) for alone in each])
            np.testing.assert_array_equal(scores_of(heatmap, boxes, size, protocol), expected)
