"""Boxes against slow restatements of the protocol: flood fill, bilinear by hand, pixels counted one by one."""

import dataclasses

import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.localization import (
    PROTOCOLS,
    best_iou,
    box_iou,
    center_box,
    evaluate_boxes,
    heatmap_to_box,
    heatmap_to_boxes,
    scale_boxes,
    upsample_heatmap,
    whole_image_box,
)

# ---- oracles


def bilinear_by_hand(heatmap, width, height):
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = (y + 0.5) * heatmap.shape[0] / height - 0.5
            u = (x + 0.5) * heatmap.shape[1] / width - 0.5
            y0, x0 = int(np.floor(v)), int(np.floor(u))
            for row, row_weight in ((y0, 1 - (v - y0)), (y0 + 1, v - y0)):
                for column, column_weight in ((x0, 1 - (u - x0)), (x0 + 1, u - x0)):
                    row_in = min(max(row, 0), heatmap.shape[0] - 1)
                    column_in = min(max(column, 0), heatmap.shape[1] - 1)
                    result[y, x] += row_weight * column_weight * heatmap[row_in, column_in]
    return result


def largest_region_by_flood_fill(mask):
    """Left, top, right, bottom (exclusive) of the largest 8-connected region, the first in raster order on ties."""
    seen, best, best_count = np.zeros_like(mask), None, 0
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        seen[start] = True
        stack, pixels = [start], []
        while stack:
            y, x = stack.pop()
            pixels.append((y, x))
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                inside = 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1]
                if inside and mask[near] and not seen[near]:
                    seen[near] = True
                    stack.append(near)
        if len(pixels) > best_count:
            rows, columns = zip(*pixels, strict=True)
            best, best_count = (min(columns), min(rows), max(columns) + 1, max(rows) + 1), len(pixels)
    return best


def ilsvrc_box_by_hand(heatmap, image_size, threshold, input_size):
    upsampled = bilinear_by_hand(heatmap, input_size, input_size)
    if not upsampled.max() > 0:
        return [0, 0, 0, 0]
    region = largest_region_by_flood_fill(upsampled / upsampled.max() >= threshold)
    return [end * side / input_size for end, side in zip(region, (*image_size, *image_size), strict=True)]


def iou_by_pixel_count(a, b, side, inclusive=False):
    def pixels(box):
        x0, y0, x1, y1 = box
        return {(x, y) for x in range(x0, x1 + inclusive) for y in range(y0, y1 + inclusive)}

    assert max(*a, *b) < side
    union = pixels(a) | pixels(b)
    return len(pixels(a) & pixels(b)) / len(union) if union else 0.0


def ilsvrc(**changes):
    return dataclasses.replace(PROTOCOLS["ilsvrc"], **changes)


def picture(*rows):
    """A float map from rows of digits; '.' is 0."""
    return np.array([[float(c) if c != "." else 0.0 for c in row] for row in rows], np.float32)


def boxes_at_full_size(heatmap, threshold=0.2):
    """The box of a map that is used without upsampling, in the map's own pixels."""
    side = len(heatmap)
    return heatmap_to_box(heatmap, (side, side), threshold=threshold, protocol=ilsvrc(input_size=side)).tolist()


# ---- upsample_heatmap


@pytest.mark.parametrize(
    ("shape", "size"), [((7, 7), 56), ((3, 5), (20, 9)), ((1, 1), 4), ((8, 8), 3), ((6, 4), (2, 3))]
)
def test_upsample_heatmap_matches_bilinear_by_hand(shape, size):
    heatmap = np.random.default_rng(0).normal(size=shape)
    width, height = (size, size) if isinstance(size, int) else size
    upsampled = upsample_heatmap(heatmap, size)
    np.testing.assert_allclose(upsampled, bilinear_by_hand(heatmap, width, height), atol=1e-6)


