import dataclasses
import functools
import json

import numpy as np
import pytest

from distcam_jax import training
from distcam_jax.evaluators import (
    bind_methods,
    choose_methods,
    evaluate,
    figures,
    load_network,
    localize,
    network_prototypes,
    tune_thresholds,
)
from distcam_jax.evaluators import network as network_module
from distcam_jax.evaluators.cases import choose_cases
from distcam_jax.evaluators.localize import DEFAULT_THRESHOLD, THRESHOLDS, Localization, threshold_index, wrong_classes
from distcam_jax.evaluators.network import Network
from distcam_jax.prototypes import PartialSums, load_prototypes
from tests.tiny_run import tiny_config
from tests.torch_layout import resnet_keys, saved, tensors_of

pytestmark = pytest.mark.usefixtures("prepared_data")

BOOTSTRAP = {"seed": 0, "resamples": 200}


def test_wrong_classes_are_never_the_own_and_the_same_for_an_image_in_any_batch():
    labels = np.arange(200) % 5
    index = np.arange(200)
    chosen = wrong_classes(labels, index, 5, seed=3)
    assert np.all(chosen != labels)
    assert set(chosen - labels) == {d for d in range(-4, 5) if d}
    np.testing.assert_array_equal(wrong_classes(labels[50:60], index[50:60], 5, seed=3), chosen[50:60])
    assert np.any(wrong_classes(labels, index, 5, seed=4) != chosen)


def test_wrong_classes_need_two_classes():
    with pytest.raises(ValueError, match="at least 2 classes"):
        wrong_classes(np.zeros(1, int), np.zeros(1, int), 1, seed=0)


def measured_by_hand():
    """Four images: the class is right for 0, 1 and 3 by softmax, for 0 and 2 by prototypes; boxes by IoU."""
    at = threshold_index(DEFAULT_THRESHOLD)
    best = threshold_index(0.5)

    def ious(default, tuned):
        values = np.zeros((4, len(THRESHOLDS)))
        values[:, at], values[:, best] = default, tuned
        return values

    right = {
        "cam": ious([0.9, 0.4, 0.9, 0.5], [0.9, 0.9, 0.9, 0.9]),
        "dist_cam": ious([0.6, 0.6, 0.6, 0.1], [0.6, 0.6, 0.1, 0.1]),
        "uniform": ious([0.1, 0.1, 0.1, 0.9], [0.9, 0.1, 0.1, 0.9]),
    }
    wrong = {name: ious([0.9, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]) for name in right}
    return Localization(
        labels=np.array([1, 2, 3, 4]),
        index=np.arange(4),
        wrong=np.array([2, 3, 4, 1]),
        decisions={
            "softmax": np.array([[1, 2], [2, 3], [4, 3], [4, 1]]),
            "nearest": np.array([[1, 9], [9, 2], [3, 9], [9, 9]]),
        },
        distances=np.ones(4),
        right_iou=right,
        wrong_iou=wrong,
        box_iou={"center_box": np.array([0.5, 0.49, 0.9, 0.0]), "whole_image": np.zeros(4)},
    )


def test_tune_thresholds_takes_the_best_of_each_method_and_the_lowest_on_ties():
    tuned = tune_thresholds(measured_by_hand())
    assert tuned == {"cam": 0.5, "dist_cam": 0.2, "uniform": 0.5}


def test_localization_figures_are_those_counted_by_hand():
    found = figures.localization_figures(measured_by_hand(), {"cam": 0.5, "dist_cam": 0.2, "uniform": 0.5}, **BOOTSTRAP)
    value = {
        (row, kind, name): found[row][kind][name].value
        for row in found
        for kind in ("default", "tuned")
        for name in found[row][kind]
    }
    assert value["cam", "default", "gt_known"] == 0.75
    assert value["cam", "default", "top1_error"] == 0.5  # images 0 and 3 have class and box right
    assert value["cam", "default", "top5_error"] == 0.25  # image 2 has its class second
    assert value["cam", "tuned", "top1_error"] == 0.25
    assert value["cam", "default", "wrong_class_gt_known"] == 0.25
    assert value["dist_cam", "default", "top1_error"] == 0.5  # by the nearest prototype, not by softmax
    assert value["dist_cam", "default", "top5_error"] == 0.25
    assert value["center_box", "default", "gt_known"] == 0.5  # IoU 0.5 itself is right
    assert value["center_box", "default", "top1_error"] == 0.5
    assert value["whole_image", "tuned", "top1_error"] == 1.0
    assert value["wrong_prototype", "default", "top1_error"] == 0.75
    assert ("uniform", "default", "wrong_class_gt_known") not in value
    assert not any("from_minimum" in row for row in found.values())  # it was not measured


