"""The explorer's data: what the page holds, decoded again and compared."""

import base64
import json
import re

import cv2
import numpy as np
import pytest

from distcam_jax import report
from distcam_jax.report import build, build_explorer, explorer, inputs, overlays

NASTY = "</script><script>alert('x')</script><!-- & \"q\" \u2028"
MAPS = np.ones((2, 2, 2))  # of two classes


def make_image(side=(40, 60), **changes):
    fields = {
        "picture": np.random.default_rng(0).integers(0, 256, (*side, 3), np.uint8),
        "classes": ["cat", "dog"],
        "file_name": "a.jpg",
        "true_class": "cat",
        "predicted_class": "dog",
        "distance": 2.5,
        "distances": [4.0, 2.5],
        "true_boxes": [[1, 2, 30, 40]],
    }
    return report.ExplorerImage(**(fields | changes))


def make_explorer(**changes):
    """Two images; CAM's maps are 2 by 3, Dist-CAM's are 4 by 4."""
    key = np.random.default_rng(1)
    images = [make_image(), make_image(classes=["dog", "cat", "owl"], distances=None, file_name=NASTY)]
    fields = {
        "images": images,
        "methods": [
            report.ExplorerMethod("CAM", [key.normal(size=(2, 2, 3)), key.normal(size=(3, 2, 3))]),
            report.ExplorerMethod("Dist-CAM", [key.normal(size=(2, 4, 4)), key.normal(size=(3, 4, 4))], 0.35),
        ],
        "input_size": 64,
    }
    return report.Explorer(**(fields | changes))


def embedded(text):
    """The data that a page holds, read as a browser would."""
    (data,) = re.findall(r'<script type="application/json" id="explorer-data">(.*?)</script>', text)
    return json.loads(data)


def decode_maps(payload, index):
    """Method to maps `[c, h, w]` of one image."""
    image = payload["images"][index]
    values = np.frombuffer(base64.b64decode(image["maps"]), "<f4")
    maps, start = {}, 0
    for method in payload["methods"]:
        shape = (len(image["classes"]), method["height"], method["width"])
        maps[method["title"]] = values[start : start + np.prod(shape)].reshape(shape)
        start += np.prod(shape)
    assert start == len(values)
    return maps


def decode_picture(uri):
    kind, data = re.fullmatch(r"data:image/(webp|png);base64,(.*)", uri).groups()
    return kind, cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_explorer_payload_keeps_every_map_exactly():
    shown = make_explorer()
    payload = explorer.explorer_payload(shown)
    for index in range(2):
        maps = decode_maps(payload, index)
        for method in shown.methods:
            np.testing.assert_array_equal(maps[method.title], method.maps[index].astype(np.float32))
    assert [method["threshold"] for method in payload["methods"]] == [0.2, 0.35]


def test_explorer_payload_names_classes_boxes_and_sizes():
    payload = explorer.explorer_payload(make_explorer(), alpha=0.25)
    first, second = payload["images"]
    name = payload["class_names"].__getitem__
    assert [name(number) for number in first["classes"]] == ["cat", "dog"]
    assert [name(number) for number in second["classes"]] == ["dog", "cat", "owl"]
    assert (name(first["true"]), name(first["predicted"])) == ("cat", "dog")
    assert (first["width"], first["height"], first["shown"]) == (60, 40, [480, 320])
    assert first["boxes"] == [[1.0, 2.0, 30.0, 40.0]]
    assert (first["distance"], first["distances"], second["distances"]) == (2.5, [4.0, 2.5], None)
    assert (payload["alpha"], payload["input_size"], payload["start"]) == (0.25, 64, "true")


def test_explorer_payload_has_the_colors_of_the_overlays():
    payload = explorer.explorer_payload(make_explorer(), colormap="viridis")
    colors = np.frombuffer(base64.b64decode(payload["colors"]), np.uint8).reshape(256, 3)
    np.testing.assert_array_equal(colors, overlays.color_table("viridis"))
    assert payload["derived_color"] == "rgb(255, 45, 215)"


def test_explorer_payload_leaves_unknown_and_infinite_values_out():
    bare = make_image(
        file_name="", true_class=None, predicted_class=None, distance=np.inf, distances=[np.nan, 1], true_boxes=None
    )
    maps = [np.full((2, 2, 2), np.nan)]
    payload = explorer.explorer_payload(report.Explorer([bare], [report.ExplorerMethod("CAM", maps)]))
    image = payload["images"][0]
    assert (image["name"], image["true"], image["predicted"], image["distance"]) == ("image 0", None, None, None)
    assert (image["distances"], image["boxes"]) == ([None, 1.0], [])
    assert np.isnan(decode_maps(payload, 0)["CAM"]).all()
    explorer.json_for_script(payload)


