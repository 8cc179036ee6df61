"""Few-shot episodes in the report: their data, the page, and the picture strip."""

import base64
import dataclasses
import html.parser
import re

import cv2
import numpy as np
import pytest

from distcam_jax import report
from distcam_jax.report import episode_view, overlays

NASTY = "<script>alert('x')</script> & \"q\""
GRAY = np.full((84, 84, 3), 0.5, np.float32)
METHODS = ("Dist-CAM", NASTY)
MAPS = np.stack([scale * np.eye(5) for scale in (1.0, 4.0, 2.0)])  # hot in the upper left corner


def make_query(scores, predicted, true, **changes):
    fields = {"image": GRAY, "heatmaps": dict.fromkeys(METHODS, MAPS), "file_name": f"{NASTY}.jpg"} | changes
    return report.EpisodeQuery(scores=scores, predicted=predicted, true=true, **fields)


def make_queries():
    """Four queries whose order on the page is 2, 1, 3, 0: two wrong ones, then two right ones."""
    return [
        make_query([1.0, 9.0, 8.0], 0, 0),  # right, 7 nearer than any other
        make_query([5.0, 5.5, 9.0], 0, 2),  # wrong by 4: the class 0.5 away is not the true one
        make_query([7.0, 6.0, 5.0], 2, 1),  # wrong by 1
        make_query([3.0, 2.0, 9.0], 1, 1),  # right by 1
    ]


def make_episode(**changes):
    fields = {
        "title": f"Episode {NASTY}",
        "text": NASTY,
        "class_names": ["cat", NASTY, "dog"],
        "supports": [[GRAY], [GRAY, GRAY], [GRAY]],
        "queries": make_queries(),
        "score_name": NASTY,
        "support_heatmaps": {METHODS[0]: [[np.eye(5)], [np.eye(5), -np.eye(5)], [np.eye(5)]]},
    }
    return report.Episode(**(fields | changes))


class Page(html.parser.HTMLParser):
    """Collects the elements of a page, each with the classes of the elements around it, and the text."""

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


def render(**changes):
    return report.render_report(report.Report("Few shots", episodes=[make_episode(**changes)]))


def decode(source):
    head, data = source.split(",", 1)
    assert head == "data:image/webp;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


# the data


def test_episode_order_is_failures_first_then_the_narrowest():
    episode = make_episode()
    assert [query.gap for query in episode.queries] == [7.0, 4.0, 1.0, 1.0]
    assert episode.order == [2, 1, 3, 0]
    assert (episode.wrong, episode.total) == (2, 4)


def test_episode_order_is_the_same_for_scores_of_which_the_largest_wins():
    negative = [dataclasses.replace(query, scores=-np.asarray(query.scores)) for query in make_queries()]
    assert make_episode(queries=negative).order == make_episode().order


def test_episode_order_keeps_equal_queries_as_given():
    assert make_episode(queries=[make_query([1.0, 2.0, 3.0], 0, 0)] * 3).order == [0, 1, 2]