def test_localization_figures_from_the_minimum_have_boxes_and_a_threshold_of_their_own():
    measured = measured_by_hand()
    lifted, wrong = np.zeros((4, len(THRESHOLDS))), np.zeros((4, len(THRESHOLDS)))
    lifted[:3, threshold_index(0.7)], wrong[3, threshold_index(0.7)] = 0.6, 0.6
    scaled = {f"{name}, scaling=minmax": lifted for name in measured.right_iou}
    measured = dataclasses.replace(
        measured, right_iou=measured.right_iou | scaled, wrong_iou=measured.wrong_iou | dict.fromkeys(scaled, wrong)
    )
    tuned = tune_thresholds(measured)
    found = figures.localization_figures(measured, tuned, **BOOTSTRAP)
    assert set(found) == {"cam", "dist_cam", "uniform", "center_box", "whole_image", "wrong_prototype"}
    row = found["cam"]
    assert row["from_minimum"]["gt_known"].value == 0.75
    assert row["from_minimum"]["top1_error"].value == 0.5  # images 0 and 1 have class and box right
    assert row["from_minimum"]["wrong_class_gt_known"].value == 0.25
    assert (row["threshold"], row["threshold_from_minimum"]) == (0.5, 0.7)
    assert row["tuned"]["gt_known"].value == 1.0  # the protocol's own rule is as before
    assert found["wrong_prototype"]["from_minimum"]["gt_known"].value == 0.25
    assert found["center_box"]["from_minimum"]["gt_known"].value == 0.5  # it has no map
    assert figures.hits(measured, "wrong_cam", 0.7, scaling="minmax").tolist() == [False, False, False, True]
    assert not figures.hits(measured, "wrong_cam", 0.7).any()


def test_classification_figures_are_those_counted_by_hand():
    found = figures.classification_figures(measured_by_hand(), **BOOTSTRAP)
    assert {name: figure.value for name, figure in found.items()} == {
        "softmax_top1": 0.75,
        "softmax_top5": 1.0,
        "nearest_prototype_top1": 0.5,
        "nearest_prototype_top5": 0.75,
    }
    assert found["softmax_top1"].low <= 0.75 <= found["softmax_top1"].high


def test_difference_figure_is_paired():
    a = np.arange(100) % 2 == 0
    figure = figures.difference_figure(a, a, **BOOTSTRAP)
    assert (figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0)


