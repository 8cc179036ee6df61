"""Retrieval in the report: its data, the page with its choices, and the picture strip."""

import base64
import html.parser
import re

import cv2
import numpy as np
import pytest

from distcam_jax import report
from distcam_jax.report import overlays, retrieval_view
from tests.explorer_browser import open_browser

NASTY = "</script><img src=x onerror=\"document.title='broken'\"> & 'q'"
METHODS = ("Dist-CAM", NASTY)
PORTRAIT, SQUARE = np.full((32, 16, 3), 0.5, np.float32), np.full((32, 32, 3), 0.25, np.float32)
HOT = np.outer([1.0, 0.0, 0.0, 0.0], [1.0, 0.0])  # in the upper left corner


def make_match(distance, correct, strength=1.0, **changes):
    maps = {"heatmaps": dict.fromkeys(METHODS, HOT), "query_heatmaps": dict.fromkeys(METHODS, strength * HOT)}
    return report.Match(
        **({"image": PORTRAIT, "class_name": NASTY} | maps | changes), distance=distance, correct=correct
    )


def make_query(name, precision, **changes):
    matches = [
        make_match(0.25, False, 1.0, camera=6),
        make_match(0.5, True, 4.0, rank=9),
        make_match(0.75, False, 2.0, rank=11),
    ]
    fields = {"image": SQUARE, "class_name": "0042", "matches": matches, "file_name": name} | changes
    return report.RetrievalQuery(**fields, average_precision=precision)


def make_retrieval(**changes):
    """Queries whose order on the page is b, a, d, e, c."""
    precisions = {"a": 0.5, "b": 0.126, "c": None, "d": 0.5, "e": 1.0}
    queries = [make_query(name, precision) for name, precision in precisions.items()]
    queries[4] = make_query("e", 1.0, matches=queries[4].matches[:1], camera=3, note=NASTY)
    fields = {"title": NASTY, "text": NASTY, "queries": queries, "class_word": "identity"}
    return report.Retrieval(**(fields | changes))


