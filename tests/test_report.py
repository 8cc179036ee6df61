"""The report: tables, the page, and the picture strip."""

import base64
import html.parser
import math
import re

import cv2
import numpy as np
import pytest

from distcam_jax import files, report
from distcam_jax.report import overlays, page, tables

NASTY = "<script>alert('x')</script> & \"q\""
GRAY = np.full((64, 64, 3), 0.5, np.float32)


class Page(html.parser.HTMLParser):
    """Collects elements, attributes and text of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self._stack = [], "", []
        self.feed(text)
        assert not self._stack, f"elements left open: {self._stack}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self._stack.append(tag)

    def handle_endtag(self, tag):
        assert self._stack.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def decode(source):
    head, data = source.split(",", 1)
    assert head == "data:image/jpeg;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


# tables


def example_table():
    columns = [
        report.Column("GT-known, %", best="max", percent=True),
        report.Column("error", best="min", decimals=2),
        report.Column("kind"),
    ]
    rows = [
        report.Row("CAM", [report.Measure(0.5, 0.45, 0.56), 2.0, "a|b"]),
        report.Row("Dist-CAM", [report.Measure(0.6254, 0.6, 0.6508), 1.0, None]),
        report.Row("whole image", [math.nan, 1.004, 12345], muted=True),
    ]
    return report.Table("Boxes", columns, rows, note="Intervals of 95 %.")


def test_table_texts_formats_and_marks_the_best_and_ties():
    texts = tables.table_texts(example_table())
    assert [cell.value for row in texts for cell in row] == [
        "50.0", "2.00", "a|b", "62.5", "1.00", "—", "—", "1.00", "12,345",
    ]  # fmt: skip
    assert [[cell.best for cell in row] for row in texts] == [
        [False, False, False],
        [True, True, False],
        [False, True, False],
    ]
    assert texts[0][0].interval == "[45.0, 56.0]"
    assert texts[1][0].interval == "± 2.5"


def test_table_texts_marks_nothing_without_a_rival():
    table = report.Table("", [report.Column("a", best="max")], [report.Row("x", [1.0]), report.Row("y", [None])])
    assert not any(cell.best for row in tables.table_texts(table) for cell in row)


def test_format_table_aligns_figures():
    lines = report.format_table(example_table()).splitlines()
    assert lines[0] == "Boxes"
    assert lines[-1] == "Intervals of 95 %."
    points = {line.index(value) + value.index(".") for line, value in zip(lines[3:5], ["50.0", "62.5*"], strict=True)}
    assert len(points) == 1
    assert {
        line.index(value) for line, value in zip(lines[3:], ["2.00", "1.00*", "1.00*"], strict=False)
    }.__len__() == 1
    assert all(line == line.rstrip() for line in lines)


def test_format_table_markdown_has_the_same_figures_and_escapes_bars():
    text = report.format_table(example_table(), markdown=True)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert r"a\|b" in text
    assert "**62.5** ± 2.5" in text
    assert "**50.0**" not in text


def test_format_table_keeps_control_characters_from_the_terminal():
    table = report.Table("\x1b[31mred", [report.Column("a\nb")], [report.Row("x\ty", ["\x07"])])
    assert all(letter.isprintable() for line in report.format_table(table).split("\n") for letter in line)
    assert len(report.format_table(table).splitlines()) == 4


def test_table_refuses_ragged_rows_and_column_an_unknown_best():
    with pytest.raises(ValueError, match="row 'x' has 2 cells for 1 columns"):
        report.Table("", [report.Column("a")], [report.Row("x", [1.0, 2.0])])
    with pytest.raises(ValueError, match="best must be"):
        report.Column("a", best="most")


@pytest.mark.parametrize(("successes", "total"), [(0, 5), (5, 5), (3, 10), (999, 1000)])
def test_wilson_interval_ends_solve_the_score_equation(successes, total):
    measure = report.wilson_interval(successes, total)
    share = successes / total
    assert 0 <= measure.low <= share <= measure.high <= 1
    assert measure.high > measure.low
    for end in (measure.low, measure.high):  # |share − p| = z √(p (1 − p) / n) at both ends
        np.testing.assert_allclose((share - end) ** 2, 1.96**2 * end * (1 - end) / total, atol=1e-12)


def test_wilson_interval_of_nothing_is_missing_and_bad_counts_raise():
    assert math.isnan(report.wilson_interval(0, 0).value)
    with pytest.raises(ValueError, match="successes"):
        report.wilson_interval(3, 2)


# the page


def example_report():
    case = report.Case(
        image=GRAY,
        panels=[
            report.Panel("CAM", -np.eye(7), box=np.zeros(4)),
            report.Panel("Dist-CAM", np.eye(7), box=np.array([8, 8, 40, 40]), iou=0.375),
            report.Panel("Neighbour", np.eye(7), image=np.zeros((32, 48, 3), np.uint8)),
        ],
        file_name=NASTY,
        predicted_class=NASTY,
        true_class="cat",
        distance=9.0,
        true_boxes=np.array([[16, 16, 48, 48]]),
        note=NASTY,
    )
    row = report.ComparisonRow(GRAY, np.stack([np.eye(7), 4 * np.eye(7)]), np.array([3.0, 2.0]), NASTY, NASTY)
    return report.Report(
        title=NASTY,
        subtitle=NASTY,
        tables=[example_table(), report.Table(NASTY, [report.Column(NASTY)], [report.Row(NASTY, [NASTY])], NASTY)],
        settings={NASTY: NASTY, "eps": 0.1},
        comparisons=[report.Comparison(NASTY, NASTY, ["cat", NASTY], [row])],
        sections=[report.Section(NASTY, NASTY, [case]), report.Section("Empty", "", [])],
    )


def test_render_report_escapes_every_name():
    text = report.render_report(example_report())
    parsed = Page(text)
    assert not parsed.all("script")
    assert "<script" not in text
    assert parsed.text.count(NASTY) >= 18
    assert any(NASTY in image["alt"] for image in parsed.all("img"))


def test_render_report_loads_nothing_from_elsewhere():
    text = report.render_report(example_report())
    parsed = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    for _, attributes in parsed.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    policy = next(
        meta["content"] for meta in parsed.all("meta") if "content" in meta and "default-src" in meta["content"]
    )
    assert "default-src 'none'" in policy


def test_render_report_has_every_picture_with_its_size_and_alt_text():
    images = Page(report.render_report(example_report())).all("img")
    assert len(images) == 3 + 4  # comparison: input and two classes; case: input and three panels
    assert len({image["alt"] for image in images}) == 6  # the two inputs are one and the same image
    for image in images:
        assert decode(image["src"]).shape == (int(image["height"]), int(image["width"]), 3)


def test_render_report_links_lead_to_sections():
    parsed = Page(report.render_report(example_report()))
    names = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    links = [link["href"][1:] for link in parsed.all("a")]
    assert sorted(names) == sorted(links) == ["comparison", "results", "section-1", "settings", "top"]


def test_render_report_draws_both_boxes_in_their_colors():
    images = Page(report.render_report(example_report())).all("img")
    picture = decode(images[5]["src"]).astype(int)  # Dist-CAM; 64 pixels are shown on 320
    for (x, y), color in {(42, 100): overlays.DERIVED_BOX_COLOR, (82, 120): overlays.TRUE_BOX_COLOR}.items():
        assert np.abs(picture[y, x] - color).max() < 60
    entry = decode(images[3]["src"]).astype(int)
    assert np.abs(entry[120, 82] - 255).max() < 40
    assert np.abs(entry[100, 42] - 128).max() < 20


def test_render_report_marks_the_nearest_class_and_the_empty_map():
    text = report.render_report(example_report())
    cells = re.findall(r'<td( class="nearest")?><img[^>]*>\s*<span class="under">([\d.]+)', text)
    assert cells == [("", "3.00"), (' class="nearest"', "2.00")]
    assert "no positive value" in text
    assert "IoU 0.38" in text or "IoU 0.37" in text


def test_render_report_comparison_shares_the_scale_of_a_row():
    images = Page(report.render_report(example_report())).all("img")
    weak, strong = (decode(images[index]["src"]).astype(int) for index in (1, 2))
    assert strong[0, 0, 0] > strong[0, 0, 2] + 50  # red: 4 of 4
    assert weak[0, 0, 2] > weak[0, 0, 0] + 50  # still blue: 1 of 4


def test_render_report_without_anything_is_a_page():
    parsed = Page(report.render_report(report.Report("Empty")))
    assert not parsed.all("img")
    assert not parsed.all("section")


@pytest.mark.parametrize(
    ("true", "predicted", "correct"), [("a", "a", True), ("a", "b", False), (None, "a", None), ("a", None, None)]
)
def test_case_correct_compares_the_classes(true, predicted, correct):
    assert report.Case(GRAY, true_class=true, predicted_class=predicted).correct is correct


def test_comparison_refuses_a_wrong_number_of_maps():
    with pytest.raises(ValueError, match="2 heatmaps and 1 distances"):
        report.ComparisonRow(GRAY, [np.eye(2), np.eye(2)], [1.0])
    with pytest.raises(ValueError, match="1 heatmaps for 2 classes"):
        report.Comparison("", "", ["a", "b"], [report.ComparisonRow(GRAY, [np.eye(2)], [1.0])])


def test_save_report_failure_keeps_the_old_page(tmp_path, monkeypatch):
    path = report.save_report(report.Report("old"), tmp_path / "deep" / "report.html")
    before = path.read_text()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match=r"cannot write .*report.html: No space left"):
        report.save_report(report.Report("new"), path)
    assert path.read_text() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_save_report_names_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "report.html", tmp_path):
        with pytest.raises(OSError, match=f"cannot write {re.escape(str(path))}"):
            report.save_report(report.Report("x"), path)


# the picture strip


def test_save_figure_writes_a_picture_with_a_row_a_case(tmp_path):
    case = example_report().sections[0].cases[0]
    sizes = []
    for count in (1, 2):
        path = report.save_figure([case] * count, tmp_path / "new" / f"{count}.png", dpi=50)
        picture = cv2.imread(str(path))
        sizes.append(picture.shape[:2])
        assert np.ptp(picture) > 200
    assert sizes[1][1] == sizes[0][1]
    assert sizes[1][0] - sizes[0][0] == pytest.approx(50 * (2.0 + 0.26 + 0.1), abs=2)


def test_save_figure_shows_names_literally(tmp_path):
    case = report.Case(GRAY, [report.Panel("$\\broken", np.eye(2))], predicted_class="$\\frac{1}$")
    assert report.save_figure([case], tmp_path / "strip.png", dpi=40).exists()


def test_save_figure_refuses_no_cases_and_different_panels(tmp_path):
    with pytest.raises(ValueError, match="cases must not be empty"):
        report.save_figure([], tmp_path / "strip.png")
    cases = [report.Case(GRAY, [report.Panel(name)]) for name in "ab"]
    with pytest.raises(ValueError, match=r"same titles: got \['a'\], and \['b'\] at index 1"):
        report.save_figure(cases, tmp_path / "strip.png")
    assert not list(tmp_path.iterdir())


def test_distance_text_has_three_significant_digits():
    values = {9.0: "9.00", 12.345: "12.3", 0.01234: "0.0123", 123.4: "123", math.nan: "nan", math.inf: "inf"}
    assert {value: page.distance_text(value) for value in values} == values
