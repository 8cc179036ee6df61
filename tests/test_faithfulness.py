"""Deletion, insertion and margins against OpenCV, plain loops and values by hand."""

import cv2
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.faithfulness import (
    area_under_curve,
    center_map,
    deletion_images,
    gaussian_blur,
    insertion_images,
    pixel_counts,
    prototype_margin,
    random_maps,
    removal_order,
    replace_pixels,
    upsample_maps,
)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- upsample_maps


@pytest.mark.parametrize(
    ("cells", "size"), [((7, 7), (224, 224)), ((3, 5), (10, 17)), ((1, 4), (6, 9)), ((9, 8), (4, 3))]
)
def test_upsample_maps_are_those_of_opencv(cells, size):
    maps = random(0, 2, 3, *cells)
    expected = [cv2.resize(one, size[::-1], interpolation=cv2.INTER_LINEAR) for one in maps.reshape(-1, *cells)]
    np.testing.assert_allclose(upsample_maps(maps, size).reshape(-1, *size), expected, atol=2e-6)


def test_upsample_maps_keep_a_constant_to_the_last_bit():
    assert set(np.unique(upsample_maps(np.full((3, 7), 0.3, np.float32), (50, 61)))) == {np.float32(0.3)}


def test_upsample_maps_keep_both_ends_of_a_large_and_a_small_value():
    # start + 1 · (end − start) would lose the small one.
    edge = upsample_maps(np.array([[1e8, 1.0]], np.float32), (1, 4))
    assert (float(edge[0, 0]), float(edge[0, -1])) == (1e8, 1.0)


# ---- removal_order


def test_removal_order_breaks_ties_in_raster_order():
    maps = np.random.default_rng(1).integers(0, 4, size=(5, 6, 7)).astype(np.float32)
    for one, ranks in zip(maps, removal_order(maps), strict=True):
        pixels = sorted(range(42), key=lambda p: (-one.flat[p], p))
        assert np.argsort(np.ravel(ranks)).tolist() == pixels


def test_removal_order_of_zeros_of_both_signs_is_the_raster_order():
    assert removal_order(np.array([[0.0, -0.0, 0.0], [-0.0, -0.0, 0.0]])).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_removal_order_takes_nan_last():
    assert removal_order(np.array([[np.nan, -np.inf, -np.nan, 3.0]])).tolist() == [[2, 1, 3, 0]]


# ---- deletion_images, insertion_images, replace_pixels


def loop_perturbed(image, heatmap, fractions, other):
    """The hottest pixels, one by one, of the resized map."""
    height, width, _ = image.shape
    heat = cv2.resize(heatmap, (width, height), interpolation=cv2.INTER_LINEAR)
    pixels = sorted(np.ndindex(height, width), key=lambda p: -heat[p])
    pictures = []
    for fraction in fractions:
        picture = image.copy()
        for pixel in pixels[: round(fraction * height * width)]:
            picture[pixel] = other[pixel]
        pictures.append(picture)
    return pictures


def test_deletion_images_are_those_of_a_loop():
    images, heatmaps, base = random(0, 2, 6, 8, 3), random(1, 2, 3, 3), random(2, 2, 6, 8, 3)
    fractions = [0.0, 0.1, 0.5, 1.0]
    expected = [loop_perturbed(*pair, fractions, one) for *pair, one in zip(images, heatmaps, base, strict=True)]
    np.testing.assert_array_equal(deletion_images(images, heatmaps, fractions, base), expected)


def test_deletion_images_take_one_colour_for_all_pixels():
    image, heatmap, colour = random(0, 5, 5, 3), random(1, 2, 2), np.array([7.0, 8.0, 9.0], np.float32)
    expected = loop_perturbed(image, heatmap, [0.2, 0.6], np.broadcast_to(colour, image.shape))
    np.testing.assert_array_equal(deletion_images(image, heatmap, [0.2, 0.6], colour), expected)