def test_choose_cases_ranks_by_dist_cam():
    chosen = choose_cases(measured_by_hand(), DEFAULT_THRESHOLD, count=2, seed=0)
    assert chosen["worst"][0] == 3
    assert 3 not in chosen["best"]
    assert len(chosen["random"]) == 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory, common_folder, copy_run):
    """Both objectives, trained for a moment, and their common evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTCAM_DATA_DIR", str(common_folder / "prepared"))
        for objective in ("softmax", "metric"):
            copy_run(objective, folder / objective)
        metrics = evaluate(
            tiny_config("metric"), folder / "metric", output=folder / "out", compare=[folder / "softmax"]
        )
    return folder, metrics


def test_evaluate_writes_figures_report_and_prototypes(runs):
    folder, metrics = runs
    assert json.loads((folder / "out" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    report = (folder / "out" / "report.html").read_text()
    assert all(title in report for title in ("CAM", "Dist-CAM", "Mahalanobis CAM", "Best cases", "Worst cases"))
    assert (folder / "out" / "examples.png").read_bytes()[:4] == b"\x89PNG"
    kept = load_prototypes(folder / "metric" / "prototypes.safetensors")
    assert kept.weights_hash == metrics["networks"]["metric"]["weights_hash"]
    assert kept.counts.sum() == 64


def test_evaluate_measures_every_method_and_baseline(runs):
    _, metrics = runs
    rows = metrics["networks"]["softmax"]["localization"]
    assert set(rows) == {*tiny_config().evaluate.methods, "center_box", "whole_image", "wrong_prototype"}
    assert set(metrics["networks"]["metric"]["localization"]) == set(rows) - {"cam"}
    for row in rows.values():
        figure = row["tuned"]["gt_known"]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert metrics["images"] == 20
    pairs = {(pair["a"], pair["b"]): pair for pair in metrics["differences"]}
    assert {("metric: Dist-CAM", "softmax: CAM"), ("metric: Mahalanobis CAM", "softmax: CAM")} <= set(pairs)
    pair = pairs["softmax: Mahalanobis CAM", "softmax: Mahalanobis CAM of a wrong class"]
    for kind, name in (("tuned", "gt_known"), ("from_minimum", "gt_known_from_minimum")):
        row = rows["mahalanobis"][kind]
        expected = row["gt_known"]["value"] - row["wrong_class_gt_known"]["value"]
        assert pair[name]["value"] == pytest.approx(expected)


def test_evaluate_tables_tell_the_rule_of_every_column(runs):
    folder, metrics = runs
    text = (folder / "out" / "tables.md").read_text()
    localization, differences = text.split("**Localisation**")[1], text.split("**Paired differences of GT-known**")[1]
    header = next(line for line in localization.splitlines() if line.startswith("|"))
    assert "| GT-known, tuned | with a wrong class, tuned | GT-known, tuned, from the minimum |" in header
    assert "divided by their maximum, as the protocol has it" in localization
    found = metrics["networks"]["metric"]["localization"]["mahalanobis"]["from_minimum"]["gt_known"]
    row = next(line for line in localization.splitlines() if "| Mahalanobis CAM · metric network |" in line)
    assert f"{100 * found['value']:.1f}" in row.split("|")[7].strip("* ")
    assert "metric: Mahalanobis CAM − metric: uniform weights" in differences


def test_evaluate_refuses_a_configuration_without_the_keys_of_the_whitening(tmp_path):
    config = tiny_config("metric")
    del config.evaluate["whitening_samples"]
    with pytest.raises(ValueError, match=r"has no key evaluate.whitening_samples; it was made for another version"):
        evaluate(config, tmp_path / "run", output=tmp_path)


def test_evaluate_keeps_no_path_of_this_machine_in_the_figures(runs):
    folder, metrics = runs
    assert str(folder) not in json.dumps(metrics)
    assert "manual_dir" not in json.dumps(metrics)


QUICKSTART = "--config=configs/quickstart.py:metric"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["--config=configs/quickstart.py:contrast"], "unknown objective 'contrast'; choose one of"),
        ("train.py", [QUICKSTART, "--config.model.name=resnet99"], "unknown model 'resnet99'; choose one of"),
        ("train.py", [QUICKSTART, "--config.data.name=imagenet99"], "'imagenet99', want one of digits"),
        ("train.py", ["--config=configs/tiny_imagenet.py:metric"], "manual_dir"),
        ("train.py", [QUICKSTART, "--config.nope=1"], "the configuration has no key 'nope'"),
        ("train.py", [QUICKSTART, "--config.batch=0"], "config.batch must be positive, got 0"),
        ("train.py", ["--config=configs/nope.py"], "No such file or directory: 'configs/nope.py'"),
        ("evaluate.py", [QUICKSTART], "holds no checkpoints; train first"),
        ("evaluate.py", [QUICKSTART, "--compare=nowhere"], "nowhere is no run of train.py"),
    ],
)
def test_scripts_end_in_one_line_for_what_the_user_can_mend(run_script, tmp_path, script, arguments, message):
    code, errors = run_script(script, *arguments, f"--workdir={tmp_path / 'run'}")
    assert code == 1
    last = errors.strip().split("\n")[-1]
    assert last.startswith(f"{script}: ")
    assert message in last
    assert "Traceback" not in errors


def test_evaluate_refuses_prototypes_of_another_network(runs, tmp_path):
    folder, _ = runs
    with pytest.raises(ValueError, match="does not fit this model: its weights_hash"):
        evaluate(
            tiny_config("softmax"),
            folder / "softmax",
            output=tmp_path,
            prototypes=folder / "metric" / "prototypes.safetensors",
        )


def weights_of(folder, classes=10):
    keys = resnet_keys((2, 2, 2, 2), expansion=1, width=4, classes=classes, stem=3)
    return saved(folder / "published.safetensors", tensors_of(keys))


def test_evaluate_takes_published_weights_in_the_place_of_a_run(tmp_path):
    weights = weights_of(tmp_path)
    metrics = evaluate(tiny_config("softmax"), None, weights=weights, output=tmp_path / "softmax")
    network = metrics["networks"]["softmax"]
    assert network["weights"] == "published.safetensors"
    assert network["steps"] is None
    assert "cam" in network["localization"]
    assert (tmp_path / "softmax" / "prototypes.safetensors").is_file()
    # The metric objective leaves the classifier out, so that of another data set does no harm.
    again = evaluate(tiny_config("metric"), None, weights=weights_of(tmp_path, 1000), output=tmp_path / "metric")
    assert again["networks"]["metric"]["weights_hash"] == network["weights_hash"]
    assert "cam" not in again["networks"]["metric"]["localization"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workdir": None}, "give either the folder of a run or weights"),
        ({"workdir": "run", "weights": "some.safetensors"}, "give either the folder of a run or weights"),
        ({"workdir": None, "weights": "none.safetensors", "output": "out"}, "there is no file none.safetensors"),
    ],
)
def test_evaluate_wants_a_run_or_weights(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(tiny_config("metric"), **arguments)
    assert not list(tmp_path.iterdir())


def test_evaluate_names_the_classes_of_weights_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="the file's classifier has 1000 classes, the model 10"):
        evaluate(tiny_config("softmax"), None, weights=weights_of(tmp_path, 1000), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_localize_leaves_padding_and_classes_without_samples_out(runs):
    folder, _ = runs
    config = tiny_config("metric")
    network = load_network(config, folder / "metric", 10, name="metric")
    prototypes = network_prototypes(network, folder / "metric" / "prototypes.safetensors", "0123456789", batch=16)
    source = training.load_split(config, "eval").source
    methods = choose_methods(("dist_cam", "uniform"), network)
    whole = localize(network, prototypes, network.batches(source, batch=16), bind_methods(methods, network, prototypes))
    assert len(whole.labels) == 20
    np.testing.assert_array_equal(whole.index, np.arange(20))
    np.testing.assert_array_equal(whole.labels, [source[i]["label"] for i in range(20)])
    np.testing.assert_array_equal(whole.decisions["nearest"].max(axis=1) < 10, True)

    counts = prototypes.counts.copy()
    counts[3] = 0
    fewer = dataclasses.replace(prototypes, counts=counts)
    maps = bind_methods(methods, network, fewer)
    without = localize(network, fewer, network.batches(source, batch=16), maps)
    kept = whole.labels != 3
    assert not kept.all()
    np.testing.assert_array_equal(without.index, whole.index[kept])
    assert 3 not in without.wrong
    assert 3 not in without.decisions["nearest"]
    np.testing.assert_allclose(without.right_iou["dist_cam"], whole.right_iou["dist_cam"][kept])


def test_localize_leaves_images_without_boxes_out(runs):
    folder, _ = runs
    network = load_network(tiny_config("metric"), folder / "metric", 10, name="metric")
    prototypes = network_prototypes(network, folder / "metric" / "prototypes.safetensors", "0123456789", batch=16)
    maps = bind_methods(choose_methods(("dist_cam",), network), network, prototypes)
    source = training.load_split(tiny_config("metric"), "eval").source
    some = [{**source[i], "boxes": source[i]["boxes"][: i % 3]} for i in range(20)]  # every third has lost its box
    whole = localize(network, prototypes, network.batches(source, batch=16), maps)
    found = localize(network, prototypes, network.batches(some, batch=16), maps)
    kept = np.flatnonzero(np.arange(20) % 3)
    np.testing.assert_array_equal(found.index, kept)
    np.testing.assert_array_equal(found.right_iou["dist_cam"], whole.right_iou["dist_cam"][kept])
    with pytest.raises(ValueError, match="no image to localise: the split is empty, no image has a box"):
        localize(network, prototypes, network.batches(some[:1], batch=16), maps)


def test_evaluate_refuses_a_split_without_boxes_before_the_work(runs, tmp_path, monkeypatch):
    folder, _ = runs
    load = training.load_split

    def without_boxes(config, split):
        data = load(config, split)
        lost = [{**data.source[i], "boxes": data.source[i]["boxes"][:0]} for i in range(len(data.source))]
        return dataclasses.replace(data, source=lost) if split == "tune" else data

    monkeypatch.setattr(training, "load_split", without_boxes)
    with pytest.raises(ValueError, match=r"no image of digits, split validation, has a box; .*tune_split=validation"):
        evaluate(tiny_config("metric"), folder / "metric", output=tmp_path)
    assert not list(tmp_path.iterdir())


def embedding_only(network, images):
    return network._forward(network.state, training.shard_batch({"image": images}, network.mesh)["image"])


def test_network_prototypes_go_on_where_they_were_stopped(runs, tmp_path, monkeypatch):
    folder, _ = runs
    network = load_network(tiny_config("metric"), folder / "metric", 10, name="metric")
    whole = network_prototypes(network, tmp_path / "whole.safetensors", "0123456789", batch=8)
    calls = []

    def stopping(calls_left, spoil=1.0):
        calls.clear()

        def call(network, images):
            if len(calls) == calls_left:
                raise InterruptedError
            calls.append(len(images))
            output, features = embedding_only(network, images)
            return output, {"embedding": features["embedding"] * spoil}

        monkeypatch.setattr(Network, "__call__", call)

    monkeypatch.setattr(network_module, "PartialSums", functools.partial(PartialSums, every=2))
    path = tmp_path / "prototypes.safetensors"
    stopping(6)  # 64 images are 8 batches; two are in flight, so that four were added up
    with pytest.raises(InterruptedError):
        network_prototypes(network, path, "0123456789", batch=8)
    stopping(8, spoil=float("nan"))
    with pytest.raises(ValueError, match=r"an embedding is not finite, .*: train_\w+.png \(at 32\), "):
        network_prototypes(network, path, "0123456789", batch=8)
    stopping(8)
    found = network_prototypes(network, path, "0123456789", batch=8)
    assert len(calls) == 4
    np.testing.assert_array_equal(found.prototypes, whole.prototypes)
    np.testing.assert_array_equal(found.counts, whole.counts)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["prototypes.safetensors", "whole.safetensors"]
