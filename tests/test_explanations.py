"""What the study of explanations makes of what was measured, by hand."""

import types

import cv2
import ml_collections
import numpy as np
import pytest
from jax import numpy as jnp

from configs import explanations as study_config
from distcam_jax.evaluators import explanation_figures as figures
from distcam_jax.evaluators import explanations as study
from distcam_jax.evaluators.localize import THRESHOLDS, Localization, localize_source, scaled_name
from distcam_jax.evaluators.pieces import Pieces
from distcam_jax.report import format_table
from tests.patch_network import SIZE, PatchNetwork, make_data, make_prototypes

BOOTSTRAP = {"seed": 0, "resamples": 200}
REST = {"intervals": "95 %", "config": {"evaluate": {"randomized_samples": 7}}}


def rows_of(right, pointing, *, asks=True):
    """What was found by one method whose boxes from the minimum are all right."""
    images, pairs = len(right), len(pointing)
    return {
        "title": "some method",
        "asks": asks,
        "threshold": 0.2,
        "threshold_minmax": 0.3,
        "right": right,
        "wrong": [0] * images,
        "right_minmax": [1] * images,
        "wrong_minmax": [1] * images,
        "correlation": [0.5, None],
        "pointing": pointing,
        "energy": pointing,
        "swap": [1.0] * pairs,
    }


def measured():
    softmax = {
        "cam": rows_of([1, 0, 0, 0], [0.5, 0.5]) | {"title": "CAM"},
        "best": rows_of([1, 1, 1, 0], [1.0, 0.5]) | {"title": "best"},
        "uniform": rows_of([1, 1, 0, 0], [0.5, 0.5], asks=False) | {"title": "uniform"},
    }
    metric = {"best": rows_of([1, 1, 1, 1], [1.0, 1.0]) | {"title": "best"}}
    return {
        "softmax": {
            "images": 4,
            "top1": [1, 1, 0, 0],
            "boxes": {"center_box": [1, 1, 1, 0]},
            "methods": softmax,
            "faithfulness": {"deletion": {"best": [2.0, 3.0], "random": [1.0, None], "center": [4.0, 4.0]}},
            "randomized": {
                "head": {"cam": [0.5, 0.0, None], "best": [1.0, 1.0, 1.0], "uniform": [1.0, 1.0, 1.0]},
                "stem": {"cam": [0.1, -0.3, 0.2], "best": [0.2, 0.3, 0.1], "uniform": [None, None, None]},
            },
        },
        "metric": {"images": 4, "top1": [1, 0, 0, 0], "boxes": {"center_box": [1, 1, 1, 0]}, "methods": metric},
    }


def test_summarize_gives_means_and_leaves_out_what_was_not_measured():
    networks = figures.summarize(measured(), **BOOTSTRAP)["networks"]
    best = networks["softmax"]["methods"]["best"]
    assert best["right"]["value"] == 0.75
    assert best["right_minmax"]["value"] == 1.0
    assert best["pointing"]["value"] == 0.75
    assert best["correlation"]["value"] == 0.5  # of the one that is known
    assert best["deletion"]["value"] == 2.5
    assert "deletion" not in networks["softmax"]["methods"]["cam"]
    assert "wrong" not in networks["softmax"]["methods"]["uniform"]  # it cannot be asked for a class
    assert networks["softmax"]["boxes"]["center_box"]["value"] == 0.75
    assert networks["softmax"]["nearest_prototype_top1"]["value"] == 0.5


def test_summarize_compares_with_the_cam_of_the_network_or_of_the_others():
    differences = figures.summarize(measured(), **BOOTSTRAP)["differences"]
    found = {(row["a"], row["b"]): (row["right"]["value"], row["pointing"]["value"]) for row in differences}
    assert found == {
        ("softmax: best", "softmax: CAM"): (0.5, 0.25),
        ("softmax: uniform", "softmax: CAM"): (0.25, 0.0),
        ("metric: best", "softmax: CAM"): (0.75, 0.5),
    }


def test_tables_show_both_rules_and_faithfulness_only_where_it_is_known():
    metrics = figures.summarize(measured(), **BOOTSTRAP) | REST
    softmax, _, metric, differences = (format_table(table) for table in figures.make_tables(metrics))
    assert "from the minimum" in softmax
    assert "centre box" in softmax
    assert "deletion" in softmax
    assert "of 2 images" in softmax
    assert "deletion" not in metric.split("\n\n")[0].splitlines()[1]
    assert "softmax: best − softmax: CAM" in differences