def test_insertion_images_are_those_of_a_loop():
    images, heatmaps, blurred = random(0, 2, 6, 8, 3), random(1, 2, 3, 3), random(2, 2, 6, 8, 3)
    fractions = [0.0, 0.1, 0.5, 1.0]
    triples = zip(images, heatmaps, blurred, strict=True)
    expected = [loop_perturbed(start, heatmap, fractions, image) for image, heatmap, start in triples]
    np.testing.assert_array_equal(insertion_images(images, heatmaps, fractions, blurred), expected)


def test_deletion_and_insertion_images_work_under_jit():
    images, heatmaps = random(0, 6, 8, 3), random(1, 3, 3)
    for function in (deletion_images, insertion_images):
        compiled = jax.jit(lambda i, h, function=function: function(i, h, [0.0, 0.3], np.zeros(3, np.float32)))
        expected = function(images, heatmaps, [0.0, 0.3], np.zeros(3, np.float32))
        np.testing.assert_array_equal(compiled(images, heatmaps), expected)


def test_pixel_counts_round_to_whole_pixels():
    # 0.29 · 100 is 28.999999999999996 in floating point.
    assert pixel_counts([0.0, 0.29, 0.294, 0.296, 1.0], 100).tolist() == [0, 29, 29, 30, 100]