def test_episode_counts_are_those_of_all_queries_where_some_are_given():
    episode = make_episode(counts=(12, 75))
    assert (episode.wrong, episode.total) == (12, 75)
    assert "12 of 75 wrong" in Page(render(counts=(12, 75))).text


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((84, 84))}, r"image must be \[h, w, 3\] and not empty, got shape \(84, 84\)"),
        ({"scores": []}, r"scores must be \[ways\] and not empty"),
        ({"scores": [[1.0, 2.0, 3.0]]}, r"scores must be \[ways\] .*\(1, 3\)"),
        ({"scores": [1.0, np.nan, 3.0]}, r"scores must be finite, got \[1.0, nan, 3.0\]"),
        ({"scores": [1.0, 2.0]}, r"heatmaps\['Dist-CAM'\] must be one a class: got 3 for 2 scores"),
        ({"predicted": 3}, "predicted must be a position of the 3 scores, got 3"),
        ({"predicted": -1}, "predicted must be a position of the 3 scores, got -1"),
        ({"true": "cat"}, "true must be a position of the 3 scores, got 'cat'"),
        ({"heatmaps": {}}, "heatmaps must hold the maps of at least one method"),
        ({"heatmaps": {"CAM": np.ones((3, 25))}}, r"heatmaps\['CAM'\] must be maps \[h, w\] .*\(25,\)"),
    ],
)
def test_episode_query_names_the_bad_field(changes, message):
    fields = {"image": GRAY, "heatmaps": {"Dist-CAM": MAPS}, "scores": [1.0, 2.0, 3.0], "predicted": 0, "true": 1}
    with pytest.raises(ValueError, match=message):
        report.EpisodeQuery(**(fields | changes))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": "cat"}, "class_names must be at least one name, got 'cat'"),
        ({"class_names": ["cat", "dog"]}, "supports must be one list of images a class: got 3 for 2"),
        ({"supports": [[GRAY], [], [GRAY]]}, "supports of class .* must be at least one image"),
        ({"supports": [[GRAY], [GRAY[0]], [GRAY]]}, r"supports of class .* must be \[h, w, 3\]"),
        ({"queries": []}, "queries must not be empty"),
        (
            {"queries": [make_query([1.0, 2.0], 0, 0, heatmaps={"CAM": MAPS[:2]})]},
            r"queries\[0\] must have one score a class: got 2 for 3",
        ),
        (
            {"queries": [make_query([1.0, 2.0, 3.0], 0, 0, heatmaps={name: MAPS}) for name in "ab"]},
            r"queries must have maps of the same methods: got \['a'\], and \['b'\] at index 1",
        ),
        ({"support_heatmaps": {"a": [[np.eye(5)]] * 3}}, r"\['a'\] must be one map a support image: got \[1, 1, 1\]"),
        ({"support_heatmaps": {"a": [[np.ones(5)], [np.ones(5)] * 2, [np.ones(5)]]}}, r"\['a'\] must be maps \[h, w\]"),
        ({"score_name": ""}, "score_name must not be empty"),
        ({"max_queries": 0}, "max_queries must be at least 1, got 0"),
        ({"counts": (1, 75)}, r"counts must be the wrong and all .*got \(1, 75\) for 4 queries, 2 of them wrong"),
        ({"counts": (3, 4)}, r"counts must be the wrong and all .*got \(3, 4\)"),
    ],
)
def test_episode_names_the_bad_field(changes, message):
    with pytest.raises(ValueError, match=message):
        make_episode(**changes)


# drawing


@pytest.mark.parametrize(
    ("scores", "texts"),
    [
        ([12.34, 9.81, 10.0], ["12.3", "9.8", "10.0"]),
        ([0.5, -0.25, -0.0004], ["0.500", "-0.250", "0.000"]),
        ([12.341, 12.342], ["12.341", "12.342"]),  # different scores must not read alike
        ([2.0, 2.0], ["2.00", "2.00"]),
        ([1.0, 1.0 + 1e-12], ["1.00000", "1.00000"]),  # but three digits more are enough
        ([0.0, 0.0], ["0", "0"]),
        ([123456.0, 2.0], ["123456", "2"]),
    ],
)
def test_score_texts_have_three_digits_or_as_many_as_tell_scores_apart(scores, texts):
    assert episode_view.score_texts(scores) == texts


def test_query_pictures_share_a_scale_only_where_asked():
    table = overlays.color_table()
    query = make_query([1.0, 2.0, 3.0], 0, 0, heatmaps={"a": MAPS})
    for shared, wanted in ((True, [64, 255, 128]), (False, [255, 255, 255])):
        episode = make_episode(queries=[query], shared_scale=shared)
        pictures = episode_view.query_pictures(episode, query, "a", alpha=1.0)
        assert [picture.shape for picture in pictures] == [(168, 168, 3)] * 3
        np.testing.assert_array_equal([picture[0, 0] for picture in pictures], table[wanted])