# ---- heatmap_to_box


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6])
def test_heatmap_to_box_matches_flood_fill(seed, threshold):
    heatmap = np.random.default_rng(seed).normal(size=[(4, 4), (6, 6), (5, 7)][seed % 3])
    box = heatmap_to_box(heatmap, (500, 333), threshold=threshold, protocol=ilsvrc(input_size=48))
    np.testing.assert_allclose(box, ilsvrc_box_by_hand(heatmap, (500, 333), threshold, 48), rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_heatmap_to_box_matches_flood_fill_without_upsampling(seed):
    # Sparse random pixels: many regions, many of one size.
    heatmap = (np.random.default_rng(seed).random((16, 16)) < 0.15 + 0.01 * seed).astype(np.float32)
    assert boxes_at_full_size(heatmap) == list(largest_region_by_flood_fill(heatmap > 0))


def test_heatmap_to_box_joins_pixels_that_touch_at_a_corner():
    # 8-connected: the diagonal has four pixels and wins over the bar of three; 4-connected, the bar would win.
    heatmap = picture("1....", ".1...", "..1..", "...1.", "1....")
    heatmap = np.pad(heatmap, ((0, 3), (0, 3)))
    heatmap[6, 4:7] = 1
    assert boxes_at_full_size(heatmap) == [0, 0, 4, 4]


def test_heatmap_to_box_counts_pixels_not_the_hull():
    # A ring of 12 pixels around a hole encloses 16, but the solid 13 pixels are more.
    heatmap = np.zeros((12, 12), np.float32)
    heatmap[0:4, 0:4] = 1
    heatmap[1:3, 1:3] = 0
    heatmap[6, 0:12] = 1
    heatmap[7, 5] = 1
    assert boxes_at_full_size(heatmap) == [0, 6, 12, 8]


@pytest.mark.parametrize("mirrored", [False, True])
def test_heatmap_to_box_tie_goes_to_the_lowest_flat_index(mirrored):
    # Two regions of four pixels. The right one starts in an earlier row, its left edge and its centre come later.
    heatmap = np.zeros((8, 8), np.float32)
    heatmap[1, 6] = heatmap[2, 6] = heatmap[3, 6] = heatmap[4, 6] = 1
    heatmap[2, 0:4] = 1
    expected = [6, 1, 7, 5]
    if mirrored:
        heatmap, expected = heatmap[:, ::-1].copy(), [1, 1, 2, 5]
    assert boxes_at_full_size(heatmap) == expected


def test_heatmap_to_box_tie_does_not_follow_labels_of_two_by_two_blocks():
    # OpenCV labels in blocks: the pixel of the second row gets its label first.
    assert boxes_at_full_size(picture("...1", "1...", "....", "....")) == [3, 0, 4, 1]


def test_heatmap_to_box_tie_in_one_row_goes_to_the_first_pixel():
    # Twelve pixels each, both from the top row on. The right one reaches further left lower down, so that comparing the
    # corners of the bounding boxes chooses wrongly.
    heatmap = picture(*["..11.1.."] * 6, ".....1..", "11111...")
    assert boxes_at_full_size(heatmap) == [2, 0, 4, 6]


def test_heatmap_to_box_keeps_pixels_at_the_threshold():
    heatmap = picture("....", ".9..", "....", "..55")
    heatmap[3, 2:] = 4.5
    assert boxes_at_full_size(heatmap, 0.5) == [2, 3, 4, 4]


def test_heatmap_to_box_reaches_every_border():
    assert boxes_at_full_size(np.ones((5, 5), np.float32)) == [0, 0, 5, 5]


def test_heatmap_to_box_subtracts_no_minimum():
    # With the minimum subtracted only the peak would pass 0.5.
    heatmap = picture("6667", "6669", "666.", "6666") + 4
    assert boxes_at_full_size(heatmap, 0.5) == [0, 0, 4, 4]


def test_heatmap_to_box_of_a_scaled_map_is_the_same():
    heatmap = np.random.default_rng(3).normal(size=(7, 7))
    expected = heatmap_to_box(heatmap, (300, 200))
    assert expected[2] > expected[0]
    for scale in (2.0**-60, 2.0**60):
        np.testing.assert_array_equal(heatmap_to_box(heatmap * scale, (300, 200)), expected)


def test_heatmap_to_box_of_tiny_peak_and_deep_valley_is_quiet():
    heatmap = picture("1...", "....", "....", "....") * np.float32(1e-38)
    heatmap[2, 2] = -1e30
    assert boxes_at_full_size(heatmap) == [0, 0, 1, 1]


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_heatmap_to_box_is_empty_where_nothing_is_positive_or_finite(value, threshold):
    heatmap = np.full((7, 7), value, np.float32)
    if not np.isfinite(value):
        heatmap[:] = 1
        heatmap[3, 3] = value
    assert heatmap_to_box(heatmap, (300, 200), threshold=threshold).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_heatmap_to_box_of_a_map_that_is_not_finite_is_empty_without_upsampling(value):
    heatmap = np.ones((5, 5), np.float32)
    heatmap[2, 2] = value
    assert boxes_at_full_size(heatmap) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heatmap": np.ones(4)}, "heatmap must have shape"),
        ({"image_size": (0, 5)}, "image_size must be a positive width and height"),
        ({"image_size": (4, 5, 6)}, r"image_size must be numbers of shape \[2\]"),
        ({"threshold": 1.5}, r"thresholds must be .* in \[0, 1\], got \[1.5\]"),
        ({"protocol": "wsol-v1"}, "largest_region"),
        ({"protocol": "voc"}, "ilsvrc, wsol-v1, wsol-v2, got 'voc'"),
        ({"protocol": ilsvrc(thresholds=(0.1, 0.2))}, "threshold must be chosen"),
    ],
)
def test_heatmap_to_box_names_the_bad_argument(changes, message, without_type_checks):
    arguments = {"heatmap": np.ones((4, 4)), "image_size": (4, 5)} | changes
    with pytest.raises(ValueError, match=message):
        heatmap_to_box(**arguments)


