import numpy as np
import pytest

from distcam_jax.evaluators.figures import difference_figure, mean_figure
from distcam_jax.evaluators.localize import THRESHOLDS, Localization, threshold_index
from distcam_jax.evaluators.table1_figures import Measured, compare_networks, difference_parts, network_figures
from distcam_jax.evaluators.table1_hits import TOP, Hits, kept_hits, make_hits, share_figure

BOOTSTRAP = {"seed": 0, "resamples": 200}

# What images got right: classes by both decisions, and boxes of two maps at both thresholds.
SOFTMAX = {
    "softmax": [1, 1, 0, 0, 1, 0],
    "nearest": [1, 0, 1, 0, 1, 1],
    "cam": ([1, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]),
    "dist_cam": ([1, 1, 1, 0, 0, 1], [1, 1, 1, 1, 0, 1]),
}
METRIC = {"nearest": [1, 1, 0, 1, 1, 1], "dist_cam": ([0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1])}
TUNED = {"cam": 0.5, "dist_cam": 0.35}


def hits_of(given, index=range(6)):
    def bits(values):
        return np.array(values, bool)

    def boxes(name):
        values = np.zeros((len(given["nearest"]), len(THRESHOLDS)), bool)
        values[:, threshold_index(0.2)], values[:, threshold_index(TUNED[name])] = map(bits, given[name])
        return values

    maps = {name: boxes(name) for name in TUNED if name in given}
    return Hits(
        index=np.array(index),
        # Where the best class is wrong, the true one is the third of odd images, and none of the five of even ones.
        places={
            name: np.array([0 if right else 2 if row % 2 else TOP for row, right in enumerate(given[name])], np.uint8)
            for name in ("softmax", "nearest")
            if name in given
        },
        right=maps,
        wrong={name: ~values for name, values in maps.items()},
        trivial={"center_box": bits([1, 1, 0, 0, 0, 0]), "whole_image": bits([0, 0, 0, 0, 0, 1])},
        tuned={name: TUNED[name] for name in maps},
    )


# ---- figures


@pytest.mark.parametrize("paired", [False, True])
def test_share_figure_is_the_bootstrap_interval(paired):
    random = np.random.default_rng(1)
    a, b = random.random(300) < 0.3, random.random(300) < 0.6
    found = share_figure(a.astype(int) - b if paired else a, seed=0, resamples=20000)
    drawn = {"seed": 0, "resamples": 20000}
    wanted = difference_figure(a, b, **drawn) if paired else mean_figure(a, **drawn)
    assert found.value == pytest.approx(wanted.value)
    # Means of 300 images come in steps of 1/300, on which an end may fall to either side.
    np.testing.assert_allclose([found.low, found.high], [wanted.low, wanted.high], atol=1.01 / 300)
    assert found.high - found.low > 0.08


@pytest.mark.parametrize("level", [-1, 0, 1])
def test_share_figure_of_one_value_is_a_point(level):
    figure = share_figure(np.full(7, level), **BOOTSTRAP)
    assert (figure.value, figure.low, figure.high) == (level, level, level)


def test_hits_are_counted_at_the_threshold_of_each_method():
    hits = hits_of(SOFTMAX)
    assert hits.methods == ["cam", "dist_cam", "center_box", "whole_image", "wrong_prototype"]
    assert hits.boxes("cam", "default").tolist() == SOFTMAX["cam"][0]
    assert hits.boxes("cam", "tuned").tolist() == SOFTMAX["cam"][1]
    assert hits.boxes("dist_cam", "tuned").tolist() == SOFTMAX["dist_cam"][1]
    assert hits.boxes("wrong_prototype", "tuned").tolist() == [1 - one for one in SOFTMAX["dist_cam"][1]]
    assert hits.errors("cam", "default").tolist() == [0, 1, 1, 1, 1, 1]  # by the linear layer
    assert hits.errors("cam", "default", decision="nearest").tolist() == [0, 1, 0, 1, 1, 1]
    assert hits.errors("dist_cam", "default").tolist() == [0, 1, 0, 1, 1, 0]  # by the nearest prototype
    assert hits.errors("center_box", "tuned").tolist() == [0, 1, 1, 1, 1, 1]
    assert hits.errors("cam", "default", top=5).tolist() == [0, 1, 1, 0, 1, 1]  # image 3's class is the third
    assert hits.errors("cam", "default", top=2).tolist() == [0, 1, 1, 1, 1, 1]
    assert hits.errors("dist_cam", "default", top=5).tolist() == [0, 0, 0, 1, 1, 0]
    assert hits.errors("center_box", "default", top=5).tolist() == [0, 0, 1, 1, 1, 1]