def test_support_pictures_are_smaller_where_a_class_has_several():
    pictures = episode_view.support_pictures(make_episode())
    assert [[len(picture) for picture in of_class] for of_class in pictures] == [[168], [112, 112], [168]]


# the page


def test_render_report_shows_wrong_queries_first():
    text = render(queries=[dataclasses.replace(query, file_name=f"q{i}") for i, query in enumerate(make_queries())])
    assert re.findall(r'<span class="file">(q\d)</span>', text) == ["q2", "q1", "q3", "q0"]
    assert "2 of 4 wrong" in Page(text).text


def test_render_report_shows_no_more_queries_than_asked_and_counts_all():
    parsed = Page(render(max_queries=1))
    assert len([name for name in parsed.all("tbody") if name.get("class") != "supports"]) == 1
    assert "2 of 4 wrong" in parsed.text
    assert "1 of 4 queries" in parsed.text


def test_render_report_marks_chosen_and_true_in_words_and_frames():
    text = render(queries=make_queries()[2:])
    body = text[text.index("<tbody>") :]
    rows = [re.findall(r'<td(?: class="(\w+)")?>', row) for row in body.split("<tr>")[1:]]
    assert rows == [["", "missed", "wrong"], ["", "missed", "wrong"], ["", "right", ""], ["", "right", ""]]
    under = [re.sub(r"<[^>]+>", "", span).split() for span in re.findall(r'<span class="under">(.*?)\n', body)]
    assert under == [
        ["7.00"], ["6.00", "○", "true"], ["5.00", "✗", "chosen"], ["3.00"], ["2.00", "✓", "chosen"], ["9.00"],
    ]  # fmt: skip


def test_render_report_says_where_a_map_has_no_positive_value():
    query = make_query([1.0, 2.0, 3.0], 0, 0, heatmaps={"a": MAPS, "b": -MAPS})
    assert Page(render(queries=[query])).text.count("no positive value") == 3


def test_render_report_escapes_every_name_of_an_episode():
    text = render()
    parsed = Page(text)
    assert "<script" not in text
    # heading, text, numbers and column; in each query its file and a method; the true class of two
    assert parsed.text.count(NASTY) == 4 + 4 * 2 + 2
    assert all(NASTY in image["alt"] for image in parsed.all("img") if "support" not in image["alt"].lower())


def test_render_report_of_episodes_loads_nothing_from_elsewhere():
    text = render()
    parsed = Page(text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not parsed.all("script")
    for _, attributes in parsed.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))


def test_render_report_of_episodes_can_be_read_without_seeing_it():
    parsed = Page(render())
    images = parsed.all("img")
    # supports: 4 images and 4 maps; a query: itself, and a map a class by two methods
    assert len(images) == 8 + 4 * (1 + 6)
    for image in images:
        assert image["alt"]
        assert image["loading"] == "lazy"
        assert decode(image["src"]).shape == (int(image["height"]), int(image["width"]), 3)
    alts = [image["alt"] for image in images]
    assert sum(alt.endswith(", chosen and wrong") for alt in alts) == 2 * 2
    assert sum(alt.endswith(", chosen and right") for alt in alts) == 2 * 2
    assert sum(alt.endswith(", true but not chosen") for alt in alts) == 2 * 2
    scopes = [head["scope"] for head in parsed.all("th")]
    assert {scope: scopes.count(scope) for scope in set(scopes)} == {"col": 5, "rowgroup": 5, "row": 2 + 4 * 2}


def test_render_report_links_lead_to_episodes():
    parsed = Page(report.render_report(report.Report("Few shots", episodes=[make_episode()] * 2)))
    names = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert sorted(names) == sorted(link["href"][1:] for link in parsed.all("a"))
    assert {"episodes", "episode-1", "episode-2"} < set(names)


def test_render_report_without_episodes_has_nothing_of_them():
    text = report.render_report(report.Report("Empty"))
    assert "pisode" not in text


