"""Scores against a plain restatement of the reference routine, and against boxes by hand."""

import dataclasses

import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.localization import PROTOCOLS, LocalizationScores, evaluate_boxes
from tests.wsol_reference import wsol_best_ious


def ilsvrc(**changes):
    return dataclasses.replace(PROTOCOLS["ilsvrc"], **changes)


def random_images(seed, n=12, shape=(7, 7)):
    """Noisy maps with a bright rectangle, its box in the original image, and up to two random boxes besides."""
    random = np.random.default_rng(seed)
    heatmaps = random.random((n, *shape)).astype(np.float32)
    sizes = random.integers(40, 600, size=(n, 2))
    h, w = shape
    boxes = []
    for heatmap, (width, height) in zip(heatmaps, sizes, strict=True):
        x0, y0 = random.integers(0, [w // 2, h // 2])
        x1, y1 = random.integers([x0 + 2, y0 + 2], [w + 1, h + 1])
        heatmap[y0:y1, x0:x1] += 0.7
        bright = [[x0 * width // w, y0 * height // h, x1 * width // w, y1 * height // h]]
        others = np.sort(random.integers(0, 40, size=(random.integers(0, 3), 2, 2)), axis=1).reshape(-1, 4)
        boxes.append(np.concatenate([np.array(bright), others + np.array([0, 0, 1, 1])]))
    return heatmaps, boxes, sizes


# ---- evaluate_boxes: ilsvrc


def test_evaluate_boxes_ilsvrc_counts_an_iou_of_exactly_one_half():
    heatmap = np.ones((1, 4, 4), np.float32)
    boxes = [np.array([[0, 0, 100, 25]]), np.array([[0, 0, 100, 24]])]
    scores = evaluate_boxes(np.tile(heatmap, (2, 1, 1)), boxes, np.array([[100, 50], [100, 50]]), "ilsvrc")
    assert scores.correct[:, 0, 0].tolist() == [True, False]


def test_evaluate_boxes_ilsvrc_scales_by_width_and_height():
    # Left half of a wide image: exchanging width and height would shrink the box.
    heatmap = np.zeros((1, 2, 2), np.float32)
    heatmap[0, :, 0] = 1
    box = [np.array([[0, 0, 240, 100]])]
    scores = evaluate_boxes(heatmap, box, np.array([[400, 100]]), ilsvrc(thresholds=(0.5,), input_size=20))
    assert scores.best_iou.item() == pytest.approx(200 / 240)


def test_evaluate_boxes_ilsvrc_counts_any_true_box():
    heatmap = np.ones((1, 4, 4), np.float32)
    boxes = [np.array([[0, 0, 3, 3], [0, 0, 40, 40], [30, 30, 31, 31]])]
    assert evaluate_boxes(heatmap, boxes, np.array([[40, 40]])).max_box_acc == 1.0


@pytest.mark.parametrize("value", [0.0, -0.3, np.nan, np.inf])
@pytest.mark.parametrize("name", ["ilsvrc", "wsol-v1", "wsol-v2"])
def test_evaluate_boxes_spoilt_map_is_wrong_and_leaves_others_alone(name, value):
    heatmaps = np.zeros((3, 4, 4), np.float32)
    heatmaps[:, 1:3, 1:3] = 1
    heatmaps[1] = value
    boxes = [np.array([[20, 20, 60, 60]])] * 3
    scores = evaluate_boxes(heatmaps, boxes, np.full((3, 2), 80), name)
    assert scores.correct.any(axis=(1, 2)).tolist() == [True, False, True]


def test_evaluate_boxes_accepts_boxes_outside_the_image():
    heatmap = np.ones((1, 4, 4), np.float32)
    scores = evaluate_boxes(heatmap, [np.array([[-10.0, 0.0, 110.0, 100.0]])], np.array([[100, 100]]))
    assert scores.best_iou.item() == pytest.approx(100 / 120)


@pytest.mark.parametrize("name", ["ilsvrc", "wsol-v1", "wsol-v2"])
def test_evaluate_boxes_accepts_jax_arrays(name):
    heatmaps, boxes, sizes = random_images(5, n=3)
    expected = evaluate_boxes(heatmaps, boxes, sizes, name)
    on_device = evaluate_boxes(jnp.asarray(heatmaps), [jnp.asarray(b) for b in boxes], jnp.asarray(sizes), name)
    np.testing.assert_array_equal(on_device.best_iou, expected.best_iou)


def test_evaluate_boxes_accepts_one_array_of_boxes():
    heatmaps, _, sizes = random_images(5, n=3)
    boxes = np.tile([[[0, 0, 30, 30]]], (3, 2, 1))
    expected = evaluate_boxes(heatmaps, list(boxes), sizes)
    np.testing.assert_array_equal(evaluate_boxes(heatmaps, boxes, sizes).best_iou, expected.best_iou)


# ---- evaluate_boxes: wsol


@pytest.mark.parametrize("shape", [(7, 7), (28, 28), (5, 9)])
@pytest.mark.parametrize("name", ["wsol-v1", "wsol-v2"])
def test_evaluate_boxes_wsol_matches_the_reference_routine(name, shape):
    heatmaps, boxes, sizes = random_images(len(name) + shape[0], n=3, shape=shape)
    heatmaps[1] -= 2  # the minimum is subtracted, so the sign does not matter
    heatmaps[2] = heatmaps[2] > 0.7  # plateaus: contours of equal area
    scores = evaluate_boxes(heatmaps, boxes, sizes, name)
    images = zip(heatmaps, boxes, sizes.tolist(), strict=True)
    expected = np.stack([wsol_best_ious(*image, all_contours=name == "wsol-v2") for image in images])
    np.testing.assert_array_equal(scores.best_iou, expected)
    np.testing.assert_array_equal(scores.correct, expected[:, :, None] >= scores.ious)
    assert 0 < scores.correct.mean() < 1


@pytest.mark.parametrize("value", [0.3, 1.0, np.nan])
def test_evaluate_boxes_wsol_constant_map_has_the_box_of_zeros(value):
    # The box of zeros has one pixel under this convention. 0.3 does not stay constant to the last bit when upsampled.
    scores = evaluate_boxes(np.full((1, 7, 7), value), [np.array([[0, 0, 2, 4]])], np.array([[224, 224]]), "wsol-v2")
    assert set(scores.best_iou.ravel().tolist()) == {1 / 8}


@pytest.mark.parametrize(("name", "expected"), [("wsol-v1", [0.5]), ("wsol-v2", [0.3, 0.5, 0.7])])
def test_evaluate_boxes_wsol_has_1000_thresholds(name, expected):
    heatmaps, boxes, sizes = random_images(2, n=2)
    scores = evaluate_boxes(heatmaps, boxes, sizes, name)
    assert scores.correct.shape == (2, 1000, len(expected))
    assert scores.ious.tolist() == expected
    np.testing.assert_array_equal(scores.thresholds, np.arange(0, 1, 0.001))


def test_evaluate_boxes_wsol_compares_inclusive_boxes_with_one_added():
    # A square of pixels 56..111 in both axes becomes the box 56, 56, 112, 112, of 57 x 57 pixels. The true box 56..112
    # (inclusive) is stored as 56..113.
    heatmap = np.zeros((1, 224, 224))
    heatmap[0, 56:112, 56:112] = 1
    boxes = [np.array([[56, 56, 113, 113]])]
    assert evaluate_boxes(heatmap, boxes, np.array([[224, 224]]), "wsol-v1").best_iou[0, 500] == 1.0


def test_evaluate_boxes_wsol_keeps_the_end_inside_the_map():
    heatmap = np.zeros((1, 224, 224))
    heatmap[0, 100:, 100:] = 1
    boxes = [np.array([[100, 100, 224, 224]])]
    assert evaluate_boxes(heatmap, boxes, np.array([[224, 224]]), "wsol-v2").best_iou[0, 500] == 1.0


def test_evaluate_boxes_wsol_takes_one_off_before_it_scales_and_truncates():
    # x1: (50 - 1) * 224 / 100 = 109.76 -> 109. Scaling first gives 112 - 1 = 111; rounding gives 110.
    heatmap = np.zeros((1, 224, 224))
    heatmap[0, :109, :109] = 1  # its box ends at 109
    scores = evaluate_boxes(heatmap, [np.array([[0, 0, 50, 50]])], np.array([[100, 100]]), "wsol-v1")
    assert scores.best_iou[0, 500] == 1.0


@pytest.mark.parametrize(("side", "x0", "start"), [(320, 90, 63), (336, 183, 122)])
def test_evaluate_boxes_wsol_multiplies_before_it_divides(side, x0, start):
    # x0 * 224 / side is exactly `start`; x0 * (224 / side) in the first case, x0 / side * 224 in the second fall short.
    heatmap = np.zeros((1, 224, 224))
    heatmap[0, start:, start:] = 1
    boxes = [np.array([[x0, x0, side + 1, side + 1]])]  # the map's box ends at 223, this one at 224
    scores = evaluate_boxes(heatmap, boxes, np.array([[side, side]]), "wsol-v1")
    assert scores.best_iou[0, 500] == pytest.approx(((224 - start) / (225 - start)) ** 2)


def test_evaluate_boxes_wsol_threshold_is_strict():
    # Levels 0, 127 and 255; int(0.5 * 255) = 127 must leave the 127s out, int(0.498 * 255) = 126 must not.
    heatmap = np.zeros((1, 224, 224))
    heatmap[0, 20:200, 20:200] = 0.5
    heatmap[0, 100:120, 100:120] = 1
    scores = evaluate_boxes(heatmap, [np.array([[20, 20, 201, 201]])], np.array([[224, 224]]), "wsol-v1")
    assert scores.correct[0, 497:503, 0].tolist() == [True, True, False, False, False, False]


def test_evaluate_boxes_wsol_computes_in_float64():
    # The float32 nearest to 3 * 99 / 255 lies below it, so its level is 98; in float32 the product rounds up to 99.
    heatmap = np.zeros((1, 224, 224), np.float32)
    heatmap[0, 20:200, 20:200] = 3 * 99 / 255
    heatmap[0, 100:120, 100:120] = 3
    protocol = dataclasses.replace(PROTOCOLS["wsol-v1"], thresholds=(97.5 / 255, 98.5 / 255))
    scores = evaluate_boxes(heatmap, [np.array([[20, 20, 201, 201]])], np.array([[224, 224]]), protocol)
    assert scores.correct[0, :, 0].tolist() == [True, False]


@pytest.mark.parametrize("name", ["ilsvrc", "wsol-v1", "wsol-v2"])
def test_evaluate_boxes_keeps_the_order_of_the_thresholds(name):
    heatmaps, boxes, sizes = random_images(3, n=2)
    rising = dataclasses.replace(PROTOCOLS[name], thresholds=(0.1, 0.5, 0.9))
    falling = dataclasses.replace(rising, thresholds=(0.9, 0.5, 0.1))
    expected = evaluate_boxes(heatmaps, boxes, sizes, rising).best_iou
    assert len(np.unique(expected)) == expected.size
    np.testing.assert_array_equal(evaluate_boxes(heatmaps, boxes, sizes, falling).best_iou, expected[:, ::-1])


def test_evaluate_boxes_wsol_v2_counts_a_small_region_and_v1_does_not():
    heatmap = np.zeros((1, 224, 224))
    heatmap[0, 10:30, 10:30] = 1
    heatmap[0, 100:200, 100:200] = 1
    arguments = (heatmap, [np.array([[10, 10, 31, 31]])], np.array([[224, 224]]))
    assert evaluate_boxes(*arguments, "wsol-v1").max_box_acc == 0.0
    assert evaluate_boxes(*arguments, "wsol-v2").max_box_acc == 1.0


def test_evaluate_boxes_wsol_v2_counts_holes():
    heatmap = np.ones((1, 224, 224))
    heatmap[0, 100:140, 100:140] = 0
    # The contour of a hole runs on the pixels around it: 99..140, its box ends at 141.
    scores = evaluate_boxes(heatmap, [np.array([[99, 99, 142, 142]])], np.array([[224, 224]]), "wsol-v2")
    assert scores.best_iou[0, 500] == 1.0


def test_evaluate_boxes_wsol_v1_compares_polygon_area_not_pixels():
    # A thin ring encloses more than the solid square, which has more pixels.
    heatmap = np.zeros((1, 224, 224))
    heatmap[0, 10:110, 10:110] = 1
    heatmap[0, 11:109, 11:109] = 0
    heatmap[0, 150:200, 150:200] = 1
    ring = evaluate_boxes(heatmap, [np.array([[10, 10, 111, 111]])], np.array([[224, 224]]), "wsol-v1")
    assert ring.best_iou[0, 500] == 1.0
    region = dataclasses.replace(PROTOCOLS["wsol-v1"], components="largest_region")
    square = evaluate_boxes(heatmap, [np.array([[150, 150, 201, 201]])], np.array([[224, 224]]), region)
    assert square.best_iou[0, 500] == 1.0


# ---- evaluate_boxes: bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "voc"}, "protocol must be a Protocol or one of ilsvrc, wsol-v1, wsol-v2, got 'voc'"),
        ({"heatmaps": np.ones((4, 4))}, r"heatmaps must have shape \[n, h, w\].*\(4, 4\)"),
        ({"heatmaps": np.ones((0, 4, 4))}, "heatmaps must have shape"),
        ({"heatmaps": np.ones((2, 4, 4), np.uint8)}, "heatmaps must be floats, got uint8"),
        ({"heatmaps": np.ones((3, 4, 4))}, "3 heatmaps, 2 boxes, 2 image_sizes"),
        ({"boxes": [np.array([[0, 0, 5, 5]])]}, "2 heatmaps, 1 boxes, 2 image_sizes"),
        ({"boxes": [np.array([[0, 0, 5, 5]]), np.zeros((0, 4))]}, r"boxes\[1\] has no true box"),
        ({"boxes": [np.array([[0, 0, 5, 5]]), []]}, r"boxes\[1\] has no true box"),
        ({"boxes": [np.array([0, 0, 5, 5])] * 2}, r"boxes\[0\] must be numbers of shape \[m, 4\]"),
        ({"boxes": [np.array([[0, 0, 5]])] * 2}, r"boxes\[0\] must be numbers of shape \[m, 4\]"),
        ({"boxes": [np.array([[0, 0, 5, 5]]), np.array([["a"] * 4])]}, r"boxes\[1\] must be numbers"),
        ({"boxes": [np.array([[0, 0, 5, 5]]), np.array([[5, 0, 5, 5]])]}, r"boxes\[1\] must have x1 > x0"),
        ({"boxes": [np.array([[0, 0, 5, 5], [0, 5, 5, 3]])] * 2}, r"boxes\[0\].*got \[0.0, 5.0, 5.0, 3.0\]"),
        ({"boxes": [np.array([[0, 0, np.nan, 3]])] * 2}, r"boxes\[0\] must have x1 > x0"),
        ({"boxes": [np.array([[0, 0, np.inf, 3]])] * 2}, r"boxes\[0\] must have x1 > x0"),
        ({"image_sizes": np.array([[5, 5], [5, 0]])}, r"image_sizes\[1\] must be a positive width and height"),
        ({"image_sizes": np.array([5, 5])}, r"image_sizes must be numbers of shape \[n, 2\]"),
        ({"image_sizes": np.ones((2, 3))}, r"image_sizes must be numbers of shape \[n, 2\]"),
        ({"image_sizes": np.ones((1, 2))}, "2 heatmaps, 2 boxes, 1 image_sizes"),
    ],
)
def test_evaluate_boxes_names_the_bad_argument(changes, message, without_type_checks):
    arguments = {
        "heatmaps": np.ones((2, 4, 4), np.float32),
        "boxes": [np.array([[0, 0, 5, 5]])] * 2,
        "image_sizes": np.array([[9, 9], [9, 9]]),
        "protocol": "ilsvrc",
    }
    with pytest.raises(ValueError, match=message):
        evaluate_boxes(**(arguments | changes))


# ---- Protocol, LocalizationScores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolation": "nearest"}, "interpolation must be one of bilinear, bicubic, got 'nearest'"),
        ({"scaling": "sum"}, "scaling must be one of max, minmax"),
        ({"components": "all"}, "components must be one of largest_region, largest_contour, all_contours"),
        ({"thresholds": ()}, "thresholds must be a non-empty sequence"),
        ({"thresholds": (0.2, 2.0)}, "thresholds must be"),
        ({"thresholds": (float("nan"),)}, "thresholds must be"),
        ({"ious": (0.0,)}, r"ious must be .* in \(0, 1\]"),
        ({"input_size": 0}, "input_size must be at least 1"),
    ],
)
def test_protocol_rejects_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        ilsvrc(**changes)


