"""`write_report`, from the arrays of a user to the page."""

import html.parser

import jax.numpy as jnp
import numpy as np
import pytest

from distcam_jax import report
from distcam_jax.report import build, inputs

NASTY = "<script>alert('x')</script> & \"q\""


class Page(html.parser.HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def data():
    """Three classes with a channel of their own; each image's class channel is hot inside its true box alone."""
    key = np.random.default_rng(7)
    n, c = 9, 3
    labels = np.arange(n) % c
    features = key.uniform(0, 0.05, (n, 4, 4, c + 2)).astype(np.float32)
    for i, label in enumerate(labels):
        features[i, 1:3, 1:3, label] += 2
    features[8, ..., [2, 0]] = features[8, ..., [0, 2]]  # the last image looks like class 0
    pooled = features.mean((1, 2))
    prototypes = np.stack([pooled[:6][labels[:6] == k].mean(0) for k in range(c)])
    return {
        "images": key.random((n, 64, 64, 3), np.float32),
        "features": features,
        "prototypes": prototypes,
        "class_names": ["cat", NASTY, "dog"],
        "labels": labels,
        "boxes": [np.array([[16, 16, 48, 48]]) for _ in range(n)],
        "class_weights": np.eye(c, c + 2, dtype=np.float32),
        "file_names": [f"{i}{NASTY}.jpg" for i in range(n)],
    }


def write(data, tmp_path, **changes):
    return report.write_report(**(data | {"output": tmp_path / "report.html"} | changes))


def test_write_report_page_has_figures_cases_and_comparisons(data, tmp_path):
    path = write(data, tmp_path, title=NASTY)
    text = path.read_text(encoding="utf-8")
    parsed = Page(text)
    assert len(parsed.all("script")) == 2  # the explorer's data and its program
    # 9 cases with input and three maps; two comparisons: one image a class with its input and three prototypes
    assert len(parsed.all("img")) == 9 * 4 + 2 * 3 * 4
    verdicts = [span["class"] for span in parsed.all("span") if "verdict" in span.get("class", "")]
    assert sorted(verdicts) == ["verdict right"] * 8 + ["verdict wrong"]
    assert "88.9" in parsed.text  # 8 of 9
    for words in ("Best cases", "Worst cases", "Random cases", "GT-known", "Contrastive Dist-CAM", "Centre box"):
        assert words in parsed.text


def test_write_report_nchw_equals_nhwc(data, tmp_path):
    first = write(data, tmp_path).read_text()
    changes = {name: np.moveaxis(data[name], 3, 1) for name in ("images", "features")}
    second = write(data, tmp_path, **changes, data_format="NCHW", output=tmp_path / "b.html").read_text()
    assert first == second


def test_write_report_needs_no_labels_boxes_or_weights(data, tmp_path):
    changes = dict.fromkeys(("labels", "boxes", "class_weights", "file_names"))
    parsed = Page(write(data, tmp_path, **changes).read_text())
    assert len(parsed.all("img")) == 9 * 3 + 2 * 3 * 4
    assert "GT-known" not in parsed.text
    assert not [span for span in parsed.all("span") if "verdict" in span.get("class", "")]


@pytest.mark.parametrize("changes", [{"labels": None}, {"boxes": None}, {"max_images": 1}, {"max_images": 4}])
def test_write_report_shows_no_more_than_asked(data, tmp_path, changes):
    parsed = Page(write(data, tmp_path, **changes).read_text())
    assert len(parsed.all("article")) == min(9, changes.get("max_images", 24))


def test_write_report_of_one_image_and_one_class(data, tmp_path):
    one = {name: data[name][:1] for name in data if name not in ("prototypes", "class_names", "class_weights")}
    one |= {name: data[name][:1] for name in ("prototypes", "class_names", "class_weights")}
    parsed = Page(write(one, tmp_path).read_text())
    assert len(parsed.all("img")) == 4


def test_write_report_takes_uint8_lists_and_images_without_boxes(data, tmp_path):
    boxes = [None, [], [[1, 2, 30, 40]], *data["boxes"][3:]]
    changes = {
        "images": (data["images"] * 255).astype(np.uint8),
        "features": jnp.asarray(data["features"], jnp.bfloat16),
        "prototypes": data["prototypes"].tolist(),
        "labels": data["labels"].tolist(),
        "boxes": boxes,
    }
    assert len(Page(write(data, tmp_path, **changes).read_text()).all("article")) == 9


def test_class_maps_match_a_loop(data):
    checked = inputs.check_inputs(**data, data_format="NHWC")
    classes = np.array([2, 0, 1, 1, 0, 2, 0, 1, 2])
    maps = build._class_maps(checked, classes, build._Options("sum", 0.1, 0.2))
    for i, label in enumerate(classes):
        features, pooled = data["features"][i].astype(np.float64), data["features"][i].mean((0, 1))
        distances = np.abs(pooled - data["prototypes"]).astype(np.float64)
        weights = 1 / (distances[label] / distances[label].mean() + 0.1)
        np.testing.assert_allclose(maps["Dist-CAM"][i], features @ (weights / weights.sum()), rtol=1e-4)
        np.testing.assert_allclose(
            maps["Contrastive Dist-CAM"][i], features @ (distances.mean(0) - distances[label]), rtol=1e-3, atol=1e-6
        )
        np.testing.assert_allclose(maps["CAM"][i], features @ data["class_weights"][label], rtol=1e-5)


def test_class_maps_in_blocks_equal_the_whole(data, monkeypatch):
    checked = inputs.check_inputs(**data, data_format="NHWC")
    options = build._Options("sum", 0.1, 0.2)
    whole = build._class_maps(checked, data["labels"], options)
    monkeypatch.setattr(build, "_BLOCK_ENTRIES", 4 * data["prototypes"].size)
    for name, maps in build._class_maps(checked, data["labels"], options).items():
        np.testing.assert_allclose(maps, whole[name], rtol=1e-6)


def test_localization_table_counts_by_hand(data):
    boxes = [np.array([[16, 16, 48, 48]])] * 7 + [np.array([[0, 0, 8, 8]]), np.array([[16, 16, 48, 48]])]
    checked = inputs.check_inputs(**(data | {"boxes": boxes}), data_format="NHWC")
    options = build._Options("sum", 0.1, 0.5)
    predictions = build._distances(checked).argmin(1)
    assert predictions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0]
    explained = build._explain(checked, predictions, options)
    rows = {row.name: row.cells for row in build._localization_table(checked, predictions, explained, options).rows}
    # at half the maximum CAM's box is the hot square. Image 7 has its true box elsewhere; image 8 is taken for class 0,
    # and its true class's map is noise
    assert rows["CAM"][0].value == pytest.approx(7 / 9)
    hit = explained.ious["CAM"] >= 0.5
    assert hit.tolist() == [True] * 7 + [False, True]
    assert rows["Whole image"][1].value == 0
    # a centred box of 80 %: 1024 / 51.2²
    assert rows["Centre box, 80 %"][2].value == pytest.approx((8 * 1024 / 51.2**2 + overlap_of_image_7()) / 9)