def test_network_figures_hold_every_error_of_every_method():
    found = network_figures(Measured("a", 1, "", hits_of(SOFTMAX)), **BOOTSTRAP)
    assert set(found["methods"]) == {"cam", "dist_cam", "center_box", "whole_image", "wrong_prototype"}

    def sixths(figures):
        return {name: round(6 * figure["value"], 9) for name, figure in figures.items() if isinstance(figure, dict)}

    assert sixths(found["classification_error"]) == {"softmax": 3, "nearest": 2}
    assert sixths(found["top5_classification_error"]) == {"softmax": 1, "nearest": 0}
    by_hand = {
        ("cam", "default"): {"top1_error": 5, "top5_error": 4, "gt_known": 3},
        ("cam", "tuned"): {"top1_error": 4, "top5_error": 4, "gt_known": 3},
        ("dist_cam", "default"): {"top1_error": 3, "top5_error": 2, "gt_known": 4},
        ("dist_cam", "tuned"): {"top1_error": 3, "top5_error": 1, "gt_known": 5},
        ("center_box", "default"): {"top1_error": 5, "top5_error": 4, "gt_known": 2},
        ("whole_image", "default"): {"top1_error": 5, "top5_error": 5, "gt_known": 1},
        ("wrong_prototype", "default"): {"top1_error": 5, "top5_error": 4, "gt_known": 2},
    }
    for (method, at), wanted in by_hand.items():
        assert sixths(found["methods"][method][at]) == wanted, (method, at)
    assert [found["methods"]["cam"][at]["threshold"] for at in ("default", "tuned")] == [0.2, 0.5]
    assert "threshold" not in found["methods"]["center_box"]["tuned"]


def test_make_hits_are_those_counted_by_hand_in_the_order_of_the_source():
    ious = np.zeros((3, len(THRESHOLDS)))
    ious[:, threshold_index(0.2)], ious[:, threshold_index(0.4)] = [0.5, 0.49, 0.9], [0.1, 0.8, 0.2]
    measured = Localization(
        labels=np.array([4, 2, 1]),
        index=np.array([5, 2, 9]),
        wrong=np.array([1, 1, 1]),
        decisions={"nearest": np.array([[4, 2, 0], [3, 0, 2], [3, 0, 4]])},
        distances=np.ones(3),
        right_iou={"dist_cam": ious},
        wrong_iou={"dist_cam": np.zeros_like(ious)},
        box_iou={"center_box": np.array([0.0, 1.0, 0.5]), "whole_image": np.zeros(3)},
    )
    hits = make_hits(measured, {"dist_cam": 0.4})
    assert hits.index.tolist() == [2, 5, 9]
    assert hits.places["nearest"].tolist() == [2, 0, TOP]
    assert hits.decided("nearest").tolist() == [False, True, False]  # a second best class does not count
    assert hits.decided("nearest", top=5).tolist() == [True, True, False]
    assert hits.boxes("dist_cam", "default").tolist() == [False, True, True]  # IoU 0.5 itself is right
    assert hits.boxes("dist_cam", "tuned").tolist() == [True, False, False]
    assert hits.boxes("center_box", "tuned").tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("at", "top1", "gt_known"),
    [
        # errors: CAM by softmax 5, by the nearest prototype 4; Dist-CAM 3, of the metric network 3. Boxes: 3, 4, 4
        ("default", [-1, -1, 0, -2], [None, 1, 0, 1]),
        # 4, 4, 3, and 2 of the metric network. Boxes: 3, 5, 5
        ("tuned", [0, -1, -1, -2], [None, 2, 0, 2]),
    ],
)
def test_difference_parts_are_those_counted_by_hand(at, top1, gt_known):
    order = np.array([3, 0, 5, 1, 4, 2])  # the other network's rows stand in another order
    shuffled = hits_of(METRIC).rows(order)
    parts = difference_parts(hits_of(SOFTMAX), shuffled, at, **BOOTSTRAP)
    for measure, wanted in (("top1_error", top1), ("gt_known", gt_known)):
        found = [figure and round(6 * figure["value"], 9) for figure in parts[measure].values()]
        assert list(parts[measure]) == ["decision", "map", "network", "total"]
        assert found == wanted
        assert sum(one for one in found[:3] if one is not None) == pytest.approx(found[3])