def test_protocol_is_plain_hashable_data():
    protocol = ilsvrc(thresholds=np.linspace(0.1, 0.3, 3))
    assert protocol.thresholds == pytest.approx((0.1, 0.2, 0.3))
    assert hash(protocol) != hash(PROTOCOLS["ilsvrc"])


def scores_of(correct):
    """Scores whose best IoU is 1 where right: `[n, thresholds]`."""
    correct = np.array(correct, np.float64)
    return LocalizationScores(correct, np.linspace(0, 1, correct.shape[1]), np.array([0.5]))


def test_localization_scores_max_is_over_the_mean_not_per_image():
    # Each image is right at some threshold, but no threshold is right for more than half of them.
    scores = scores_of([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert scores.max_box_acc == 0.5
    assert scores.best_threshold == 0.0
    assert scores.accuracy.tolist() == [[0.5], [0.25], [0.25]]


def test_localization_scores_take_the_maximum_for_each_iou_apart():
    # IoU 0.3 is best at the first threshold (1.0), 0.7 at the second (0.5); one threshold for both would give 0.5.
    scores = LocalizationScores(np.array([[0.4, 0.8], [0.4, 0.1]]), np.array([0.1, 0.2]), np.array([0.3, 0.7]))
    assert scores.accuracy.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert scores.max_box_acc == 0.75