@pytest.mark.parametrize("fractions", [[0.5], [0.0, 0.0], [0.5, 0.1], [0.0, 1.2], [-0.1, 1.0], [0.0, np.nan]])
def test_pixel_counts_refuse_fractions_that_do_not_rise_to_one(fractions):
    with pytest.raises(ValueError, match="fractions: want at least two numbers that rise"):
        pixel_counts(fractions, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: replace_pixels(np.ones((4, 4, 3)), np.ones(3), np.ones((3, 4), int), np.ones(2, int)),
            "images, ranks",
        ),
        (lambda: replace_pixels(np.ones((2, 2, 3)), np.ones(2), np.ones((2, 2), int), np.ones(2, int)), "others: want"),
        (lambda: deletion_images(np.ones((2, 2, 3)), np.ones((2, 2)), [0, 1], np.ones(4)), "baseline: want a shape"),
        (lambda: insertion_images(np.ones((2, 2, 3)), np.ones((2, 2)), [0, 1], np.ones(4)), "blurred: want a shape"),
        (lambda: deletion_images(np.ones((5, 2, 2, 3)), np.ones((4, 2, 2)), [0, 1], np.ones(3)), "images, heatmaps"),
        (lambda: upsample_maps(np.ones((2, 2)), (0, 3)), "height: want a positive integer, got 0"),
        (lambda: gaussian_blur(np.ones((2, 2, 1)), 0.0), "sigma: want a positive finite number"),
        (lambda: area_under_curve(np.ones(3), [0, 1]), "fractions: want 3, one a value, got 2"),
        (lambda: prototype_margin(np.ones((2, 3)), np.ones((1, 3)), np.zeros(2, int)), "prototypes: want at least 2"),
        (lambda: prototype_margin(np.ones((2, 3)), np.ones((2, 3)), np.zeros(3, int)), r"labels: .*\(2,\).*\(3,\)"),
        (lambda: prototype_margin(np.ones((2, 3)), np.ones((2, 3)), np.zeros(2)), "labels: want integers"),
    ],
)
def test_functions_name_the_bad_argument(call, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        call()


# ---- gaussian_blur


@pytest.mark.parametrize(("shape", "sigma"), [((20, 31), 1.5), ((9, 40), 2.0), ((12, 12), 0.4)])
def test_gaussian_blur_is_that_of_opencv(shape, sigma):
    images = random(0, 2, *shape, 3)
    kernel = (2 * int(np.ceil(3 * sigma)) + 1,) * 2
    expected = [cv2.GaussianBlur(one, kernel, sigma, borderType=cv2.BORDER_REFLECT_101) for one in images]
    np.testing.assert_allclose(gaussian_blur(images, sigma), expected, atol=2e-6)


def test_gaussian_blur_wider_than_the_image_leaves_its_mean_colour():
    image = random(0, 4, 5, 3)
    blurred = np.asarray(gaussian_blur(image, 40.0))
    assert np.ptp(blurred, axis=(0, 1)).max() < 0.05 * np.ptp(image)
    np.testing.assert_allclose(gaussian_blur(np.ones((1, 1, 2), np.float32), 3.0), np.ones((1, 1, 2)), rtol=1e-6)


# ---- area_under_curve


def test_area_under_curve_is_the_trapezoid_rule_over_the_width():
    values, fractions = random(0, 3, 4, 6), np.array([0.1, 0.15, 0.4, 0.5, 0.8, 0.9])
    expected = np.trapezoid(values, fractions, axis=-1) / 0.8
    np.testing.assert_allclose(area_under_curve(values, fractions), expected, rtol=1e-5, atol=1e-6)


def test_area_under_curve_of_a_constant_is_the_constant():
    assert float(area_under_curve(np.full(3, -2.5, np.float32), [0.2, 0.3, 0.9])) == pytest.approx(-2.5)


# ---- prototype_margin


def loop_margin(embedding, prototypes, label, counts):
    distances = [sum(abs(float(e) - float(p)) for e, p in zip(embedding, one, strict=True)) for one in prototypes]
    return min(d for c, d in enumerate(distances) if c != label and counts[c]) - distances[label]


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_prototype_margin_is_that_of_a_loop(batch_size):
    embeddings, prototypes = random(0, 2, 3, 6), random(1, 5, 6)
    labels, counts = np.array([[0, 4, 2], [2, 3, 1]]), np.array([3, 1, 2, 1, 9])
    margins = prototype_margin(embeddings, prototypes, labels, batch_size=batch_size)
    expected = [[loop_margin(embeddings[i, j], prototypes, labels[i, j], counts) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(margins, expected, rtol=1e-5)
    assert np.min(expected) < 0


def test_prototype_margin_leaves_classes_without_samples_out():
    prototypes, counts = np.array([[1.0], [0.0], [5.0]]), np.array([2, 0, 3])  # the second one is nobody's
    assert prototype_margin(np.array([[0.5]]), prototypes, np.array([0]), counts=counts).tolist() == [4.0]
    assert prototype_margin(np.array([[0.5]]), prototypes, np.array([1]), counts=counts).tolist() == [-np.inf]
    assert prototype_margin(np.array([[0.5]]), prototypes, np.array([0]), counts=np.array([1, 0, 0])).tolist() == [
        np.inf
    ]


def test_prototype_margin_between_equal_prototypes_is_zero():
    assert prototype_margin(np.ones((1, 2)), np.zeros((3, 2)), np.array([1])).tolist() == [0.0]


@pytest.mark.parametrize("label", [-1, 3])
def test_prototype_margin_of_a_label_outside_is_nan(label):
    margins = prototype_margin(np.ones((2, 2)), np.eye(3, 2), np.array([label, 0]))
    assert np.isnan(margins).tolist() == [True, False]


def test_prototype_margin_never_holds_all_distances_by_channel():
    shapes = jax.make_jaxpr(lambda e, p, y: prototype_margin(e, p, y, batch_size=2))(
        jnp.ones((16, 32)), jnp.ones((8, 32)), jnp.zeros(16, int)
    )
    assert "16,8]" in str(shapes)
    assert "16,8,32]" not in str(shapes)


# ---- controls


def test_random_maps_are_the_same_for_an_image_in_any_batch():
    whole = random_maps(np.arange(6), (3, 4), seed=2, kinds=2)
    assert whole.shape == (6, 2, 3, 4)
    np.testing.assert_array_equal(random_maps(np.array([4, 1]), (3, 4), seed=2, kinds=2), whole[[4, 1]])
    assert len(np.unique(whole)) == whole.size
    assert not np.array_equal(random_maps(np.arange(6), (3, 4), seed=3, kinds=2), whole)


def test_center_map_falls_by_the_share_of_each_side():
    found = center_map((4, 10), sigma=0.2)
    by_hand = [
        [np.exp(-(((r + 0.5) / 4 - 0.5) ** 2 + ((c + 0.5) / 10 - 0.5) ** 2) / 0.08) for c in range(10)]
        for r in range(4)
    ]
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
