"""How far a heatmap says what the network looked at: deletion and insertion curves of the margin between prototypes.

Pixels are taken from the image, or put into a blurred one, in the order of the heatmap; the network's answer is then
compared step by step. The answer of a network that is trained without a classifier is the margin by which a class's
prototype is nearer than any other one, not a softmax score.

Leading `...` is any number of batch axes. Maps are computed as float32 (float64 where JAX's 64-bit mode is on); images
keep their type. Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
2018.
"""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from distcam_jax.cam import nearest_prototype
from distcam_jax.checks import check_positive_integers, working_arrays
from distcam_jax.localization import upsample_heatmaps

AnyArray = Array | np.ndarray
Fractions = Sequence[float | int] | Float[np.ndarray, " s"]


def upsample_maps(heatmaps: Float[AnyArray, "*b h w"], size: tuple[int, int]) -> Float[Array, "*b height width"]:
    """Resizes maps bilinearly with half-pixel centres and clamped edges, as cv2.INTER_LINEAR does.

    Pixels between equal cells are exactly equal: a constant map stays constant to the last bit and its ties stay ties.

    Args:
        heatmaps: `[..., h, w]`.
        size: height and width of the result in pixels; nothing is smoothed where it is smaller.

    Returns:
        `[..., height, width]`.

    Raises:
        ValueError: the shape or type does not fit, a size below 1.

    Examples:
        >>> upsample_maps(np.array([[0.0, 1.0]]), (1, 4)).tolist()
        [[0.0, 0.25, 0.75, 1.0]]
    """
    (heatmaps,) = working_arrays(heatmaps=(heatmaps, "... h w"))
    height, width = size
    check_positive_integers(height=height, width=width)
    return upsample_heatmaps(heatmaps, (int(width), int(height)))


@jax.jit
def removal_order(heatmaps: Float[AnyArray, "*b h w"]) -> Int[Array, "*b h w"]:
    """Rank of every pixel by its heat: 0 is the hottest. Jitted.

    Pixels of equal heat follow each other in raster order (row by row, left to right), NaN comes last. So the order of
    a constant map is the raster order, which is an order as good as any other one; compare with a random map.

    Args:
        heatmaps: `[..., h, w]`.

    Returns:
        Ranks `[..., h, w]`, a permutation of 0 … h·w − 1 in each map.

    Raises:
        ValueError: the shape or type does not fit.

    Examples:
        >>> removal_order(np.array([[0.5, 2.0], [2.0, -1.0]])).tolist()
        [[2, 0], [1, 3]]
    """
    (heatmaps,) = working_arrays(heatmaps=(heatmaps, "... h w"))
    *batch, height, width = heatmaps.shape
    order = jnp.argsort(-heatmaps.reshape(*batch, height * width), axis=-1, stable=True)
    ranks = jnp.argsort(order, axis=-1)  # the inverse of a permutation
    return ranks.reshape(heatmaps.shape).astype(jnp.int32)


def replace_pixels(
    images: Float[AnyArray, "*b h w d"],
    others: Float[AnyArray, "..."],
    ranks: Integer[AnyArray, "*b h w"],
    counts: Integer[AnyArray, " s"],
) -> Float[Array, "*b s h w d"]:
    """The images with their first pixels replaced by others, for several numbers of pixels.

    Args:
        images: `[..., h, w, d]`.
        others: what comes in their place, of a shape that broadcasts to the images': a colour `[d]`, other images.
        ranks: from `removal_order`, `[..., h, w]`.
        counts: how many pixels are replaced `[s]`.

    Returns:
        `[..., s, h, w, d]`, of the images' type.

    Raises:
        ValueError: shapes do not fit.

    Examples:
        >>> images, ranks = np.ones((1, 2, 1)), np.array([[1, 0]])
        >>> replace_pixels(images, np.zeros(1), ranks, np.array([0, 1, 2]))[..., 0].tolist()
        [[[1.0, 1.0]], [[1.0, 0.0]], [[0.0, 0.0]]]
    """
    images, ranks, counts = jnp.asarray(images), jnp.asarray(ranks), jnp.asarray(counts)
    if images.ndim < 3 or images.shape[:-1] != ranks.shape:
        raise ValueError(f"images, ranks: want [..., h, w, d] and [..., h, w], got {images.shape} and {ranks.shape}")
    others = _like_images(images, others=others)
    replaced = ranks[..., None, :, :] < counts[:, None, None]
    return jnp.where(replaced[..., None], others[..., None, :, :, :], images[..., None, :, :, :])