def overlap_of_image_7():
    shared = (8 - 6.4) ** 2
    return shared / (51.2**2 + 64 - shared)


def test_sections_rank_by_overlap_and_show_each_image_once(data):
    boxes = [np.array([[16, 16, 48 + 2 * i if i < 8 else 20, 48]]) for i in range(9)]  # overlap falls with i
    checked = inputs.check_inputs(**(data | {"boxes": boxes, "file_names": list("abcdefghi")}), data_format="NHWC")
    distances = build._distances(checked)
    options = build._Options("sum", 0.1, 0.5)
    explained = build._explain(checked, distances.argmin(1), options)
    sections = build._sections(checked, distances, explained, 6, 0)
    ious = [[case.iou for case in section.cases] for section in sections[:2]]
    order = sorted(explained.ious["Dist-CAM"])
    assert ious == [order[::-1][:2], order[:2]]
    names = [case.file_name for section in sections for case in section.cases]
    assert len(names) == len(set(names)) == 6


def test_ranking_without_boxes_is_the_margin_of_the_true_class(data):
    checked = inputs.check_inputs(**(data | {"boxes": None}), data_format="NHWC")
    distances = np.array([[1.0, 3.0, 9.0]] * 9)
    scores, _, _ = build._ranking(checked, distances, build._Explained({}, {}, {}))
    assert scores.tolist() == [2.0, -2.0, -8.0] * 3


