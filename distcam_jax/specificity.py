"""How much a heatmap depends on the class that was asked for.

Two photographs of different classes are put side by side; asked for one of them, a map should be hot in its half. The
pointing game looks at the maximum, the energy share at all positive heat, and the swap test compares the maps of both
classes on the same picture, so that what a method always prefers (a side, the middle, the larger object) cancels out.

Leading `...` is any number of batch axes, in which maps and masks broadcast. Maps are resized to their masks as
`upsample_maps` does. A map that holds a value which is not finite is wrong: it scores 0.
"""

import functools

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from distcam_jax.checks import check_positive_integers, working_arrays
from distcam_jax.faithfulness import upsample_maps

AnyArray = Array | np.ndarray
AXES = {"horizontal": -2, "vertical": -3}  # of an image [..., h, w, d]
LAYOUTS = ("wide", "squeeze")
SIMILARITIES = ("spearman", "pearson")
SAME_SHARE = 1e-6  # shares of heat that differ by less are equal: they are sums in float32


def compose_pair(
    image_a: Float[AnyArray, "*b h w d"],
    image_b: Float[AnyArray, "*b h w d"],
    *,
    axis: str = "horizontal",
    layout: str = "wide",
) -> Float[Array, "*b h2 w2 d"]:
    """Two photographs side by side, the first on the left or on top.

    Args:
        image_a: `[..., h, w, d]`.
        image_b: of the same shape.
        axis: `"horizontal"`, left and right, or `"vertical"`, top and bottom.
        layout: `"wide"` keeps both as they are, in a picture twice as wide (or high) as one, for a network that takes
            any size; `"squeeze"` averages neighbouring pixels so that the picture has the size of one photograph and
            each shows its whole content at half the width (or height).

    Returns:
        `[..., h, 2 w, d]` ("wide", horizontal), `[..., 2 h, w, d]` ("wide", vertical) or `[..., h, w, d]`.

    Raises:
        ValueError: shapes or types that do not fit, an unknown axis or layout, an odd side to squeeze.

    Examples:
        >>> a, b = np.zeros((1, 2, 1)), np.array([[[1.0], [3.0]]])
        >>> compose_pair(a, b)[0, :, 0].tolist(), compose_pair(a, b, layout="squeeze")[0, :, 0].tolist()
        ([0.0, 0.0, 1.0, 3.0], [0.0, 2.0])
    """
    image_a, image_b = working_arrays(image_a=(image_a, "... h w d"), image_b=(image_b, "... h w d"))
    if image_a.shape != image_b.shape:
        raise ValueError(f"image_a, image_b: want one shape, got {image_a.shape} and {image_b.shape}")
    number = _axis(axis)
    if layout not in LAYOUTS:
        raise ValueError(f"layout: want one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    if layout == "squeeze" and image_a.shape[number] % 2:
        raise ValueError(f"layout: want an even side to squeeze, got images of shape {image_a.shape}")
    wide = jnp.concatenate([image_a, image_b], number)
    if layout == "wide":
        return wide
    number += wide.ndim
    return jnp.mean(wide.reshape(*wide.shape[:number], -1, 2, *wide.shape[number + 1 :]), number + 1)


def _axis(axis: str) -> int:
    if axis not in AXES:
        raise ValueError(f"axis: want one of {', '.join(map(repr, AXES))}, got {axis!r}")
    return AXES[axis]


def half_masks(size: tuple[int, int], *, axis: str = "horizontal") -> Bool[np.ndarray, "2 h w"]:
    """Which pixels of a picture of `compose_pair` belong to the first photograph, and which to the second.

    Args:
        size: height and width of the picture; the side that is halved is even.
        axis: as for `compose_pair`.

    Returns:
        Masks `[2, h, w]`, each the other's complement. Host.

    Raises:
        ValueError: an unknown axis, a size below 1, an odd side.

    Examples:
        >>> half_masks((1, 4)).astype(int).tolist()
        [[[1, 1, 0, 0]], [[0, 0, 1, 1]]]
    """
    number = _axis(axis) + 1  # of an array [h, w]
    check_positive_integers(height=size[0], width=size[1])
    if size[number] % 2:
        raise ValueError(f"size: want an even side to halve, got {size} for axis={axis!r}")
    first = np.zeros(size, bool)
    first[(slice(None), slice(size[1] // 2)) if number == -1 else slice(size[0] // 2)] = True
    return np.stack([first, ~first])


def box_mask(boxes_xyxy: Num[AnyArray, "m 4"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels whose centre lies in one of the boxes.

    Args:
        boxes_xyxy: `[m, 4]` of x0, y0, x1, y1 in pixels of the mask, exclusive end.
        size: height and width of the mask in pixels.

    Returns:
        `[h, w]`. Host.

    Raises:
        ValueError: boxes of another shape, a size below 1.

    Examples:
        >>> box_mask(np.array([[1.0, 0.0, 2.6, 1.0]]), (2, 4)).astype(int).tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    boxes = np.asarray(boxes_xyxy)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes_xyxy: want shape [m, 4], got {boxes.shape}")
    check_positive_integers(height=size[0], width=size[1])
    y, x = (np.arange(side) + 0.5 for side in size)
    x0, y0, x1, y1 = boxes.T[:, :, None]
    columns, rows = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return (rows[:, :, None] & columns[:, None, :]).any(axis=0)


@jax.jit
def points_inside(heatmaps: Float[AnyArray, "... h w"], masks: Bool[AnyArray, "... y x"]) -> Float[Array, "..."]:
    """The pointing game: whether the maximum of the map lies inside the mask. Jitted.

    Where several pixels hold the maximum, the score is what a random choice among them is expected to get, so that a
    constant map gets the share of the picture that the mask covers, not 0 or 1. Values that differ from the maximum by
    a few roundings of it count as equal. There is no margin of tolerance around the mask.

    Args:
        heatmaps: `[..., h, w]`.
        masks: `[..., height, width]`, from `half_masks` or `box_mask`.

    Returns:
        Scores `[...]` in [0, 1].

    Raises:
        ValueError: shapes or types do not fit.

    Examples:
        >>> masks = half_masks((2, 4))
        >>> points_inside(np.array([[0.0, 1.0]]), masks).tolist(), points_inside(np.ones((1, 2)), masks).tolist()
        ([0.0, 1.0], [0.5, 0.5])

    References:
        Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 and IJCV 2018.
    """
    maps, masks = _resized(heatmaps, masks)
    largest = jnp.max(maps, axis=(-2, -1), keepdims=True)
    rounding = 4 * jnp.finfo(maps.dtype).eps * jnp.max(jnp.abs(maps), axis=(-2, -1), keepdims=True)
    at_maximum = maps >= largest - rounding
    inside = jnp.sum(at_maximum & masks, axis=(-2, -1)).astype(maps.dtype)
    points = jnp.sum(at_maximum, axis=(-2, -1)).astype(maps.dtype)
    return jnp.where(_are_finite(maps), inside / jnp.maximum(points, 1), 0)


@jax.jit
def energy_inside(heatmaps: Float[AnyArray, "... h w"], masks: Bool[AnyArray, "... y x"]) -> Float[Array, "..."]:
    """Share of a map's positive heat that lies inside the mask; a threshold-free pointing game. Jitted.

    Args:
        heatmaps: `[..., h, w]`; negative values count as 0.
        masks: `[..., height, width]`.

    Returns:
        Shares `[...]` in [0, 1]; where no value is positive, that of a constant map: the share of the picture that the
        mask covers.

    Raises:
        ValueError: shapes or types do not fit.

    Examples:
        >>> energy_inside(np.array([[-1.0, -1.0, 1.0, 3.0]]), half_masks((1, 4))).tolist()
        [0.0, 1.0]

    References:
        Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPRW 2020.
    """
    maps, masks = _resized(heatmaps, masks)
    largest = jnp.max(maps, axis=(-2, -1), keepdims=True)
    # In units of the maximum, sums stay inside float32 whatever the scale of the map.
    heat = jnp.where(largest > 0, jnp.maximum(maps, 0) / jnp.where(largest > 0, largest, 1), 1)
    share = jnp.sum(heat * masks.astype(heat.dtype), axis=(-2, -1)) / jnp.sum(heat, axis=(-2, -1))
    return jnp.where(_are_finite(maps), share, 0)


@jax.jit
def heat_difference(heatmaps: Float[AnyArray, "... h w"], masks: Bool[AnyArray, "... y x"]) -> Float[Array, "..."]:
    """Mean heat inside the mask minus mean heat outside, in units of the map's mean absolute heat. Jitted.

    Other than the energy share it counts negative heat too, which maps of contrastive methods consist of by half.

    Args:
        heatmaps: `[..., h, w]`.
        masks: `[..., height, width]`; an empty one, and one that covers all, gives 0.

    Returns:
        Differences `[...]`, positive where it is hotter inside; 0 for a map of zeros. With halves, in [−2, 2].

    Raises:
        ValueError: shapes or types do not fit.

    Examples:
        >>> heat_difference(np.array([[-1.0, 1.0]]), half_masks((1, 2))).tolist()
        [-2.0, 2.0]
    """
    maps, masks = _resized(heatmaps, masks)
    largest = jnp.max(jnp.abs(maps), axis=(-2, -1), keepdims=True)
    maps = maps / jnp.where(largest == 0, 1, largest)
    inside, area = masks.astype(maps.dtype), maps.shape[-2] * maps.shape[-1]
    covered, total = jnp.sum(inside, axis=(-2, -1)), jnp.sum(maps, axis=(-2, -1))
    heat = jnp.sum(maps * inside, axis=(-2, -1))
    difference = heat / jnp.maximum(covered, 1) - (total - heat) / jnp.maximum(area - covered, 1)
    unit = jnp.mean(jnp.abs(maps), axis=(-2, -1))
    usable = _are_finite(maps) & (unit > 0) & (covered > 0) & (covered < area)
    return jnp.where(usable, difference / jnp.where(unit > 0, unit, 1), 0)


@jax.jit
def swap_test(
    maps_a: Float[AnyArray, "... h w"], maps_b: Float[AnyArray, "... h w"], mask_a: Bool[AnyArray, "... y x"]
) -> Float[Array, "..."]:
    """Whether the map of class a has more of its heat in a's half than that of class b on the same picture. Jitted.

    Args:
        maps_a: maps of class a `[..., h, w]`.
        maps_b: maps of class b of the same pictures.
        mask_a: the half of the photograph of class a `[..., height, width]`. The other half gives the same answer.

    Returns:
        1 where `energy_inside(maps_a) > energy_inside(maps_b)`, 0 where it is less, 0.5 where they are equal up to
        `SAME_SHARE`, as are those of any method that does not look at the class; 0 where a map is not finite.

    Raises:
        ValueError: shapes or types do not fit.

    Examples:
        >>> a, b = np.array([[9.0, 1.0]]), np.array([[8.0, 2.0]])  # both prefer the left half
        >>> mask, _ = half_masks((1, 2))
        >>> float(swap_test(a, b, mask)), float(swap_test(b, a, mask)), float(swap_test(a, a, mask))
        (1.0, 0.0, 0.5)
    """
    difference = energy_inside(maps_a, mask_a) - energy_inside(maps_b, mask_a)
    score = jnp.where(jnp.abs(difference) <= SAME_SHARE, 0.5, jnp.where(difference > 0, 1.0, 0.0))
    return jnp.where(_are_finite(jnp.asarray(maps_a)) & _are_finite(jnp.asarray(maps_b)), score, 0)


def _are_finite(maps):
    return jnp.all(jnp.isfinite(maps), axis=(-2, -1))


def _resized(heatmaps, masks):
    """Maps in the size of their masks, and the masks."""
    masks = jnp.asarray(masks)
    if masks.ndim < 2 or masks.size == 0 or masks.dtype != bool:
        raise ValueError(f"masks: want booleans [..., h, w], not empty, got {masks.dtype} of shape {masks.shape}")
    maps = upsample_maps(heatmaps, (masks.shape[-2], masks.shape[-1]))
    try:
        np.broadcast_shapes(maps.shape, masks.shape)
    except ValueError:
        shapes = f"{np.shape(heatmaps)} and {masks.shape}"
        raise ValueError(f"heatmaps, masks: want leading axes that broadcast, got {shapes}") from None
    return maps, masks


@functools.partial(jax.jit, static_argnames=("kind",))
def map_similarity(
    maps_a: Float[AnyArray, "... h w"], maps_b: Float[AnyArray, "... h w"], *, kind: str = "spearman"
) -> Float[Array, "..."]:
    """Correlation of two maps over their pixels. Jitted.

    Args:
        maps_a: `[..., h, w]`.
        maps_b: `[..., h, w]`; leading axes broadcast against each other.
        kind: `"spearman"`, of the ranks, equal values sharing their mean rank; or `"pearson"`, of the values.

    Returns:
        Similarities `[...]` in [−1, 1]; 0 where one of the maps is constant, which says nothing about the other; NaN
        where one holds a NaN.

    Raises:
        ValueError: shapes or types do not fit, an unknown kind.

    Examples:
        >>> a, b = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 8.0, 9.0]])
        >>> round(float(map_similarity(a, b)), 4), round(float(map_similarity(a, b, kind="pearson")), 4)
        (1.0, 0.9177)
    """
    maps_a, maps_b = working_arrays(maps_a=(maps_a, "... h w"), maps_b=(maps_b, "... h w"))
    if kind not in SIMILARITIES:
        raise ValueError(f"kind: want one of {', '.join(map(repr, SIMILARITIES))}, got {kind!r}")
    vectors = [maps.reshape(*maps.shape[:-2], -1) for maps in (maps_a, maps_b)]
    if kind == "spearman":
        vectors = [_mean_ranks(vector) for vector in vectors]
    a, b = (_standardized(vector) for vector in vectors)
    return jnp.clip(jnp.sum(a * b, axis=-1), -1, 1)


def _mean_ranks(vectors):
    """Ranks `[..., n]` from 0, up to a constant; equal values share their mean. All NaN where one is."""
    flat = vectors.reshape(-1, vectors.shape[-1])

    def ranks(vector):
        ordered = jnp.sort(vector)
        below, up_to = (jnp.searchsorted(ordered, vector, side=side) for side in ("left", "right"))
        mean = (below + up_to).astype(vector.dtype) / 2
        return jnp.where(jnp.any(jnp.isnan(vector)), jnp.nan, mean)

    return jax.vmap(ranks)(flat).reshape(vectors.shape)


def _standardized(vectors):
    """Mean 0 and length 1 along the last axis; zeros for a constant."""
    low, high = (reduce(vectors, axis=-1, keepdims=True) for reduce in (jnp.min, jnp.max))
    centred = jnp.where(low == high, 0, vectors - jnp.mean(vectors, axis=-1, keepdims=True))
    largest = jnp.max(jnp.abs(centred), axis=-1, keepdims=True)
    centred = centred / jnp.where(largest == 0, 1, largest)  # squares of very small or large values leave float32
    length = jnp.sqrt(jnp.sum(centred**2, axis=-1, keepdims=True))
    return centred / jnp.where(length == 0, 1, length)


@jax.jit
def map_correlation(maps: Float[AnyArray, "*b m h w"]) -> tuple[Float[Array, "*b"], Int[Array, "*b"]]:
    """Mean Pearson correlation between the maps of every two classes of an image. Jitted.

    1 means that the map does not depend on the class. A constant map has no correlation, so its pairs are left out.

    Args:
        maps: of m classes of each image `[..., m, h, w]`, m at least 2.

    Returns:
        Correlations `[...]` and how many of the m (m − 1) / 2 pairs they are the mean of `[...]`. Correlation NaN where
        that is none, or where a map holds a NaN.

    Raises:
        ValueError: the shape or type does not fit, fewer than 2 maps an image.

    Examples:
        >>> maps = np.array([[[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]], [[5.0, 5.0, 5.0]]])
        >>> correlation, pairs = map_correlation(maps)
        >>> round(float(correlation), 4), int(pairs)
        (1.0, 1)
    """
    (maps,) = working_arrays(maps=(maps, "... m h w"))
    kinds = maps.shape[-3]
    if kinds < 2:
        raise ValueError(f"maps: want at least 2 of each image to compare, got shape {maps.shape}")
    a, b = np.triu_indices(kinds, 1)
    varied = jnp.min(maps, axis=(-2, -1)) != jnp.max(maps, axis=(-2, -1))
    counted = varied[..., a] & varied[..., b]
    correlations = map_similarity(maps[..., a, :, :], maps[..., b, :, :], kind="pearson")
    pairs = jnp.sum(counted, axis=-1).astype(jnp.int32)
    total = jnp.sum(jnp.where(counted, correlations, 0), axis=-1)
    return jnp.where(pairs > 0, total / jnp.maximum(pairs, 1).astype(total.dtype), jnp.nan), pairs