class Page(html.parser.HTMLParser):
    """Collects the rows of the tables, each with the attributes of its body, and all elements and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.rows, self.text, self._stack, self._body = [], [], "", [], {}
        self.feed(text)
        assert not self._stack, f"elements left open: {self._stack}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tbody":
            self._body = dict(attrs)
        if tag == "tr":
            self.rows.append({"body": self._body, "row": dict(attrs), "cells": []})
        if tag in ("td", "th"):
            self.rows[-1]["cells"].append({"attributes": dict(attrs), "text": "", "images": []})
        if tag == "img" and self.rows:
            self.rows[-1]["cells"][-1]["images"].append(dict(attrs))
        if tag not in ("meta", "link", "img"):
            self._stack.append(tag)

    def handle_endtag(self, tag):
        assert self._stack.pop() == tag

    def handle_data(self, data):
        if {"script", "style"} & set(self._stack):
            return
        self.text += data
        if {"td", "th"} & set(self._stack):
            self.rows[-1]["cells"][-1]["text"] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def words(cell):
    return " ".join(cell["text"].split())


def decode(image):
    head, data = image["src"].split(",", 1)
    assert head == "data:image/webp;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def render(**changes):
    return report.render_report(report.Report("Found", retrievals=[make_retrieval(**changes)]))


@pytest.fixture(scope="module")
def text():
    return render()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


# the data


def test_retrieval_order_is_the_worst_precision_first_and_unknown_ones_last():
    assert make_retrieval().order == [1, 0, 3, 4, 2]


def test_retrieval_query_ranks_are_places_where_none_is_given():
    assert make_query("a", 0.5).ranks == [1, 9, 11]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((8, 8))}, r"image must be \[h, w, 3\] and not empty, got shape \(8, 8\)"),
        ({"distance": np.nan}, "distance must be one finite number, got nan"),
        ({"distance": [1.0]}, r"distance must be one finite number, got \[1.0\]"),
        ({"correct": 1}, "correct must be True or False, got 1"),
        ({"heatmaps": {}}, "heatmaps must hold the map of at least one method"),
        ({"heatmaps": {"CAM": np.ones(4)}, "query_heatmaps": {"CAM": HOT}}, r"heatmaps\['CAM'\] must be maps .*\(4,\)"),
        ({"query_heatmaps": {"CAM": HOT}}, r"query_heatmaps must be of the same methods .*\['CAM'\] for \['Dist-CAM'"),
        ({"query_heatmaps": {key: [] for key in METHODS}}, r"query_heatmaps\['Dist-CAM'\] must be maps"),
        ({"camera": -1}, "camera must be a whole number from 0, or None, got -1"),
        ({"rank": 0}, "rank must be a whole number from 1, or None, got 0"),
        ({"rank": True}, "rank must be a whole number from 1, or None, got True"),
    ],
)
def test_match_names_the_bad_field(changes, message):
    with pytest.raises(ValueError, match=message):
        make_match(**({"distance": 1.0, "correct": True} | changes))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((0, 8, 3))}, r"image must be \[h, w, 3\] and not empty"),
        ({"matches": []}, "matches must not be empty"),
        ({"matches": [make_match(1.0, True), make_match(2.0, True, rank=1)]}, r"ranks that rise, got \[1, 1\]"),
        (
            {"matches": [make_match(1.0, True), make_match(1.0, True, heatmaps={"a": HOT}, query_heatmaps={"a": HOT})]},
            r"matches must have maps of the same methods: got .*, and \['a'\] at index 1",
        ),
        ({"precision": 1.5}, r"average_precision must be in \[0, 1\] or None, got 1.5"),
        ({"precision": np.nan}, r"average_precision must be in \[0, 1\] or None, got nan"),
        ({"camera": 1.5}, "camera must be a whole number from 0, or None, got 1.5"),
    ],
)
def test_retrieval_query_names_the_bad_field(changes, message):
    with pytest.raises(ValueError, match=message):
        make_query("a", **({"precision": 0.5} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": []}, "queries must not be empty"),
        (
            {
                "queries": [
                    make_query("a", 0.5, matches=[make_match(1.0, True, heatmaps=maps, query_heatmaps=maps)])
                    for maps in ({"a": HOT}, {"b": HOT})
                ]
            },
            r"queries must have maps of the same methods: got \['a'\], and \['b'\] at index 1",
        ),
        ({"class_word": ""}, "class_word must not be empty"),
        ({"distance_name": ""}, "distance_name must not be empty"),
        ({"precision_name": ""}, "precision_name must not be empty"),
    ],
)
def test_retrieval_names_the_bad_field(changes, message):
    with pytest.raises(ValueError, match=message):
        make_retrieval(**changes)


# drawing


@pytest.mark.parametrize(("shared", "wanted"), [(True, [64, 255, 128]), (False, [255, 255, 255])])
def test_pair_pictures_share_a_scale_over_the_query_only_where_asked(shared, wanted):
    found = make_retrieval(shared_scale=shared)
    over_query, over_match = retrieval_view.pair_pictures(found, found.queries[0], "Dist-CAM", alpha=1.0)
    table = overlays.color_table()
    np.testing.assert_array_equal([picture[0, 0] for picture in over_query], table[wanted])
    np.testing.assert_array_equal([picture[0, 0] for picture in over_match], table[[255] * 3])
    assert [picture.shape[:2] for picture in over_query + over_match] == [(168, 168)] * 3 + [(238, 119)] * 3


@pytest.mark.parametrize("shape", [(64, 64), (256, 128), (375, 500), (20, 30)])
def test_picture_size_keeps_aspect_and_area(shape):
    height, width = retrieval_view.picture_size(np.zeros((*shape, 3)))
    assert height * width == pytest.approx(168**2, rel=0.01)
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.01)


# the page


def test_render_report_shows_queries_from_the_worst_on_with_their_precision(page):
    firsts = [row["cells"][0] for row in page.rows if row["cells"][0]["attributes"].get("scope") == "rowgroup"]
    assert [words(cell) for cell in firsts] == [
        *("AP 0.13 0042 b", "AP 0.50 0042 a", "AP 0.50 0042 d", f"AP 1.00 0042 camera 3 {NASTY} e", "AP — 0042 c")
    ]


def test_render_report_marks_matches_by_frame_sign_and_word(page):
    cells = page.rows[1]["cells"][1:]
    assert [cell["attributes"]["class"] for cell in cells] == ["wrong", "right", "wrong"]
    assert [words(cell) for cell in cells] == [
        *(f"1 ✗ wrong {NASTY} 0.250 camera 6", f"9 ✓ right {NASTY} 0.500", f"11 ✗ wrong {NASTY} 0.750")
    ]
    assert "✗ wrong: another identity" in page.text


def test_render_report_explains_query_and_match_by_each_method(page):
    rows = page.rows[2:6]
    assert [words(row["cells"][0]) for row in rows] == [
        f"{line} {method}"
        for method in METHODS
        for line in ("Query explained by this match", "This match explained by the query")
    ]
    assert [row["row"]["data-method"] for row in rows] == ["0", "0", "1", "1"]
    for row in rows:
        shown = [decode(cell["images"][0]) for cell in row["cells"][1:]]
        over_query = row["row"]["class"] == "over-query"
        assert [picture.shape for picture in shown] == [(168, 168, 3) if over_query else (238, 119, 3)] * 3
        # the corner is hot: by a scale of its own, or by the largest of the three maps over the query
        red = [picture[4, 4, 0] - picture[4, 4, 2] for picture in shown]
        assert (red[1] > red[0] + 60) if over_query else max(red) - min(red) < 10


def test_render_report_fills_the_rows_of_a_query_with_fewer_matches(page):
    rows = [row for row in page.rows if row["body"].get("data-given") == "4"]
    assert [len(row["cells"]) for row in rows] == [3] * 5
    assert all(row["cells"][-1]["attributes"] == {"colspan": "2"} for row in rows)


def test_render_report_says_where_a_pair_has_no_positive_value():
    match = make_match(1.0, True, heatmaps={"a": HOT, "b": HOT}, query_heatmaps={"a": HOT, "b": -HOT})
    assert Page(render(queries=[make_query("a", 0.5, matches=[match])])).text.count("no positive value") == 1


def test_render_report_of_retrievals_is_safe_and_loads_nothing(text, page):
    assert len(re.findall("<script", text)) == 1
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert re.search("script-src 'sha256-[^']+'$", policy)
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
        assert not [name for name in attributes if name.startswith("on")]


def test_render_report_of_retrievals_can_be_read_without_seeing_it(page):
    images = page.all("img")
    assert len(images) == 4 * (1 + 3 * 5) + (1 + 5)
    assert all(image["alt"] and image["loading"] == "lazy" for image in images)
    found = f"match 1, match of {NASTY}, wrong"
    assert [image["alt"] for image in images[:2]] == ["Query: b", f"Match 1, wrong: match of {NASTY}"]
    assert images[4]["alt"] == f"Dist-CAM heatmap over the query b, explained by {found}"
    assert images[7]["alt"] == f"Dist-CAM heatmap over {found}, explained by the query b"


def test_render_report_links_lead_to_retrievals():
    parsed = Page(report.render_report(report.Report("Found", retrievals=[make_retrieval()] * 2)))
    names = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    assert {link["href"][1:] for link in parsed.all("a")} == {"top", "retrieval", "retrieval-1", "retrieval-2"}
    assert {"retrieval", "retrieval-1", "retrieval-2"} < set(names)


def test_render_report_without_retrievals_has_nothing_of_them():
    text = report.render_report(report.Report("Empty"))
    assert "etrieval" not in text
    assert "script" not in text


def test_page_orders_queries_and_chooses_methods(tmp_path):
    path = report.save_report(report.Report(NASTY, retrievals=[make_retrieval()]), tmp_path / "report.html")
    with open_browser() as browser:
        page, troubles = browser.new_page(viewport={"width": 400, "height": 800}), []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(path.as_uri())

        def order():
            return "".join(page.locator("th .file.cut").all_inner_texts())

        def methods():
            shown = page.locator("tbody").first.locator("tr[data-method]:visible")
            return [row.get_attribute("data-method") for row in shown.all()]

        assert (order(), methods()) == ("badec", ["0", "0"])
        page.locator("select").focus()
        page.keyboard.press("ArrowDown")
        assert order() == "eadbc"
        page.keyboard.press("ArrowDown")
        assert order() == "abcde"
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert (methods(), page.locator("[aria-pressed=true]").all_inner_texts()) == (["1", "1"], [NASTY])
        page.get_by_role("button", name="all").click()
        assert methods() == ["0", "0", "1", "1"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        still = browser.new_context(java_script_enabled=False).new_page()
        still.goto(path.as_uri())
        assert still.locator("tr[data-method]:visible").count() == 5 * 4
        assert not still.locator("select").is_visible()
        assert (troubles, page.title()) == ([], NASTY)


# the picture strip

DPI = 60
SIDE = 1.35 / np.sqrt(2)  # inches: most pictures are portraits


def strip(tmp_path, retrieval, **options):
    path = report.save_retrieval_figure(retrieval, tmp_path / "new" / "strip.png", dpi=DPI, **options)
    return cv2.imread(str(path))[..., ::-1].astype(int)


def test_save_retrieval_figure_grows_by_two_rows_a_method(tmp_path):
    found = make_retrieval()
    one = strip(tmp_path, found, queries=[0])
    both = strip(tmp_path, found, queries=[0], methods=METHODS)
    assert both.shape[0] - one.shape[0] == pytest.approx(DPI * (SIDE + 2 * SIDE + 2 * 0.14), abs=2)
    assert strip(tmp_path, found, queries=2).shape[0] > 1.8 * one.shape[0]


def test_save_retrieval_figure_frames_matches_and_draws_both_ways(tmp_path):
    picture = strip(tmp_path, make_retrieval(), queries=[0], alpha=1.0)
    lefts = [1.45 + SIDE + 0.26 + place * (SIDE + 0.14) for place in range(3)]
    top = 0.4 + 0.24

    def at(inches_x, inches_y):
        return picture[round(inches_y * DPI), round(inches_x * DPI)]

    for left, wanted in zip(lefts, [(179, 38, 30), (11, 122, 75), (179, 38, 30)], strict=True):
        assert np.abs(at(left, top + SIDE) - wanted).max() < 30
    assert np.abs(at(1.45 + SIDE / 2, top + SIDE / 2) - 64).max() < 3  # the query
    table, over_query = overlays.color_table(), top + 2 * SIDE + 0.12 + 3 * 0.17
    for left, wanted in zip(lefts, table[[64, 255, 128]], strict=True):
        assert np.abs(at(left + 0.05, over_query + 0.05) - wanted).max() < 40
        assert np.abs(at(left + 0.05, over_query + SIDE + 0.14 + 0.05) - table[255]).max() < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "CAM"}, "method 'CAM' is unknown; valid are Dist-CAM, "),
        ({"queries": 0}, "queries: want a positive integer, got 0"),
        ({"queries": [5]}, r"queries must be a number, or positions of the 5 queries, got \[5\]"),
        ({"matches": 0}, "matches: want a positive integer, got 0"),
    ],
)
def test_save_retrieval_figure_names_the_bad_argument(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        report.save_retrieval_figure(make_retrieval(), tmp_path / "strip.png", **options)
    assert not list(tmp_path.iterdir())