def test_tables_show_the_controls_of_faithfulness():
    metrics = figures.summarize(measured(), **BOOTSTRAP) | REST
    controls = metrics["networks"]["softmax"]["controls"]
    assert {name: found["deletion"]["value"] for name, found in controls.items()} == {"random": 1.0, "center": 4.0}
    rows = {row.name: row.cells for row in figures.make_tables(metrics)[0].rows}
    assert rows["random map"][-1].value == 1.0
    assert rows["Gaussian about the centre"][:-1] == [None] * (len(rows["random map"]) - 1)
    assert "controls" not in metrics["networks"]["metric"]


def test_table_of_random_parameters_has_methods_by_parts():
    metrics = figures.summarize(measured(), **BOOTSTRAP) | REST
    found = metrics["networks"]["softmax"]
    assert found["randomized"]["head"]["cam"]["value"] == 0.25  # of those that are known
    assert found["randomized"]["stem"]["uniform"] is None
    assert found["randomized_images"] == 3
    table = figures.make_tables(metrics)[1]
    assert [column.name for column in table.columns] == ["head", "stem"]
    assert [row.name for row in table.rows] == ["CAM", "best", "uniform"]
    assert [cell.value for cell in table.rows[0].cells] == [0.25, pytest.approx(0)]
    assert [table.rows[1].cells[0].low, table.rows[1].cells[0].high] == [1.0, 1.0]
    assert "3 images, 7 training images a class" in table.note
    assert "randomized" not in metrics["networks"]["metric"]


def test_tables_leave_out_what_was_not_asked_for():
    rows = {name: {"title": name, "asks": True} for name in ("cam", "best")}
    areas = {"deletion": {"cam": [1.0], "center": [2.0]}, "insertion": {"cam": [3.0], "center": [4.0]}}
    alone = {"images": 4, "methods": rows, "faithfulness": areas}
    metrics = figures.summarize({"a": alone, "b": {"images": 4, "methods": rows}}, **BOOTSTRAP) | REST
    assert metrics["differences"] == []
    (table,) = figures.make_tables(metrics)
    assert [column.name for column in table.columns] == ["deletion", "insertion"]
    assert "top-1" not in table.note
    assert "Chance" not in table.note


def test_no_cam_no_table_of_differences():
    metrics = figures.summarize({"metric": measured()["metric"]}, **BOOTSTRAP) | REST
    assert len(figures.make_tables(metrics)) == 1


def loop_iou(heatmap, box, threshold, scaling):
    """IoU of the box of the largest component, of a map that has the size of the picture after cv2 enlarged it."""
    large = cv2.resize(heatmap, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    large = large - large.min() if scaling == "minmax" else large
    mask = (large / large.max() >= np.float32(threshold)).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x, y, width, height, _ = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()]
    over = [min(x + width, box[2]) - max(x, box[0]), min(y + height, box[3]) - max(y, box[1])]
    inside = max(over[0], 0) * max(over[1], 0)
    return inside / (width * height + (box[2] - box[0]) * (box[3] - box[1]) - inside)


def test_localize_scales_each_map_by_both_rules():
    data, values = make_data([0, 1, 2, 3, 4, 0]), {}

    def maps(features, classes):
        low = np.round(np.asarray(features).sum(axis=-1) * 16) / 16 + 1  # sixteenths: sums of them are exact
        values.update(low=low)
        both = np.stack([low, low.max() + 1 - low], axis=1)
        return {"low": jnp.asarray(both), "high": jnp.asarray(both + 3)}

    found = localize_source(
        PatchNetwork(), make_prototypes(), data.source, maps, title="t", batch=8, scalings=("max", "minmax")
    )
    assert list(found.right_iou) == ["low", "high", "low, scaling=minmax", "high, scaling=minmax"]
    for scaling in ("max", "minmax"):
        for image, one in enumerate(found.right_iou[scaled_name("low", scaling)]):
            box = data.source[image]["boxes"][0]
            expected = [loop_iou(values["low"][image], box, threshold, scaling) for threshold in THRESHOLDS]
            np.testing.assert_allclose(one, expected, rtol=1e-5)
    assert (found.right_iou["low"] != found.right_iou["high"]).any()
    for iou in (found.right_iou, found.wrong_iou):  # what is added to a map is taken away again
        np.testing.assert_array_equal(iou["low, scaling=minmax"], iou["high, scaling=minmax"])


def test_rows_of_a_method_use_the_threshold_of_each_rule():
    low, high = (THRESHOLDS.index(value) for value in (0.2, 0.6))
    iou = np.zeros((2, len(THRESHOLDS)))
    iou[0, low], lifted = 0.5, np.zeros_like(iou)
    lifted[1, high] = 0.7
    nothing = np.zeros(2, int)
    passed = Localization(
        *(nothing, nothing, nothing, {}, nothing),
        right_iou={"m": iou, scaled_name("m", "minmax"): lifted},
        wrong_iou={"m": lifted, scaled_name("m", "minmax"): iou},
        box_iou={},
    )
    tuned = {"m": 0.2, scaled_name("m", "minmax"): 0.6}
    rows = study._box_rows("m", passed, tuned)
    assert rows == {
        "threshold": 0.2,
        "right": [1, 0],
        "wrong": [0, 0],
        "threshold_minmax": 0.6,
        "right_minmax": [0, 1],
        "wrong_minmax": [0, 0],
    }


