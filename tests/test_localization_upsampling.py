"""Resized heatmaps, on the host and on the device, against OpenCV, JAX and the kernel by hand."""

import cv2
import jax
import ml_dtypes
import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.localization import upsample_heatmap, upsample_heatmaps

# ---- upsample_heatmap


def test_upsample_heatmap_matches_the_bilinear_of_jax():
    heatmap = np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)
    expected = jax.image.resize(heatmap, (224, 224), "linear")
    np.testing.assert_allclose(upsample_heatmap(jnp.asarray(heatmap), 224), expected, atol=2e-6)


def test_upsample_heatmap_bicubic_matches_keys_kernel_by_hand():
    def weight(t, a=-0.75):
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    line = np.array([0.0, 3.0, 1.0, 4.0])
    expected = []
    for x in range(16):
        u = (x + 0.5) / 4 - 0.5
        taps = range(int(np.floor(u)) - 1, int(np.floor(u)) + 3)
        expected.append(sum(weight(u - tap) * line[min(max(tap, 0), 3)] for tap in taps))
    upsampled = upsample_heatmap(np.tile(line, (4, 1)), 16, interpolation="bicubic")
    np.testing.assert_allclose(upsampled, np.tile(expected, (16, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.float16, np.float32), (ml_dtypes.bfloat16, np.float32), (np.float32, np.float32), (np.float64, np.float64)],
)
def test_upsample_heatmap_keeps_float64_and_widens_half(dtype, expected):
    assert upsample_heatmap(np.ones((2, 2), dtype), 4).dtype == expected


@pytest.mark.parametrize(
    ("heatmap", "size", "interpolation", "message"),
    [
        (np.ones((2, 2, 1)), 4, "bilinear", r"heatmap must have shape \[h, w\].*\(2, 2, 1\)"),
        (np.ones((0, 2)), 4, "bilinear", "heatmap must have shape"),
        (np.ones((2, 2), int), 4, "bilinear", "heatmap must be floats, got int64"),
        (np.ones((2, 2)), 0, "bilinear", "size must be at least 1"),
        (np.ones((2, 2)), 4, "nearest", "one of bilinear, bicubic, got 'nearest'"),
    ],
)
def test_upsample_heatmap_names_the_bad_argument(heatmap, size, interpolation, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        upsample_heatmap(heatmap, size, interpolation=interpolation)


# ---- upsample_heatmaps


@pytest.mark.parametrize(
    ("shape", "size"), [((7, 7), 224), ((14, 14), 224), ((3, 5), (20, 9)), ((1, 1), 4), ((9, 8), 3)]
)
@pytest.mark.parametrize(("name", "flag"), [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
def test_upsample_heatmaps_matches_opencv(name, flag, shape, size):
    heatmaps = np.random.default_rng(2).normal(size=(2, 3, *shape)).astype(np.float32)
    target = (size, size) if isinstance(size, int) else size
    expected = np.stack([cv2.resize(heatmap, target, interpolation=flag) for heatmap in heatmaps.reshape(-1, *shape)])
    upsampled = upsample_heatmaps(heatmaps, size, interpolation=name)
    np.testing.assert_allclose(upsampled, expected.reshape(2, 3, *target[::-1]), atol=1e-5)


def test_upsample_heatmaps_computes_half_precision_in_float32():
    heatmap = np.array([[0.0, 1.0]], ml_dtypes.bfloat16)
    upsampled = upsample_heatmaps(heatmap, (200, 1))
    assert upsampled.dtype == np.float32
    assert upsampled[0, 51] == pytest.approx(0.015, abs=1e-6)


@pytest.mark.parametrize(
    ("heatmap", "size", "interpolation", "message"),
    [
        (np.ones(2), 4, "bilinear", r"heatmaps: want axes \[... h w\], got shape \(2,\)"),
        (np.ones((2, 2), int), 4, "bilinear", "heatmaps: want a floating type"),
        (np.ones((2, 2)), (4, 0), "bilinear", "size must be at least 1"),
        (np.ones((2, 2)), 4, "nearest", "one of bilinear, bicubic, got 'nearest'"),
    ],
)
def test_upsample_heatmaps_names_the_bad_argument(heatmap, size, interpolation, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        upsample_heatmaps(heatmap, size, interpolation=interpolation)
