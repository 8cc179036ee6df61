"""What the study of explanations makes of what was measured, by hand."""

import types

import cv2
import ml_collections
import numpy as np
import pytest
from jax import numpy as jnp

from configs import explanations as study_config
from distcam_jax.evaluators import explanations as study
from distcam_jax.evaluators.localize import THRESHOLDS, localize_source, scaled_name
from distcam_jax.methods import Method
from distcam_jax.report import format_table
from tests.patch_network import SIZE, PatchNetwork, make_data, make_prototypes

BOOTSTRAP = {"seed": 0, "resamples": 200}


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
            "faithfulness": {"deletion": {"best": [2.0]}},
        },
        "metric": {"images": 4, "top1": [1, 0, 0, 0], "boxes": {"center_box": [1, 1, 1, 0]}, "methods": metric},
    }


def test_summarize_gives_means_and_leaves_out_what_was_not_measured():
    networks = study.summarize(measured(), **BOOTSTRAP)["networks"]
    best = networks["softmax"]["methods"]["best"]
    assert best["right"]["value"] == 0.75
    assert best["right_minmax"]["value"] == 1.0
    assert best["pointing"]["value"] == 0.75
    assert best["correlation"]["value"] == 0.5  # of the one that is known
    assert best["deletion"]["value"] == 2.0
    assert "deletion" not in networks["softmax"]["methods"]["cam"]
    assert "wrong" not in networks["softmax"]["methods"]["uniform"]  # it cannot be asked for a class
    assert networks["softmax"]["boxes"]["center_box"]["value"] == 0.75
    assert networks["softmax"]["nearest_prototype_top1"]["value"] == 0.5


def test_summarize_compares_with_the_cam_of_the_network_or_of_the_others():
    differences = study.summarize(measured(), **BOOTSTRAP)["differences"]
    found = {(row["a"], row["b"]): (row["right"]["value"], row["pointing"]["value"]) for row in differences}
    assert found == {
        ("softmax: best", "softmax: CAM"): (0.5, 0.25),
        ("softmax: uniform", "softmax: CAM"): (0.25, 0.0),
        ("metric: best", "softmax: CAM"): (0.75, 0.5),
    }


def test_tables_show_both_rules_and_faithfulness_only_where_it_is_known():
    metrics = study.summarize(measured(), **BOOTSTRAP) | {"intervals": "95 %"}
    softmax, metric, differences = (format_table(table) for table in study.make_tables(metrics))
    assert "from the minimum" in softmax
    assert "centre box" in softmax
    assert "deletion" in softmax
    assert "deletion" not in metric.split("\n\n")[0].splitlines()[1]
    assert "softmax: best − softmax: CAM" in differences


def test_no_cam_no_table_of_differences():
    metrics = study.summarize({"metric": measured()["metric"]}, **BOOTSTRAP) | {"intervals": "95 %"}
    assert len(study.make_tables(metrics)) == 1


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


def test_rows_of_a_method_use_the_threshold_of_each_rule(without_type_checks):
    low, high = (THRESHOLDS.index(value) for value in (0.2, 0.6))
    iou = np.zeros((2, len(THRESHOLDS)))
    iou[0, low], lifted = 0.5, np.zeros_like(iou)
    lifted[1, high] = 0.7
    passed = types.SimpleNamespace(
        right_iou={"m": iou, scaled_name("m", "minmax"): lifted},
        wrong_iou={"m": lifted, scaled_name("m", "minmax"): iou},
    )
    halves = {"m": np.array([[1.0, 0.0], [1.0, 1.0]])}
    pointed = types.SimpleNamespace(
        correlation={"m": np.array([0.25, np.nan])}, pointing=halves, energy=halves, swap={"m": np.array([1.0, 0.5])}
    )
    tuned = {"m": 0.2, scaled_name("m", "minmax"): 0.6}
    rows = study._method_rows("m", Method("M", None), passed, tuned, pointed)
    assert rows["right"] == [1, 0]
    assert rows["wrong"] == [0, 0]
    assert rows["right_minmax"] == [0, 1]
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
    with pytest.raises(ValueError, match="got 'guess', want choose or report"):
        study_config.get_config("guess")