def test_rows_of_pairs_are_means_of_both_questions(without_type_checks):
    halves = {"m": np.array([[1.0, 0.0], [1.0, 1.0]])}
    pointed = types.SimpleNamespace(
        correlation={"m": np.array([0.25, np.nan])}, pointing=halves, energy=halves, swap={"m": np.array([1.0, 0.5])}
    )
    rows = study._pair_rows("m", pointed)
    assert rows["pointing"] == [0.5, 1.0]
    assert rows["swap"] == [1.0, 0.5]
    assert rows["correlation"] == [0.25, None]


def test_study_methods_take_options_and_leave_out_cam_without_a_linear_layer(without_type_checks):
    options = ml_collections.ConfigDict(
        {"methods": ("cam", "uniform"), "norm": "sum", "eps": 0.1, "margins": ({"name": "w", "evidence": "whitened"},)}
    )
    chosen = study.study_methods(options, types.SimpleNamespace(class_weights=None))
    assert list(chosen) == ["uniform", "w"]
    assert chosen["w"].needs == ("whitening",)


def test_class_rows_select_by_name_and_name_what_is_unknown(without_type_checks):
    data = types.SimpleNamespace(
        name="some data", class_ids=("a", "b", "c"), source=[{"label": label} for label in (2, 0, 1, 2)]
    )
    assert study.class_rows(data, ["c", "a"]).tolist() == [0, 1, 3]
    assert study.class_rows(data, []).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"config.classes: some data has no class 'zebra'"):
        study.class_rows(data, ["zebra"])


def test_the_classes_of_choosing_and_of_reporting_differ():
    assert not set(study_config.VAL16) & set(study_config.NOVEL20)
    with pytest.raises(ValueError, match="got 'guess', want choose, report, sanity or demo"):
        study_config.get_config("guess")


def test_the_sanity_check_measures_neither_boxes_nor_pairs():
    config = study_config.get_config("sanity")
    options = config.evaluate
    assert (options.localize, options.pairs, options.faithful_images, options.randomized_images) == (False, 0, 200, 200)
    assert config.networks == ("softmax_0", "metric_0")
    for argument in ("choose", "report", "sanity"):
        study.check_options(study_config.get_config(argument).evaluate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": -1}, "config.evaluate.pairs must be 0 or more, got -1"),
        ({"randomized_images": 5, "randomized_samples": 0}, "randomized_samples must be at least 1, got 0"),
        ({"randomized_images": 0, "faithful_images": 0}, "leaves nothing to measure: set localize or one of pairs"),
        ({"randomized_images": None}, "has no key evaluate.randomized_images; it was made for another version"),
        ({"whitening_ridge": 0.0}, r"config.evaluate.whitening_ridge must be positive, got 0\.0"),
    ],
    ids=str,
)
def test_check_options_names_the_key(changes, message):
    values = study_config.get_config("sanity").evaluate.to_dict() | changes
    options = ml_collections.ConfigDict({name: value for name, value in values.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        study.check_options(options)


def test_measured_is_kept_in_two_pieces_that_know_what_decides_them(tmp_path, monkeypatch, without_type_checks):
    calls = []

    def measuring(name):
        def measure(config, network, prototypes, data):
            calls.append(name)
            return {"head": {"cam": [0.5]}} if name == "random" else {"images": 1}

        return measure

    monkeypatch.setattr(study, "_measure", measuring("maps"))
    monkeypatch.setattr(study, "_measure_randomized", measuring("random"))
    config, state = study_config.get_config("sanity"), {"head": np.ones(2), "stem": np.ones(3)}

    def found():
        calls.clear()
        network = types.SimpleNamespace(name="n", state=state)
        return study._measure_kept(Pieces(tmp_path), config, network, None, None)

    assert found() == {"images": 1, "randomized": {"head": {"cam": [0.5]}}}
    assert calls == ["maps", "random"]
    assert found()["randomized"] == {"head": {"cam": [0.5]}}
    assert not calls
    config.evaluate.randomized_samples = 3  # of no consequence to the first piece
    found()
    assert calls == ["random"]
    config.evaluate.faithful_images = 10  # nor this to the second
    found()
    assert calls == ["maps"]
    state["head"] = np.zeros(2)  # the classifier, which CAM is made of
    found()
    assert calls == ["maps", "random"]
    config.evaluate.randomized_images = 0
    assert found() == {"images": 1}