def test_difference_parts_of_a_softmax_network_alone_have_no_network():
    parts = difference_parts(hits_of(SOFTMAX), None, "default", **BOOTSTRAP)
    assert parts["top1_error"]["map"]["value"] == pytest.approx(-1 / 6)
    assert parts["top1_error"]["network"] is parts["top1_error"]["total"] is None


def test_compare_networks_takes_the_images_that_both_have():
    softmax = Measured("a", 1, "", hits_of(SOFTMAX, index=range(6)))
    metric = Measured("b", 1, "", hits_of(METRIC, index=range(2, 8)))  # rows 0 to 3 are images 2 to 5
    found = compare_networks({"softmax": softmax, "metric": metric}, **BOOTSTRAP)
    by_pair = {(one["a"], one["b"]): one for one in found["differences"]}
    across = by_pair[("metric", "dist_cam"), ("softmax", "cam")]
    assert across["default"]["gt_known"]["value"] == pytest.approx((3 - 2) / 4)
    within = by_pair[("softmax", "dist_cam"), ("softmax", "cam")]
    assert within["default"]["gt_known"]["value"] == pytest.approx((4 - 3) / 6)
    assert within["tuned"]["gt_known"]["value"] == pytest.approx((5 - 3) / 6)
    assert not any(one["b"] == ("metric", "cam") for one in found["differences"])
    assert list(found["parts"]) == ["softmax"]


def test_compare_networks_needs_a_common_image():
    own = {"weights": hits_of(SOFTMAX), "metric": hits_of(METRIC, index=range(10, 16))}
    with pytest.raises(ValueError, match="no common image"):
        compare_networks({kind: Measured("a", 1, "", hits) for kind, hits in own.items()}, **BOOTSTRAP)


# ---- files


def test_kept_hits_come_back_as_they_were(tmp_path):
    hits, calls = hits_of(SOFTMAX, index=range(3, 9)), []

    def measure():
        calls.append(1)
        return hits

    path = tmp_path / "folder" / "hits.npz"
    assert kept_hits(path, {"eps": 0.1, "splits": (1, 2)}, measure) == (hits, True)
    back, is_new = kept_hits(path, {"splits": [1, 2], "eps": 0.1}, measure)
    assert (len(calls), is_new, back.tuned) == (1, False, hits.tuned)
    np.testing.assert_array_equal(back.index, hits.index)
    for name in ("places", "right", "wrong", "trivial"):
        ours, theirs = getattr(back, name), getattr(hits, name)
        assert list(ours) == list(theirs)
        for key, values in ours.items():
            assert values.dtype == (np.uint8 if name == "places" else bool)
            np.testing.assert_array_equal(values, theirs[key])
    assert kept_hits(path, {"eps": 0.2, "splits": [1, 2]}, measure)[1]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"no archive"])
def test_kept_hits_are_measured_again_where_the_file_does_not_read(content, tmp_path):
    path = tmp_path / "hits.npz"
    path.write_bytes(content)
    assert kept_hits(path, {}, lambda: hits_of(METRIC))[1]
    assert not kept_hits(path, {}, lambda: hits_of(METRIC))[1]
