"""The explorer's boxes and colours, computed in a browser, against the library's."""

import base64
from importlib import resources

import cv2
import numpy as np
import pytest
from scipy import ndimage

from distcam_jax import report
from distcam_jax.localization import best_iou, heatmap_to_box
from distcam_jax.report import overlays
from tests.explorer_browser import open_browser, protocol


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def call(browser):
    """Calls the explorer's own functions on an empty page: `call(expression, given)`."""
    folder = resources.files("distcam_jax.report") / "templates"
    names = ("explorer_boxes", "explorer_data", "explorer_draw")
    source = "\n".join((folder / f"{name}.js").read_text() for name in names)
    page = browser.new_page()
    yield lambda expression, given: page.evaluate(f"(given) => {{ {source} return {expression}; }}", given)
    page.close()


def as_map(heatmap):
    return {"values": np.float32(heatmap).ravel().tolist(), "height": len(heatmap), "width": len(heatmap[0])}


def many_maps():
    """Random, smooth, signed, sparse, whole-number and tiny maps of several sizes."""
    key = np.random.default_rng(5)
    for height, width in [(7, 7), (8, 8), (14, 14), (1, 3), (4, 9), (2, 2)]:
        for _ in range(6):
            noise = key.random((height, width))
            yield noise
            yield ndimage.gaussian_filter(noise, 1.0) - 0.4
            yield noise * (noise > 0.7)
            yield key.integers(-2, 3, (height, width)).astype(float)
            yield key.normal(size=(height, width)) * 1e-30
    yield from (np.zeros((3, 3)), -np.eye(3), np.full((2, 2), np.nan), np.array([[np.inf, 1.0]]))


def near_threshold(heatmap, threshold, size):
    """Whether a pixel lies so near the threshold that rounding decides; in double precision."""
    levels = cv2.resize(heatmap.astype(np.float64), (size, size), interpolation=cv2.INTER_LINEAR)
    return bool((np.abs(levels / levels.max() - threshold) < 4e-6).any())


def test_boxes_equal_the_librarys(call):
    cases = [
        (np.float32(heatmap), threshold, (64, 224)[number % 2], [100 + number, 75])
        for number, heatmap in enumerate(many_maps())
        for threshold in (0.0, 0.2, 0.45, 0.8, 1.0)
    ]
    found = call(
        "given.map(([map, t, size, [width, height]]) => heatmapToBox(map, { width, height }, t, size).box)",
        [[as_map(heatmap), *rest] for heatmap, *rest in cases],
    )
    different = 0
    for box, (heatmap, threshold, size, image_size) in zip(found, cases, strict=True):
        wanted = heatmap_to_box(heatmap, image_size, threshold=threshold, protocol=protocol(size))
        if not np.allclose(box, wanted, rtol=1e-12):
            different += 1
            assert near_threshold(heatmap, threshold, size), (box, wanted, threshold, heatmap)
    assert len(cases) > 900
    assert different < 0.02 * len(cases)


@pytest.mark.parametrize(
    ("rows", "size", "threshold", "box"),
    [
        (["01"], 4, 0.25, [1, 0, 4, 4]),  # levels 0, 0.25, 0.75, 1: at the threshold counts
        (["01"], 4, 0.26, [2, 0, 4, 4]),
        (["04", "00"], 2, 1.0, [1, 0, 2, 1]),
        (["10001"] * 5, 5, 0.5, [0, 0, 1, 5]),  # equals: the first in raster order
        (["00001", "00001", "10000", "10000", "00000"], 5, 0.5, [4, 0, 5, 2]),
        (["1011"] * 4, 4, 0.5, [2, 0, 4, 4]),
        (["100", "010", "001"], 3, 0.5, [0, 0, 3, 3]),  # corners touch
        (["001", "010", "100"], 3, 0.5, [0, 0, 3, 3]),
        (["10100", "10101", "11101", "00000", "11111"], 5, 0.5, [0, 0, 3, 3]),  # joined in its last row
        (["00000"] * 5, 5, 0.0, [0, 0, 0, 0]),
    ],
)
def test_boxes_by_hand(call, rows, size, threshold, box):
    heatmap = [[float(letter) for letter in row] for row in rows]
    expression = "heatmapToBox(given[0], { width: 10 * given[1], height: given[1] }, given[2], given[1]).box"
    assert call(expression, [as_map(heatmap), size, threshold]) == [10 * box[0], box[1], 10 * box[2], box[3]]