@pytest.mark.parametrize(
    ("side", "kind", "size"),
    [
        ((300, 600), "webp", (112, 224)),
        ((40, 60), "webp", (40, 60)),
        ((8, 9), "png", (8, 9)),
        ((2000, 3), "png", (224, 1)),
    ],
)
def test_explorer_payload_shrinks_pictures_and_keeps_tiny_ones_exactly(side, kind, size):
    image = make_image(side, true_boxes=None)
    shown = report.Explorer([image], [report.ExplorerMethod("CAM", [MAPS])])
    entry = explorer.explorer_payload(shown)["images"][0]
    got, pixels = decode_picture(entry["picture"])
    assert (got, pixels.shape[:2]) == (kind, size)
    assert entry["pixelated"] == (kind == "png")
    assert (entry["height"], entry["width"]) == side
    if side == (8, 9):
        np.testing.assert_array_equal(pixels, image.picture)


def test_explorer_payload_takes_a_reduced_copy_of_the_picture():
    image = make_image((40, 60), image_size=(600, 400), true_boxes=[[100, 100, 600, 400]])
    entry = explorer.explorer_payload(report.Explorer([image], [report.ExplorerMethod("CAM", [MAPS])]))["images"][0]
    assert (entry["width"], entry["height"], entry["shown"]) == (600, 400, [600, 400])
    assert decode_picture(entry["picture"])[1].shape[:2] == (40, 60)


def test_explorer_payload_pictures_keep_their_colors():
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    shown = report.Explorer([make_image(picture=red)], [report.ExplorerMethod("CAM", [MAPS])])
    _, pixels = decode_picture(explorer.explorer_payload(shown)["images"][0]["picture"])
    assert np.abs(pixels.astype(int) - [200, 0, 0]).max() < 20


def test_explorer_payload_tells_images_of_one_name_apart():
    names = ["a", "a", "a (2)", "b", "a"]
    shown = report.Explorer(
        [make_image(file_name=name) for name in names], [report.ExplorerMethod("CAM", np.ones((5, 2, 2, 2)))]
    )
    images = explorer.explorer_payload(shown)["images"]
    assert [image["name"] for image in images] == names
    assert len({image["id"] for image in images}) == 5
    assert images[0]["id"] == "a"


def test_json_for_script_cannot_leave_its_element():
    text = explorer.json_for_script({NASTY: [NASTY]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {NASTY: [NASTY]}
    with pytest.raises(ValueError, match="JSON"):
        explorer.json_for_script(float("nan"))


def test_render_report_holds_the_explorer_and_allows_its_script_alone():
    text = report.render_report(report.Report("x", explorer=make_explorer()))
    assert embedded(text) == json.loads(json.dumps(explorer.explorer_payload(make_explorer())))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert f"script-src '{explorer.script_hash(script)}'" in text
    assert text.count("<script") == text.count("</script") == 2
    assert "<!--" not in script
    assert "innerHTML" not in script
    assert not re.search(r"https?:|@import|url\(", text)


def test_render_report_without_an_explorer_has_no_script():
    text = report.render_report(report.Report("x"))
    assert "<script" not in text
    assert "script-src" not in text
    assert "explorer" not in text


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": np.zeros((4, 4))}, r"picture must be \[h, w, 3\]"),
        ({"picture": np.zeros((0, 4, 3))}, "picture must be .* not empty"),
        ({"classes": []}, "classes must be at least one name"),
        ({"classes": ["a", "a"]}, "classes must be .* each once"),
        ({"classes": "ab"}, "classes must be"),
        ({"distances": [1.0]}, "distances must be one a class: got 1 for 2"),
        ({"image_size": (0, 9)}, "image_size must be a positive width and height"),
        ({"true_boxes": [[1, 2, 3]]}, r"true_boxes must be \[m, 4\]"),
        ({"true_boxes": [[1, 2, 3, np.nan]]}, "true_boxes must be finite"),
    ],
)
def test_explorer_image_names_the_bad_field(changes, message):
    with pytest.raises(ValueError, match=message):
        make_image(**changes)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "images must not be empty"),
        ({"methods": []}, "methods must be at least one"),
        ({"methods": [report.ExplorerMethod("a", [])] * 2}, r"different titles, got \['a', 'a'\]"),
        ({"methods": [report.ExplorerMethod("a", [MAPS])]}, "'a' must be one array an image: got 1 for 2"),
        ({"methods": [report.ExplorerMethod("a", [MAPS] * 2)]}, r"\(2, 2, 2\) for the 3 classes of image 1"),
        ({"methods": [report.ExplorerMethod("a", [MAPS, np.ones((3, 2, 4))])]}, "all of one size"),
        ({"methods": [report.ExplorerMethod("a", [np.ones((2, 0, 2)), np.ones((3, 0, 2))])]}, r"must be \[c, h, w\]"),
        ({"input_size": 0}, "input_size"),
        ({"start": "wrong"}, "start must be one of true, predicted"),
    ],
)
def test_explorer_names_the_bad_field(changes, message):
    with pytest.raises(ValueError, match=message):
        make_explorer(**changes)


