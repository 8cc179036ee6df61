"""The boxes of one map at all its thresholds, without looking at every mask.

As the threshold rises, masks only shrink. A region can vanish only where the map has a local maximum, and a hole can
open only where it has a local minimum; between two such levels regions split and holes vanish, and that is all. So
where the masks at both ends of such a stretch are one region without a hole, all between them are, and where that ends
can be found by bisection. The box of such a mask is its frame, which the maxima of the map's rows and columns tell for
every threshold at once. Where a mask has several regions, each is followed alone.
"""

import bisect
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int, Shaped

from distcam_jax.localization.protocols import Protocol

_NEIGHBOURS_8 = np.ones((3, 3), np.uint8)
_NEIGHBOURS_4 = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
_FEW = 4  # so many masks are looked at one by one, because that is faster
_LONG = 6  # so many masks are worth following their largest region alone
_COUNTED = 24  # so many regions are compared by the pixels in their rectangles before all pixels get labels


def boxes_of_masks(
    surface: Float[np.ndarray, "h w"],
    levels: Shaped[np.ndarray, "h w"],
    cutoffs: Shaped[np.ndarray, " masks"],
    protocol: Protocol,
) -> tuple[Float[np.ndarray, "boxes 4"], Int[np.ndarray, " masks"]]:
    """The boxes that a protocol takes from the masks `levels > cutoff`, or `>=` where it is not strict.

    Args:
        surface: the map that the levels come from, finite or -inf; levels rise with it.
        levels: what is compared.
        cutoffs: rising, none twice, of the dtype of the levels.
        protocol: its `components` and `strict`.

    Returns:
        Boxes `x0, y0, x1, y1` in pixels with an exclusive end, those of the first mask first, and the index of each
        mask's first box. An empty mask has the box of zeros.
    """
    side = "left" if protocol.strict else "right"
    filled = int(np.searchsorted(cutoffs, levels.max(), side))  # masks with any pixel
    found = [(np.arange(filled, len(cutoffs)), np.zeros((len(cutoffs) - filled, 4), int))]
    if filled > _FEW:
        extrema = _extrema(surface, levels, cutoffs[:filled], protocol)
        found += _FOLLOW[protocol.components](_Part(levels, (0, 0), cutoffs[:filled], protocol, *extrema))
    else:
        nothing = np.zeros((0, 3), int)
        whole = _Part(levels, (0, 0), cutoffs, protocol, nothing, nothing)
        found += [whole.boxes(mask) for mask in range(filled)]
    masks = np.concatenate([masks for masks, _ in found])
    boxes = np.concatenate([boxes for _, boxes in found])
    order = np.argsort(masks, kind="stable")
    return boxes[order].astype(np.float64), np.searchsorted(masks[order], np.arange(len(cutoffs)))


def _extrema(surface, levels, cutoffs, protocol: Protocol) -> list[Int[np.ndarray, "m 3"]]:
    """Local maxima, and minima if holes count: the last mask with that pixel, its row and its column."""
    extrema = [(surface >= cv2.dilate(surface, _NEIGHBOURS_8), 8)]
    if protocol.components == "all_contours":
        minima = surface <= cv2.erode(surface, _NEIGHBOURS_4)
        minima[[0, -1]] = minima[:, [0, -1]] = False  # what touches the border is no hole
        extrema.append((minima, 4))
    lists = [np.zeros((0, 3), int)] * 2
    for index, (places, connectivity) in enumerate(extrema):
        count, labels = cv2.connectedComponents(places.view(np.uint8), connectivity=connectivity)
        pixels = np.flatnonzero(places)
        one_of = np.zeros(count, int)  # one pixel stands for its plateau
        one_of[labels.ravel()[pixels]] = pixels
        place = np.unravel_index(one_of[1:], levels.shape)
        last = np.searchsorted(cutoffs, levels[place], "left" if protocol.strict else "right") - 1
        lists[index] = np.stack([last, *place], axis=1)[last >= 0]
    return lists