def test_iou_equals_the_librarys(call):
    key = np.random.default_rng(2)
    boxes = np.concatenate([low := key.integers(0, 9, (200, 2)), low + key.integers(0, 9, (200, 2))], 1)
    pairs = [(boxes[i].tolist(), boxes[i + 1 : i + 3].tolist()) for i in range(198)]
    found = call("given.map(([box, others]) => bestIou(box, others))", pairs)
    assert found == [best_iou(np.array(box), np.array(others)) for box, others in pairs]
    assert call("bestIou([0, 0, 1, 1], [])", None) is None


def pixels_of(call, expression, given, shape):
    """Runs an expression that gives RGBA bytes; they travel as text, as thousands of numbers are slow."""
    letters = "Array.from(bytes, (byte) => String.fromCharCode(byte)).join('')"
    found = call(f"((bytes) => btoa({letters}))({expression})", given)
    return np.frombuffer(base64.b64decode(found), np.uint8).reshape(*shape, 4)[..., :3].astype(int)


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_heat_colors_are_those_of_the_overlays(call, alpha):
    key = np.random.default_rng(4)
    picture = key.integers(0, 256, (320, 400, 3), np.uint8)  # of the size at which it is shown
    rgba = np.concatenate([picture, np.full((320, 400, 1), 255, np.uint8)], -1)
    expression = """heatPixels(
      { data: decodeBytes(given.pixels), width: 400, height: 320 }, given.map, decodeBytes(given.colors), given.alpha
    ).data"""
    for heatmap in (key.random((5, 8), np.float32) - 0.3, -np.eye(3, dtype=np.float32)):
        given = {
            "map": as_map(heatmap),
            "pixels": base64.b64encode(rgba.tobytes()).decode(),
            "colors": base64.b64encode(overlays.color_table().tobytes()).decode(),
            "alpha": alpha,
        }
        wanted = report.overlay_heatmap(picture, heatmap, alpha=alpha)
        difference = np.abs(pixels_of(call, expression, given, (320, 400)) - wanted)
        assert (difference > 0).mean() < 1e-3  # rounding in single precision
        assert difference.max() <= 16  # a neighbour in the table


@pytest.mark.parametrize("box", [[8.4, 6.0, 50.5, 30.0], [-5, -5, 20, 90], [3, 3, 3, 9], [0, 0, 64, 48]])
def test_boxes_are_drawn_as_on_the_overlays(call, box):
    expression = """(() => {
      const canvas = document.createElement("canvas");
      canvas.width = 320;
      canvas.height = 240;
      const context = canvas.getContext("2d");
      context.fillRect(0, 0, 320, 240);
      drawBox(context, { width: 64, height: 48 }, given, "rgb(255, 45, 215)");
      return context.getImageData(0, 0, 320, 240).data;
    })()"""
    found = pixels_of(call, expression, box, (240, 320))
    wanted = report.draw_boxes(np.zeros((240, 320, 3), np.uint8), np.array([box]) * 5, overlays.DERIVED_BOX_COLOR)
    assert np.abs(found - wanted).max() <= 1


def test_region_is_bright_and_the_rest_dark(call):
    heatmap = np.zeros((8, 8), np.float32)
    heatmap[1:4, 2:6] = 1
    heatmap[6, 7] = 0.9  # a smaller region
    expression = """(() => {
      const picture = { data: new Uint8ClampedArray(64 * 64 * 4).fill(200), width: 64, height: 64 };
      const { region } = heatmapToBox(given, picture, 0.5, 8);
      return regionPixels(picture, region, 8).data;
    })()"""
    found = pixels_of(call, expression, as_map(heatmap), (64, 64))[..., 0]
    wanted = np.full((64, 64), 44)  # 22 % of 200
    wanted[8:32, 16:48] = 215
    wanted[9:31, 17:47] = 200
    wanted[48:56, 56:64] = 100
    np.testing.assert_array_equal(found, wanted)
