"""From what the ablations measured to their figures, by hand."""

import dataclasses

import numpy as np
import pytest

from configs.ablations import get_config
from distcam_jax.evaluators.ablation_pass import Scores
from distcam_jax.evaluators.ablation_rows import Ablation, Line, make_ablations
from distcam_jax.evaluators.ablation_tables import Measured, Resamples, summarize
from distcam_jax.evaluators.localize import THRESHOLDS, threshold_index
from distcam_jax.statistics import bootstrap_interval, paired_bootstrap_interval


def test_resamples_are_those_of_bootstrap_interval():
    values, other = np.random.default_rng(0).random((2, 40))
    resamples = Resamples(40, seed=3, resamples=200)
    for got, want in (
        (resamples.figure(values), bootstrap_interval(values, seed=3, resamples=200)),
        (resamples.figure(values - other), paired_bootstrap_interval(values, other, seed=3, resamples=200)),
    ):
        np.testing.assert_allclose((got["low"], got["high"]), want, rtol=1e-12)
    assert resamples.figure(values)["value"] == pytest.approx(values.mean())


def hits_at(default, tuned_at, tuned):
    """Hits of four images at the protocol's threshold and at another one."""
    hits = np.zeros((4, len(THRESHOLDS)), bool)
    hits[:, threshold_index(0.2)], hits[:, threshold_index(tuned_at)] = default, tuned
    return hits


def measured_by_hand():
    """Two networks; "a" is best at 0.5 in the first and at 0.3 in the second."""
    index, right = np.arange(4), {"a": np.array([1, 1, 0, 1], bool), "b": np.array([0, 1, 0, 0], bool)}

    def scores(a, b):
        return Scores(index, {"a": a, "b": b}, right)

    return {
        "first": Measured(
            scores(hits_at([1, 0, 0, 0], 0.5, [1, 1, 1, 0]), hits_at([1, 1, 1, 1], 0.5, [0, 0, 0, 0])),
            scores(hits_at([1, 1, 0, 0], 0.5, [1, 1, 1, 1]), hits_at([0, 1, 1, 0], 0.5, [0, 0, 0, 0])),
        ),
        "second": Measured(
            scores(hits_at([1, 0, 0, 0], 0.3, [1, 1, 0, 0]), hits_at([0, 0, 0, 0], 0.3, [1, 0, 0, 0])),
            scores(hits_at([1, 0, 0, 0], 0.3, [1, 0, 1, 0]), hits_at([0, 0, 0, 0], 0.3, [1, 1, 0, 0])),
        ),
    }


def test_summarize_gives_the_figures_counted_by_hand():
    both = ("first", "second")
    lines = (
        Line("mean", both, ("a",)),
        Line("one", ("first",), ("b",), (("first",), ("a",))),
        Line("draws", ("first",), ("a", "b"), (both, ("a",))),
    )
    tables = {"x": Ablation("X", lines, decides=True)}
    mean, one, draws = summarize(tables, measured_by_hand(), seed=0, resamples=20)["x"]["rows"]
    assert mean["thresholds"] == [0.5, 0.3]  # each network its own
    assert mean["default"]["gt_known"]["value"] == 3 / 8
    assert mean["tuned"]["gt_known"]["value"] == 6 / 8
    assert mean["tuned"]["gt_known"]["spread"] == pytest.approx(np.std([1.0, 0.5], ddof=1))
    assert mean["tuned"]["gt_known_difference"] is None
    assert mean["default"]["top1_error"]["value"] == 1 - 3 / 8  # both right images have their class
    assert mean["tuned"]["top1_error"]["value"] == 1 - 4 / 8  # image 2 has its class wrong in both
    assert one["thresholds"] == [0.2]
    assert one["default"]["gt_known_difference"]["value"] == 0
    assert one["tuned"]["gt_known_difference"]["value"] == -0.5
    assert one["tuned"]["gt_known"]["spread"] is None
    assert one["class_right"]["value"] == 0.25
    # of a and b together, 0.2 is right 5 times of 8 and 0.5 is 3 times
    assert draws["thresholds"] == [0.2]
    assert draws["tuned"]["gt_known"]["value"] == 4 / 8
    assert draws["tuned"]["gt_known_difference"]["value"] == pytest.approx(4 / 8 - 6 / 8)
    assert draws["class_right"]["value"] == 0.5


def test_summarize_differences_are_paired():
    lines = (Line("same", ("first",), ("a",), (("first",), ("a",))),)
    (row,) = summarize({"x": Ablation("X", lines)}, measured_by_hand(), seed=0, resamples=20)["x"]["rows"]
    assert row["tuned"]["gt_known_difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_summarize_refuses_networks_measured_on_different_images():
    measured = measured_by_hand()
    other = dataclasses.replace(measured["second"].eval, index=np.arange(1, 5))
    measured["second"] = dataclasses.replace(measured["second"], eval=other)
    with pytest.raises(ValueError, match="different images"):
        summarize({}, measured, seed=0, resamples=2)


def test_make_ablations_has_every_table_once_all_networks_are_there():
    config = get_config()
    views = [name for name in config.networks if name not in config.pre_pool]
    views += [f"{name}, {place}" for name in config.pre_pool for place in ("relu", "norm")]
    tables = make_ablations(config, views)
    names = ["seeds", "norm", "eps", "scaling", "asked", "samples", "distance", "last_stride", "pre_pool"]
    assert list(tables) == names
    for table in tables.values():
        keys = {key for line in table.lines for key in line.keys}
        assert {"uniform", "center_box", "whole_image", "wrong"} <= keys
    mean = next(line for line in tables["seeds"].lines if line.label.startswith("Dist-CAM · mean of 3 metric"))
    assert mean.views == ("metric_0", "metric_1", "metric_2")
    stride = {(line.views, line.keys): line.base for line in tables["last_stride"].lines}
    assert stride[("metric_0_stride2",), ("dist_cam",)] == (("metric_0",), ("dist_cam",))
    before = {(line.views, line.keys): line.base for line in tables["pre_pool"].lines}
    assert before[("densenet_metric_0, norm",), ("dist_cam",)] == (("densenet_metric_0, relu",), ("dist_cam",))


def test_make_ablations_leaves_out_rows_of_missing_networks():
    tables = make_ablations(get_config(), ["metric_0", "softmax_0", "metric_0_stride2"])
    assert "pre_pool" not in tables
    views = {view for table in tables.values() for line in table.lines for view in line.views}
    assert views == {"metric_0", "softmax_0", "metric_0_stride2"}
    assert {line.views for line in tables["last_stride"].lines} == {("metric_0",), ("metric_0_stride2",)}