def test_render_report_pictures_of_an_episode_are_light():
    image = np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)  # noise: no photograph is as heavy
    image = cv2.GaussianBlur(image, (0, 0), 1)
    episode = make_episode(queries=[make_query([1.0, 2.0, 3.0], 0, 0, image=image)])
    sizes = [
        len(cell["source"]) for row in episode_view.episode_view(episode)["queries"][0]["rows"] for cell in row["cells"]
    ]
    assert max(sizes) < 8000  # 3,000 of them must stay under 30 MB


# the picture strip

DPI = 100


def strip(tmp_path, episode, **options):
    path = report.save_episode_figure(episode, tmp_path / "new" / "strip.png", method="Dist-CAM", dpi=DPI, **options)
    return cv2.imread(str(path))[..., ::-1].astype(int)


def share_of(line, color):
    """Returns the share of a line's pixels `[n, 3]` that have a colour such as "#0b7a4b"."""
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return float((np.abs(line - wanted).max(axis=-1) < 12).mean())


def test_save_episode_figure_grows_by_a_row_a_query_and_a_column_a_class(tmp_path):
    episode = make_episode()
    one, two = (strip(tmp_path, episode, queries=count).shape for count in (1, 2))
    assert one[1] == two[1] == pytest.approx(DPI * (1.45 + 4 * (1.35 + 0.14) + 0.75), abs=2)
    assert two[0] - one[0] == pytest.approx(DPI * (1.35 + 0.3 + 0.14), abs=2)
    plain = strip(tmp_path, dataclasses.replace(episode, support_heatmaps=None), queries=1).shape
    assert one[0] - plain[0] == pytest.approx(DPI * (1.35 + 0.14), abs=2)


def test_save_episode_figure_frames_the_chosen_and_the_true_class(tmp_path):
    picture = strip(tmp_path, make_episode(support_heatmaps=None), queries=[2, 3])
    top = 0.4 + 1.35 + 0.14 + 0.36
    shares = []
    for query in range(2):
        rows = slice(round((top + query * 1.79 + 0.1) * DPI), round((top + query * 1.79 + 1.3) * DPI))
        for way in range(3):
            line = picture[rows, round((1.45 + (1 + way) * 1.49 - 0.05) * DPI)]
            shares.append([share_of(line, "#0b7a4b"), share_of(line, "#b3261e")])
    green, red = np.transpose(shares)
    assert green[[0, 2, 3, 5]].tolist() == [0, 0, 0, 0]
    assert 0.4 < green[1] < 0.95  # dashed
    assert green[4] == 1
    assert red.tolist() == [0, 0, 1, 0, 0, 0]


def test_save_episode_figure_draws_the_maps_over_the_queries(tmp_path):
    picture = strip(tmp_path, make_episode(support_heatmaps=None), queries=[0], alpha=1.0)
    top = round((0.4 + 1.35 + 0.14 + 0.36 + 0.1) * DPI)
    table = overlays.color_table()
    for column, wanted in enumerate(
        [(128, 128, 128), table[64], table[255], table[128]]
    ):  # input, then 1, 4 and 2 of 4
        left = round((1.45 + column * 1.49 + 0.05) * DPI)
        assert np.abs(picture[top, left] - np.asarray(wanted)).max() < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "CAM"}, "method 'CAM' is unknown; valid are Dist-CAM, "),
        ({"queries": 0}, "queries: want a positive integer, got 0"),
        ({"queries": []}, r"queries must be a number, or positions of the 4 queries, got \[\]"),
        ({"queries": [4]}, r"queries must be a number, or positions of the 4 queries, got \[4\]"),
    ],
)
def test_save_episode_figure_names_the_bad_argument(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        report.save_episode_figure(make_episode(), tmp_path / "strip.png", **({"method": "Dist-CAM"} | options))
    assert not list(tmp_path.iterdir())


def test_save_episode_figure_shows_names_literally(tmp_path):
    episode = make_episode(class_names=["$\\frac{1}$", "$\\broken", "a" * 60], support_heatmaps=None)
    assert strip(tmp_path, episode, queries=1).size