@pytest.mark.parametrize(("title", "threshold", "message"), [("", 0.2, "title"), ("a", 1.5, "threshold must be")])
def test_explorer_method_names_the_bad_field(title, threshold, message):
    with pytest.raises(ValueError, match=message):
        report.ExplorerMethod(title, [], threshold)


# write_report


@pytest.fixture
def arrays():
    key = np.random.default_rng(3)
    return {
        "images": key.random((7, 40, 48, 3), np.float32),
        "features": key.random((7, 4, 5, 6), np.float32),
        "prototypes": key.random((6, 6), np.float32),
        "class_names": [NASTY, "twin", "c", "twin", "e", "f"],
        "labels": np.array([0, 1, 2, 3, 4, 5, 0]),
        "boxes": [[[1, 2, 30, 30]], None, [], *[[[0, 0, 9, 9]]] * 4],
        "file_names": [f"{index}{NASTY}" for index in range(7)],
    }


def written(arrays, folder, **changes):
    path = report.write_report(**(arrays | {"output": folder / "report.html", "threshold": 0.3} | changes))
    return embedded(path.read_text(encoding="utf-8"))


def test_write_report_explorer_asks_for_the_true_and_the_nearest_classes(arrays, tmp_path):
    payload = written(arrays, tmp_path)
    names = [NASTY, "twin (class 1)", "c", "twin (class 3)", "e", "f"]
    pooled = arrays["features"].mean((1, 2))
    for index, image in enumerate(payload["images"]):
        distances = np.abs(pooled[index] - arrays["prototypes"]).sum(-1)
        near = distances.argsort()
        asked = [names.index(payload["class_names"][number]) for number in image["classes"]]
        label = arrays["labels"][index]
        assert asked == [*near[:3], near[3] if label in near[:4] else label]
        np.testing.assert_allclose(image["distances"], distances[asked], rtol=1e-5)
        assert payload["class_names"][image["predicted"]] == names[near[0]]
        assert payload["class_names"][image["true"]] == names[label]
        assert image["name"] == arrays["file_names"][index]
        assert image["boxes"] == [list(map(float, box)) for box in arrays["boxes"][index] or []]
    assert payload["start"] == "predicted"
    assert {method["threshold"] for method in payload["methods"]} == {0.3}


def test_write_report_explorer_maps_are_those_of_each_class(arrays, tmp_path):
    payload = written(arrays, tmp_path)
    checked = inputs.check_inputs(**arrays, class_weights=None, data_format="NHWC")
    near = build_explorer.asked_classes(build._distances(checked), checked.labels)
    for place in range(4):
        wanted = build._class_maps(checked, near[:, place], build._Options("sum", 0.1, 0.3))
        for index in range(7):
            maps = decode_maps(payload, index)
            assert list(maps) == list(wanted) == ["Dist-CAM", "Contrastive Dist-CAM"]
            for title, values in wanted.items():
                np.testing.assert_array_equal(maps[title][place], values[index])


def test_write_report_explorer_holds_no_more_images_than_asked(arrays, tmp_path):
    names = [image["name"] for image in written(arrays, tmp_path, max_explorer_images=3)["images"]]
    assert len(set(names)) == 3
    assert names == sorted(names)
    assert names != arrays["file_names"][:3]
    path = report.write_report(**arrays, output=tmp_path / "none.html", max_explorer_images=0)
    assert "<script" not in path.read_text()
    with pytest.raises(ValueError, match="max_explorer_images must be at least 0"):
        written(arrays, tmp_path, max_explorer_images=-1)


def test_write_report_explorer_needs_no_labels_or_boxes(arrays, tmp_path):
    payload = written(arrays, tmp_path, labels=None, boxes=None)
    assert {image["true"] for image in payload["images"]} == {None}
    assert all(image["boxes"] == [] for image in payload["images"])