def _like_images(images, **argument):
    """An argument `name=array` in the type and shape of the images."""
    ((name, array),) = argument.items()
    try:
        return jnp.broadcast_to(jnp.asarray(array, images.dtype), images.shape)
    except ValueError:
        want = f"want a shape that broadcasts to the images' {images.shape}"
        raise ValueError(f"{name}: {want}, got {np.shape(array)}") from None


def deletion_images(
    images: Float[AnyArray, "*b h w d"],
    heatmaps: Float[AnyArray, "*b h2 w2"],
    fractions: Fractions,
    baseline: Float[AnyArray, "..."],
) -> Float[Array, "*b s h w d"]:
    """Images whose hottest pixels are deleted, a growing fraction of them.

    Args:
        images: `[..., h, w, d]`.
        heatmaps: `[..., h', w']`, resized to the images by `upsample_maps`.
        fractions: of the pixels that are deleted `[s]`; each is rounded to whole pixels.
        baseline: what is left where a pixel was deleted, of a shape that broadcasts to the images': the mean colour of
            the data set `[d]` (zero, once images are normalised) or the blurred images.

    Returns:
        `[..., s, h, w, d]`.

    Raises:
        ValueError: shapes or types do not fit, fractions that do not rise from 0 to 1 at most.

    Examples:
        >>> deletion_images(np.ones((1, 2, 1)), np.array([[0.0, 3.0]]), [0, 0.5], np.zeros(1))[..., 0].tolist()
        [[[1.0, 1.0]], [[1.0, 0.0]]]

    References:
        Petsiuk et al., BMVC 2018, section 4.2.
    """
    images = jnp.asarray(images)
    ranks, counts = _order(images, heatmaps, fractions)
    return replace_pixels(images, _like_images(images, baseline=baseline), ranks, counts)


def insertion_images(
    images: Float[AnyArray, "*b h w d"],
    heatmaps: Float[AnyArray, "*b h2 w2"],
    fractions: Fractions,
    blurred: Float[AnyArray, "..."],
) -> Float[Array, "*b s h w d"]:
    """Blurred images into which the hottest pixels are put, a growing fraction of them.

    Args:
        images: `[..., h, w, d]`.
        heatmaps: `[..., h', w']`, resized to the images by `upsample_maps`.
        fractions: of the pixels that are put in `[s]`; each is rounded to whole pixels.
        blurred: what they are put into, from `gaussian_blur`; its shape broadcasts to the images'.

    Returns:
        `[..., s, h, w, d]`.

    Raises:
        ValueError: shapes or types do not fit, fractions that do not rise from 0 to 1 at most.

    Examples:
        >>> insertion_images(np.ones((1, 2, 1)), np.array([[0.0, 3.0]]), [0, 0.5], np.zeros(1))[..., 0].tolist()
        [[[0.0, 0.0]], [[0.0, 1.0]]]

    References:
        Petsiuk et al., BMVC 2018, section 4.2.
    """
    images = jnp.asarray(images)
    ranks, counts = _order(images, heatmaps, fractions)
    return replace_pixels(_like_images(images, blurred=blurred), images, ranks, counts)


def _order(images, heatmaps, fractions):
    """Ranks of all pixels of images by their heatmaps, and how many of them fractions stand for."""
    if images.ndim < 3 or images.shape[:-3] != np.shape(heatmaps)[:-2]:
        want = "want [..., h, w, d] and [..., h', w']"
        raise ValueError(f"images, heatmaps: {want}, got {images.shape} and {np.shape(heatmaps)}")
    height, width = images.shape[-3:-1]
    ranks = removal_order(upsample_maps(heatmaps, (height, width)))
    return ranks, pixel_counts(fractions, height * width)