# ---- heatmap_to_boxes


def test_heatmap_to_boxes_gives_every_region_and_hole_in_the_images_pixels():
    heatmap = np.zeros((224, 224), np.float32)
    heatmap[20:60, 10:50] = 1
    heatmap[30:40, 20:40] = 0
    heatmap[100:224, 200:224] = 0.8
    boxes = heatmap_to_boxes(heatmap, (448, 112), threshold=0.5, protocol="wsol-v2")
    expected = [[20, 10, 100, 30], [38, 14.5, 82, 20.5], [400, 50, 448, 112]]  # a hole's contour runs around it
    assert sorted(boxes.tolist()) == expected


@pytest.mark.parametrize("name", ["ilsvrc", "wsol-v1"])
def test_heatmap_to_boxes_gives_the_one_box_of_other_protocols(name):
    protocol = dataclasses.replace(PROTOCOLS[name], input_size=5)
    boxes = heatmap_to_boxes(
        picture("111.1", "111.1", "111.1", ".....", "....."), (10, 15), threshold=0.5, protocol=protocol
    )
    assert boxes.tolist() == [[0, 0, 6, 9]]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_heatmap_to_boxes_is_empty_where_nothing_stands_out(name):
    assert heatmap_to_boxes(np.zeros((7, 7)), (10, 10), threshold=0.5, protocol=name).shape == (0, 4)


def test_heatmap_to_boxes_needs_one_threshold():
    with pytest.raises(ValueError, match="threshold must be chosen: the protocol has 1000 of them"):
        heatmap_to_boxes(np.zeros((7, 7)), (10, 10), protocol="wsol-v2")