class _Part:
    """A rectangle of the map in which all that does not belong to the part is below every cutoff."""

    def __init__(self, levels, corner, cutoffs, protocol: Protocol, maxima, minima):
        self.levels, self.corner, self.cutoffs, self.protocol = levels, corner, cutoffs, protocol
        self.maxima, self.minima = maxima, minima
        self.peaks = sorted(maxima[:, 0].tolist())
        self.openings = set(minima[:, 0].tolist())
        self.critical = sorted({*self.peaks, *self.openings})
        self.frames = _frames(levels, cutoffs, protocol.strict)
        self.searched = {}

    def search(self, mask: int) -> tuple:
        """How many regions, outer contours or contours the mask has, and what tells them, in the mask's frame."""
        if mask not in self.searched:
            x0, y0, x1, y1 = self.frames[mask].tolist()
            crop, cutoff = self.levels[y0:y1, x0:x1], self.cutoffs[mask]
            pixels = (crop > cutoff if self.protocol.strict else crop >= cutoff).view(np.uint8)
            self.searched[mask] = _SEARCH[self.protocol.components](pixels)
        return self.searched[mask]

    def is_single(self, mask: int) -> bool:
        """Whether the mask is one region, without holes where they count."""
        return self.search(mask)[0] == 1

    def single_until(self, mask: int) -> int:
        """The last of the masks from this one on, which is single, that are sure to be."""
        while True:
            place = bisect.bisect_left(self.critical, mask)
            end, last = self.critical[place], self.critical[-1]
            one_peak = bisect.bisect_left(self.peaks, mask) == len(self.peaks) - 1
            if not one_peak and not self.is_single(end):  # regions only split on the way up to here
                return (
                    bisect.bisect_left(range(mask, end), True, key=lambda index: not self.is_single(index)) + mask - 1
                )
            if end == last or (end in self.openings and not self.is_single(end + 1)):
                return end
            mask = end + 1

    def single_boxes(self, first: int, last: int) -> tuple:
        """Masks and their frames in the map."""
        return np.arange(first, last + 1), self.frames[first : last + 1] + np.tile(self.corner, 2)

    def boxes(self, mask: int) -> tuple:
        """Mask and boxes in the map, those that the protocol takes."""
        boxes = np.array(_CHOOSE[self.protocol.components](*self.search(mask)[1:]))
        boxes[:, 2:] += boxes[:, :2]
        return np.full(len(boxes), mask), boxes + np.tile(self.frames[mask, :2] + self.corner, 2)

    def child(self, mask: int, rectangle: Sequence[int], inside) -> "_Part":
        """The pixels of `inside`, a bool array for the rectangle x, y, width, height of the mask's frame."""
        x, y, w, h = rectangle
        x, y = x + int(self.frames[mask, 0]), y + int(self.frames[mask, 1])
        below = 0 if self.levels.dtype == np.uint8 else -np.inf
        levels = np.where(inside, self.levels[y : y + h, x : x + w], self.levels.dtype.type(below))
        extrema = []
        for places in (self.maxima, self.minima):
            places = places - [0, y, x]
            places = places[((places[:, 1:] >= 0) & (places[:, 1:] < (h, w))).all(axis=1)]
            extrema.append(places[inside[places[:, 1], places[:, 2]]])
        corner = (self.corner[0] + x, self.corner[1] + y)
        return _Part(levels, corner, self.cutoffs, self.protocol, *extrema)


def _frames(levels, cutoffs, strict: bool) -> Int[np.ndarray, "masks 4"]:
    """Box `x0, y0, x1, y1` around all pixels of each mask; without meaning where it has none."""
    side = "right" if strict else "left"
    ends = np.empty((2, 2, len(cutoffs)), int)
    for axis in (0, 1):
        profile = levels.max(axis=axis)
        ends[0, axis] = np.searchsorted(np.maximum.accumulate(profile), cutoffs, side)
        ends[1, axis] = len(profile) - np.searchsorted(np.maximum.accumulate(profile[::-1]), cutoffs, side)
    return ends.reshape(4, len(cutoffs)).T


# ---- What a mask holds, and which boxes a protocol takes from it


def _search_regions(mask) -> tuple:
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = [contour for contour, links in zip(contours, hierarchy[0].tolist(), strict=True) if links[3] < 0]
    return len(outer), outer, mask


def _largest_region(outer_contours, mask) -> list:
    """Left, top, width and height of the region with most pixels, the first in raster order on ties."""
    if len(outer_contours) <= _COUNTED:  # pixels in the rectangles may tell already, without labels for all pixels
        rectangles = [cv2.boundingRect(contour) for contour in outer_contours]
        most = [cv2.countNonZero(mask[y : y + h, x : x + w]) for x, y, w, h in rectangles]
        largest = most.index(max(most))
        others = [index for index in range(len(most)) if index != largest]
        strangers = sum(most[index] for index in others if _overlap(rectangles[largest], rectangles[index]))
        if all(most[largest] - strangers > most[index] for index in others):
            return [rectangles[largest]]
    labels = cv2.connectedComponents(mask, connectivity=8)[1]
    flat = labels.ravel()
    pixels = np.bincount(flat)
    pixels[0] = 0
    first = np.argmax((pixels == pixels.max())[flat])  # OpenCV's labels are not in raster order
    return [cv2.boundingRect((labels == flat[first]).view(np.uint8))]