def pixel_counts(fractions: Fractions, pixels: int) -> Int[np.ndarray, " s"]:
    """Whole numbers of pixels that fractions of an image stand for, a half rounded to even. Host function.

    Args:
        fractions: `[s]`, at least two, rising, in [0, 1].
        pixels: of the image.

    Returns:
        Counts `[s]`.

    Raises:
        ValueError: fractions that do not rise from 0 to 1 at most.

    Examples:
        >>> pixel_counts([0, 0.26, 1], 10).tolist()
        [0, 3, 10]
    """
    return np.rint(_check_fractions(fractions) * pixels).astype(np.int32)


def area_under_curve(values: Float[AnyArray, "*b s"], fractions: Fractions) -> Float[Array, "*b"]:
    """Area under a curve by the trapezoid rule, divided by its width: the curve's mean height.

    Args:
        values: `[..., s]`, at each fraction.
        fractions: of pixels `[s]`, known on the host; they need not be evenly spaced.

    Returns:
        Areas `[...]`, in the unit of the values.

    Raises:
        ValueError: sizes do not fit, fractions that do not rise from 0 to 1 at most.

    Examples:
        >>> float(area_under_curve(np.array([4.0, 2.0, 2.0]), [0.0, 0.25, 0.5]))
        2.5
    """
    (values,) = working_arrays(values=(values, "... s"))
    fractions = _check_fractions(fractions)
    if values.shape[-1] != len(fractions):
        raise ValueError(f"fractions: want {values.shape[-1]}, one a value, got {len(fractions)}")
    shares = jnp.asarray(np.diff(fractions) / (fractions[-1] - fractions[0]), values.dtype)
    return jnp.sum((values[..., 1:] + values[..., :-1]) / 2 * shares, axis=-1)


def _check_fractions(fractions) -> np.ndarray:
    array = np.asarray(fractions, np.float64)
    if array.ndim != 1 or len(array) < 2 or not (np.diff(array) > 0).all() or not 0 <= array[0] < array[-1] <= 1:
        raise ValueError(f"fractions: want at least two numbers that rise, from 0 to 1 at most, got {fractions}")
    return array


def gaussian_blur(images: Float[AnyArray, "*b h w d"], sigma: float | int) -> Float[Array, "*b h w d"]:
    """Images blurred by a Gaussian that is cut off at three deviations; borders are mirrored about the border pixel.

    Args:
        images: `[..., h, w, d]`.
        sigma: standard deviation in pixels, positive.

    Returns:
        `[..., h, w, d]`, as cv2.GaussianBlur with a kernel of `2 · ceil(3 · sigma) + 1` pixels gives it.

    Raises:
        ValueError: the shape or type does not fit, sigma not positive or not finite.

    Examples:
        >>> gaussian_blur(np.full((4, 4, 1), 0.5), sigma=2.0).round(6).tolist()[0]
        [[0.5], [0.5], [0.5], [0.5]]
    """
    (images,) = working_arrays(images=(images, "... h w d"))
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma: want a positive finite number of pixels, got {sigma!r}")
    rows, columns = (jnp.asarray(_blur_matrix(size, sigma), images.dtype) for size in images.shape[-3:-1])
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    return product("yh,...hwd->...ywd", rows, product("xw,...hwd->...hxd", columns, images))


def _blur_matrix(size: int, sigma: float | int) -> np.ndarray:
    """From a line of pixels to the blurred line, `[size, size]`."""
    radius = math.ceil(3 * sigma)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    sources = np.pad(np.arange(size), radius, mode="reflect")
    matrix = np.zeros((size, size))
    for row in range(size):
        np.add.at(matrix[row], sources[row : row + len(taps)], taps / taps.sum())
    return matrix