def test_comparisons_columns_hold_each_rows_nearest_class(data):
    checked = inputs.check_inputs(**data, data_format="NHWC")
    distances = build._distances(checked)
    for comparison in build._comparisons(checked, distances, build._Options("sum", 0.1, 0.2), 0):
        assert len({row.nearest for row in comparison.rows}) == 3
        for row in comparison.rows:
            index = checked.file_names.index(row.file_name)
            assert comparison.class_names[row.nearest] == checked.class_names[distances[index].argmin()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((9, 64, 64))}, r"images must be \[n, H, W, 3\]"),
        ({"images": np.zeros((0, 64, 64, 3))}, "images must be .* not empty"),
        ({"images": np.zeros((9, 3, 64, 64))}, 'images must be .*pass data_format="NCHW"'),
        ({"images": np.full((9, 64, 64, 3), np.nan)}, r"images must be finite.*\[0, 1, 2, 3, 4\]"),
        ({"images": np.full((9, 64, 64, 3), 255.0)}, "divide by 255"),
        ({"images": [np.zeros((4, 4, 3)), np.zeros((5, 4, 3))]}, "all of one size"),
        ({"images": np.full((9, 64, 64, 3), "a")}, "images must be numbers"),
        ({"features": np.ones((9, 5, 4, 4))}, 'same channels: got 4 .*and 5; pass data_format="NCHW"'),
        ({"features": np.ones((9, 4, 4, 6))}, "same channels: got 6"),
        ({"features": np.ones((9, 4, 5))}, "features must be"),
        ({"features": np.ones((8, 4, 4, 5))}, "features must have one map an image: got 8 for 9"),
        ({"features": np.full((9, 4, 4, 5), np.inf)}, "features must be finite"),
        ({"prototypes": np.ones(5)}, "prototypes must be"),
        ({"prototypes": np.zeros((3, 5))}, "prototypes must not be all zeros"),
        ({"class_names": ["a"]}, "class_names must have one name a prototype: got 1 for 3"),
        ({"class_weights": np.ones((3, 4))}, "class_weights must be shaped as prototypes"),
        ({"labels": [0, 1]}, "labels must be"),
        ({"labels": np.full(9, 3)}, r"labels must be in \[0, 3\)"),
        ({"boxes": [None]}, "boxes must have one array"),
        ({"boxes": [[[1, 2, 3]]] * 9}, r"boxes\[0\] must be"),
        ({"boxes": [[[5, 5, 5, 9]]] * 9}, r"boxes\[0\] must have x0 < x1"),
        ({"file_names": ["a"]}, "file_names must have one name an image"),
        ({"data_format": "CHWN"}, "data_format must be one of NHWC, NCHW"),
        ({"threshold": 2.0}, "threshold"),
        ({"max_images": 0}, "max_images"),
        ({"norm": "l3"}, "norm"),
        ({"eps": 0.0}, "eps"),
    ],
)
def test_write_report_names_the_bad_argument(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(data, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_write_report_finds_a_bad_output_before_the_work(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build, "_distances", None)  # would fail if it came first
    with pytest.raises(OSError, match=r"cannot write .*name a file in a folder that you may write to"):
        write(data, tmp_path, output=tmp_path / "file" / "report.html")