def _overlap(a, b) -> bool:
    """Whether two rectangles x, y, width, height share a pixel."""
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _search_outer_contours(mask) -> tuple:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return len(contours), contours, [cv2.contourArea(contour) for contour in contours]


def _largest_contour(contours, areas) -> list:
    """Rectangle of the contour of largest area, the first on ties; contours inside others are never larger."""
    return [cv2.boundingRect(contours[areas.index(max(areas))])]


def _search_contours(mask) -> tuple:
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return len(contours), contours, hierarchy


def _every_contour(contours, hierarchy) -> list:
    return [cv2.boundingRect(contour) for contour in contours]


_SEARCH = {
    "largest_region": _search_regions,
    "largest_contour": _search_outer_contours,
    "all_contours": _search_contours,
}
_CHOOSE = {"largest_region": _largest_region, "largest_contour": _largest_contour, "all_contours": _every_contour}


# ---- Following regions from the lowest mask to the highest


def _follow_largest_region(whole: _Part) -> Iterator[tuple]:
    mask = 0
    while mask <= whole.critical[-1]:
        if whole.is_single(mask):
            last = whole.single_until(mask)
            yield whole.single_boxes(mask, last)
            mask = last
        else:
            yield whole.boxes(mask)
        mask += 1


def _follow_largest_contour(whole: _Part) -> Iterator[tuple]:
    """The largest contour stays inside its region for as long as it is larger than the others were at the beginning."""
    tasks = [(whole, 0, whole.critical[-1])]
    while tasks:
        part, mask, high = tasks.pop()
        if mask > high:
            continue
        if part.is_single(mask):
            last = min(part.single_until(mask), high)
            yield part.single_boxes(mask, last)
            tasks.append((part, last + 1, high))
            continue
        _, contours, areas = part.search(mask)
        second, largest = sorted(areas)[-2:]
        if mask + _LONG > high or max(part.search(mask + _LONG)[2]) <= second:
            yield part.boxes(mask)
            tasks.append((part, mask + 1, high))
            continue
        child = _filled_contour(part, mask, contours[areas.index(largest)])
        rest = range(mask + _LONG, min(high, child.critical[-1]) + 1)
        last = (
            mask + _LONG - 1 + bisect.bisect_left(rest, True, key=lambda i, c=child, s=second: max(c.search(i)[2]) <= s)
        )
        tasks += [(part, last + 1, high), (child, mask, last)]


def _filled_contour(part: _Part, mask: int, contour) -> _Part:
    """What a contour encloses as a part of its own."""
    x, y, w, h = rectangle = cv2.boundingRect(contour)
    inside = cv2.drawContours(np.zeros((h, w), np.uint8), [contour], 0, 1, cv2.FILLED, offset=(-x, -y))
    return part.child(mask, rectangle, inside.view(bool))


def _follow_all_contours(whole: _Part) -> Iterator[tuple]:
    tasks = [(whole, 0)]
    while tasks:
        part, mask = tasks.pop()
        if mask > part.critical[-1]:
            continue
        if part.is_single(mask):
            last = part.single_until(mask)
            yield part.single_boxes(mask, last)
            tasks.append((part, last + 1))
            continue
        _, contours, hierarchy = part.search(mask)
        outer = np.flatnonzero(hierarchy[0, :, 3] < 0).tolist()
        if len(outer) == 1:
            yield part.boxes(mask)
            tasks.append((part, mask + 1))
            continue
        tasks += [(child, mask) for child in _regions(part, mask, [contours[index] for index in outer])]


def _regions(part: _Part, mask: int, outer_contours) -> Iterator[_Part]:
    """Each region of a mask as a part of its own."""
    x0, y0, x1, y1 = part.frames[mask].tolist()
    crop = part.levels[y0:y1, x0:x1]
    pixels = (crop > part.cutoffs[mask] if part.protocol.strict else crop >= part.cutoffs[mask]).view(np.uint8)
    _, labels = cv2.connectedComponents(pixels, connectivity=8)
    for contour in outer_contours:
        x, y, w, h = rectangle = cv2.boundingRect(contour)
        column, row = contour[0, 0].tolist()
        yield part.child(mask, rectangle, labels[y : y + h, x : x + w] == labels[row, column])


_FOLLOW = {
    "largest_region": _follow_largest_region,
    "largest_contour": _follow_largest_contour,
    "all_contours": _follow_all_contours,
}