def prototype_margin(
    embeddings: Float[AnyArray, "*b k"],
    prototypes: Float[AnyArray, "c k"],
    labels: Integer[AnyArray, "*b"],
    *,
    counts: Integer[AnyArray, "c"] | None = None,
    batch_size: int | None = None,
) -> Float[Array, "*b"]:
    """How much nearer a class's prototype is than any other one, `min_{c' ≠ c} dist^{c'} − dist^c`, with L1 distances.

    Args:
        embeddings: pooled features `[..., k]`, taken a block at a time so that `[n, c, k]` is never held.
        prototypes: of every class `[c, k]`, c at least 2.
        labels: the class c of each embedding `[...]`.
        counts: samples of each class `[c]`; given, classes with none are not among the others.
        batch_size: embeddings computed at once; None chooses by the back end and the size of the prototypes.

    Returns:
        Margins `[...]` in the unit of the embeddings, positive where c is the nearest class; NaN for a label outside
        0 … c − 1, infinite where no other class has samples, minus infinity where c itself has none.

    Raises:
        ValueError: shapes or types do not fit, a single class.

    Examples:
        >>> prototypes = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
        >>> prototype_margin(np.array([[1.0, 0.0], [1.0, 0.0]]), prototypes, np.array([0, 1])).tolist()
        [2.0, -2.0]
    """
    labels = jnp.asarray(labels)
    if labels.shape != np.shape(embeddings)[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        want = f"want integers of shape {np.shape(embeddings)[:-1]}, one an embedding"
        raise ValueError(f"labels: {want}, got {labels.dtype} of shape {labels.shape}")
    if len(prototypes) < 2:
        raise ValueError(f"prototypes: want at least 2 classes to compare, got {len(prototypes)}")
    _, distances = nearest_prototype(embeddings, prototypes, counts=counts, batch_size=batch_size)
    own = jax.nn.one_hot(labels, len(prototypes), dtype=bool)
    known = jnp.any(own, axis=-1)
    own_distance = jnp.min(jnp.where(own, distances, jnp.inf), axis=-1)
    other_distance = jnp.min(jnp.where(own, jnp.inf, distances), axis=-1)
    # The other classes first: where c has no samples the margin is that of an infinite distance, whatever the others.
    margin = jnp.where(jnp.isinf(own_distance), -jnp.inf, other_distance - own_distance)
    return jnp.where(known, margin, jnp.nan)


def random_maps(
    index: Integer[AnyArray, " n"], size: tuple[int, int], *, seed: int = 0, kinds: int = 1
) -> Float[np.ndarray, "n m h w"]:
    """Uniform noise for every image, the same for an image whatever the batch: the control of a method. Host function.

    Args:
        index: positions of the images in their source `[n]`.
        size: height and width of the maps in cells, best those of the methods' maps.
        seed: not negative.
        kinds: maps m for each image.

    Returns:
        `[n, m, h, w]` in [0, 1), float32.

    Examples:
        >>> a, b = random_maps(np.array([3, 5]), (7, 7)), random_maps(np.array([5]), (7, 7))
        >>> a.shape, bool((a[1] == b[0]).all()), bool((a[0] == b[0]).any())
        ((2, 1, 7, 7), True, False)
    """
    shape = (kinds, *size)
    return np.stack([np.random.default_rng((seed, int(i))).random(shape, np.float32) for i in np.asarray(index)])


def center_map(size: tuple[int, int], *, sigma: float = 0.25) -> Float[np.ndarray, "h w"]:
    """A Gaussian about the middle, which knows where photographers put things and nothing else. Host function.

    Args:
        size: height and width in cells.
        sigma: standard deviation as a share of each side.

    Returns:
        `[h, w]`, at most 1, float32.

    Examples:
        >>> center_map((1, 3), sigma=1 / 3).round(4)
        array([[0.6065, 1.    , 0.6065]], dtype=float32)
    """
    rows, columns = (np.exp(-0.5 * (((np.arange(n) + 0.5) / n - 0.5) / sigma) ** 2) for n in size)
    return np.asarray(rows[:, None] * columns, np.float32)