def test_scale_boxes_scales_by_width_and_height():
    boxes = np.array([[[7, 14, 14, 28]], [[0, 0, 224, 224]]])
    assert scale_boxes(boxes, (224, 112), (448, 224)).tolist() == [[[14, 28, 28, 56]], [[0, 0, 448, 448]]]
    assert scale_boxes(boxes[0], (224, 224), (112, 448)).tolist() == [[3.5, 28, 7, 56]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3), (4, 4), (4, 4)), r"boxes must have shape \[..., 4\], got \(3,\)"),
        ((np.zeros(4), (4, 0), (4, 4)), "from_size must be a positive width and height"),
        ((np.zeros(4), (4, 4), (4, 4, 4)), r"to_size must be numbers of shape \[2\]"),
    ],
)
def test_scale_boxes_names_the_bad_argument(arguments, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        scale_boxes(*arguments)


# ---- box_iou, best_iou, baselines


@pytest.mark.parametrize("inclusive", [False, True])
def test_box_iou_matches_counted_pixels(inclusive):
    random = np.random.default_rng(0)
    corners = np.sort(random.integers(0, 9, size=(40, 2, 2)), axis=1)
    boxes = corners.reshape(40, 4)  # x0, y0, x1, y1; some empty unless inclusive
    expected = [[iou_by_pixel_count(a, b, 9, inclusive) for b in boxes[:20]] for a in boxes[20:]]
    np.testing.assert_allclose(box_iou(boxes[20:, None], boxes[:20], inclusive=inclusive), expected, rtol=1e-12)


def test_box_iou_of_boxes_that_touch_or_are_apart_is_zero():
    box = np.array([0.0, 0.0, 4.0, 4.0])
    others = np.array([[4, 0, 8, 4], [6, 6, 9, 9], [0, 9, 4, 12], [2, 2, 2, 2]])
    np.testing.assert_array_equal(box_iou(box, others), [0, 0, 0, 0])


def test_box_iou_counts_both_sides_apart_as_zero():
    # Two negative side lengths must not multiply to a positive area.
    assert box_iou(np.array([0, 0, 1, 1]), np.array([5, 5, 9, 9])).item() == 0


def test_box_iou_of_empty_boxes_is_zero():
    assert box_iou(np.zeros(4), np.zeros(4)).item() == 0


def test_best_iou_is_the_largest_over_true_boxes():
    true_boxes = np.array([[50, 50, 90, 90], [0, 0, 10, 20], [0, 0, 10, 40]])
    assert best_iou(np.array([0.0, 0.0, 10.0, 25.0]), true_boxes) == pytest.approx(0.8)


@pytest.mark.parametrize("true_boxes", [np.zeros((0, 4)), np.zeros(4)])
def test_best_iou_without_true_boxes_raises(true_boxes, without_type_checks):
    with pytest.raises(ValueError, match="true_boxes must have shape"):
        best_iou(np.zeros(4), true_boxes)


def test_box_iou_names_the_bad_argument(without_type_checks):
    with pytest.raises(ValueError, match=r"boxes_b must have shape \[..., 4\], got \(2, 3\)"):
        box_iou(np.zeros((2, 4)), np.zeros((2, 3)))


def test_center_box_takes_a_share_of_each_side():
    boxes = center_box(np.array([[200, 100], [10, 30]]), 0.5)
    np.testing.assert_allclose(boxes, [[50, 25, 150, 75], [2.5, 7.5, 7.5, 22.5]])


def test_center_box_default_has_64_percent_of_the_area():
    x0, y0, x1, y1 = center_box((640, 480))
    assert (x1 - x0) * (y1 - y0) == pytest.approx(0.64 * 640 * 480)


def test_whole_image_box_is_the_image():
    sizes = jnp.array([[7, 9], [3, 1]])
    assert whole_image_box(sizes).tolist() == [[0, 0, 7, 9], [0, 0, 3, 1]]


@pytest.mark.parametrize(
    ("size", "fraction", "message"),
    [
        ((5, 5), 0.0, r"fraction must be in \(0, 1\]"),
        ((5, 5), 1.1, "fraction"),
        (np.array([[5, 5], [5, 0]]), 0.8, r"image_size\[1\] must be a positive"),
    ],
)
def test_center_box_names_the_bad_argument(size, fraction, message):
    with pytest.raises(ValueError, match=message):
        center_box(size, fraction)


# ---- evaluate_boxes, from the map to the IoU


def test_evaluate_boxes_ilsvrc_matches_the_protocol_by_hand():
    random = np.random.default_rng(0)
    heatmaps = random.random((8, 5, 5)) ** 3
    sizes = random.integers(40, 600, size=(8, 2))
    boxes = [np.tile(size // 4, 2) * [1, 0, 3, 4] + np.array([[0, 0, 1, 1], [9, 5, 2, 30]]) for size in sizes]
    protocol = ilsvrc(input_size=32, thresholds=(0.1, 0.2, 0.5), ious=(0.3, 0.5))
    scores = evaluate_boxes(heatmaps, boxes, sizes, protocol)
    expected = np.zeros((8, 3))
    for i, t in np.ndindex(8, 3):
        x0, y0, x1, y1 = ilsvrc_box_by_hand(heatmaps[i], sizes[i], protocol.thresholds[t], 32)
        for bx0, by0, bx1, by1 in boxes[i].tolist():
            shared = max(0, min(x1, bx1) - max(x0, bx0)) * max(0, min(y1, by1) - max(y0, by0))
            union = (x1 - x0) * (y1 - y0) + (bx1 - bx0) * (by1 - by0) - shared
            expected[i, t] = max(expected[i, t], shared / union)
    np.testing.assert_allclose(scores.best_iou, expected, rtol=1e-9)
    np.testing.assert_array_equal(scores.correct, expected[:, :, None] >= [0.3, 0.5])
    assert 0 < scores.accuracy.mean() < 1
