"""The protocols in plain words, every threshold and every contour looked at: the oracle of tests and benchmark."""

import cv2
import numpy as np

SIZE = 224
THRESHOLDS = np.arange(0, 1, 0.001)


def wsol_map(heatmap):
    """The map at the network's input size, from 0 to 1; zeros where it is constant or not finite."""
    score = cv2.resize(np.asarray(heatmap).astype(np.float64), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    if not np.isfinite(score).all() or np.min(heatmap) == np.max(heatmap):
        return np.zeros_like(score)
    score -= score.min()
    score /= score.max()
    return score


def wsol_boxes(levels, cutoff, all_contours):
    """The boxes of one mask: inclusive, the end one pixel too far where the map has one more."""
    _, mask = cv2.threshold(levels, cutoff, 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return [[0, 0, 0, 0]]
    boxes = []
    for contour in contours if all_contours else [max(contours, key=cv2.contourArea)]:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append([x, y, min(x + w, SIZE - 1), min(y + h, SIZE - 1)])
    return boxes


def wsol_best_ious(heatmap, exclusive_boxes, image_size, all_contours, find_boxes=wsol_boxes):
    """The best IoU at each of the 1000 thresholds, of `wsol-v1` or, with all contours, of `wsol-v2`."""
    true_boxes = []
    for x0, y0, x1, y1 in np.asarray(exclusive_boxes).tolist():
        ends = (x0, y0, x1 - 1, y1 - 1)
        true_boxes.append([int(end * SIZE / side) for end, side in zip(ends, (*image_size, *image_size), strict=True)])
    levels = (wsol_map(heatmap) * 255).astype(np.uint8)
    boxes = [find_boxes(levels, int(threshold * np.max(levels)), all_contours) for threshold in THRESHOLDS]
    best = inclusive_ious(np.concatenate(boxes), np.array(true_boxes)).max(axis=1)
    return np.array([chunk.max() for chunk in np.split(best, np.cumsum([len(some) for some in boxes])[:-1])])


def wsol_best_ious_quickly(heatmap, exclusive_boxes, image_size, all_contours):
    """The same, with masks of one cutoff looked at once."""
    seen = {}

    def find_boxes(levels, cutoff, all_contours):
        if cutoff not in seen:
            seen[cutoff] = wsol_boxes(levels, cutoff, all_contours)
        return seen[cutoff]

    return wsol_best_ious(heatmap, exclusive_boxes, image_size, all_contours, find_boxes)


def inclusive_ious(boxes_a, boxes_b):
    """IoU `[a, b]` of whole-numbered boxes whose end is their last pixel."""
    ax0, ay0, ax1, ay1 = boxes_a.T[:, :, None]
    bx0, by0, bx1, by1 = boxes_b.T[:, None]
    shared = np.maximum(0, np.minimum(ax1, bx1) - np.maximum(ax0, bx0) + 1) * np.maximum(
        0, np.minimum(ay1, by1) - np.maximum(ay0, by0) + 1
    )
    return shared / ((ax1 - ax0 + 1) * (ay1 - ay0 + 1) + (bx1 - bx0 + 1) * (by1 - by0 + 1) - shared)


def ilsvrc_best_ious(heatmap, boxes, image_size, thresholds=(0.2,), size=SIZE):
    """The best IoU at each threshold by the `ilsvrc` protocol."""
    heatmap = np.asarray(heatmap)
    heatmap = heatmap if heatmap.dtype == np.float64 else heatmap.astype(np.float32)
    score = cv2.resize(heatmap, (size, size), interpolation=cv2.INTER_LINEAR)
    if not np.isfinite(score).all() or score.max() <= 0:
        return np.zeros(len(thresholds))
    score = score / score.max()
    result = []
    for threshold in thresholds:
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            (score >= score.dtype.type(threshold)).astype(np.uint8), connectivity=8
        )
        areas = stats[1:, cv2.CC_STAT_AREA]
        ties = [label for label in range(1, count) if areas[label - 1] == areas.max()]
        if len(ties) > 1:  # the labels of OpenCV are not in raster order
            flat = labels.ravel()
            ties = [flat[np.isin(flat, ties).argmax()]]
        x, y, w, h, _ = stats[ties[0]].tolist()
        ends = (x, y, x + w, y + h)
        ax0, ay0, ax1, ay1 = (end * side / size for end, side in zip(ends, (*image_size, *image_size), strict=True))
        best = 0.0
        for bx0, by0, bx1, by1 in np.asarray(boxes, np.float64).tolist():
            shared = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
            best = max(best, shared / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared))
        result.append(best)
    return np.array(result)


def pixel_average_precision(heatmaps, masks, ignore_masks):
    """PxAP of masks at the network's input size: for every threshold, all pixels of all images are counted anew."""
    scores = np.stack([wsol_map(heatmap) for heatmap in heatmaps])
    objects = np.asarray(masks) != 0
    counted = objects | ~(np.asarray(ignore_masks) != 0)
    area, last_recall = 0.0, 0.0
    for threshold in [2.0, 1.0, *THRESHOLDS[::-1]]:
        found = (scores >= threshold) & counted
        right = (found & objects).sum()
        recall = right / objects.sum()
        if found.any():
            area += right / found.sum() * (recall - last_recall)
        last_recall = recall
    return area
