import dataclasses
import json
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from distcam_jax import training
from distcam_jax.evaluators import table1 as evaluator
from distcam_jax.evaluators.table1_networks import find_networks
from distcam_jax.evaluators.table1_tables import backbone_table, make_tables
from distcam_jax.prototypes import load_prototypes
from distcam_jax.report import format_table
from tests.tiny_table import tiny_table, weights_file
from tests.torch_layout import saved

pytestmark = pytest.mark.usefixtures("prepared_data")

TITLES = {"weights": "imported weights", "softmax": "softmax run", "metric": "metric run"}


# ---- the whole way


@pytest.fixture(scope="module")
def finished(tmp_path_factory, common_folder, copy_run):
    """Both runs of resnet18, weights of both backbones, and their table."""
    folder = tmp_path_factory.mktemp("table1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTCAM_DATA_DIR", str(common_folder / "prepared"))
        for objective in ("softmax", "metric"):
            copy_run(objective, folder / "runs" / f"resnet18_{objective}")
        for name in ("resnet18", "resnet50"):
            weights_file(folder / "weights" / f"{name}.safetensors", name)
        config = tiny_table(weights=str(folder / "weights"), runs=str(folder / "runs"))
        metrics = evaluator.table1(config, folder / "out")
    return folder, config, metrics


def counted(monkeypatch, stop_after=None):
    """Calls of the measurement, which ends the whole after some of them."""
    calls, measured = [], evaluator.localize_source

    def localize_source(network, *arguments, **options):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(network.name)
        return measured(network, *arguments, **options)

    monkeypatch.setattr(evaluator, "localize_source", localize_source)
    return calls


def test_table1_writes_what_it_returns(finished):
    folder, _, metrics = finished
    assert json.loads((folder / "out" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert metrics["complete"]
    assert str(folder) not in json.dumps(metrics)
    text = (folder / "out" / "tables.md").read_text()
    for title in ("Networks", "resnet18", "resnet50", "Networks by maps", "Paired differences"):
        assert f"**{title}**" in text


def test_table1_compares_mahalanobis_cam(finished):
    _, _, metrics = finished
    found = [(tuple(one["a"]), tuple(one["b"])) for one in metrics["backbones"]["resnet18"]["differences"]]
    for kind in ("weights", "softmax"):
        assert ((kind, "mahalanobis"), (kind, "cam")) in found
    for other in ("dist_cam", "contrastive", "uniform"):
        assert (("metric", "mahalanobis"), ("metric", other)) in found
    assert "divided by their maximum in every row" in format_table(backbone_table(metrics, "resnet18"))


def test_table1_shows_what_is_not_given(finished):
    folder, _, metrics = finished
    states = {kind: one["state"] for kind, one in metrics["backbones"]["resnet50"]["networks"].items()}
    assert states == {"weights": "measured", "softmax": "not given", "metric": "not given"}
    text = (folder / "out" / "tables.md").read_text()
    assert "| resnet50 · metric run | not given |" in text
    assert "| metric run: not given |" in text
    grid = text[text.index("**Networks by maps**") :]
    assert "| resnet18 · metric run | undefined | " in grid
    assert "| resnet50 · metric run | not given | not given |" in grid
    assert "cam" not in metrics["backbones"]["resnet18"]["networks"]["metric"]["methods"]


def box_by_hand(heatmap, side, threshold, scale):
    """The `ilsvrc` protocol step by step, for an image `scale` times the network's size; None where no box is found."""
    large = cv2.resize(np.asarray(heatmap, np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    if not large.max() > 0:
        return None
    _, labels, stats, _ = cv2.connectedComponentsWithStats((large / large.max() >= threshold).astype(np.uint8), None, 8)
    sizes = [(-stats[c, cv2.CC_STAT_AREA], np.flatnonzero(labels == c)[0], c) for c in range(1, len(stats))]
    rows, columns = np.nonzero(labels == min(sizes)[2])
    return [scale * end for end in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def overlap(box, true):
    width, height = (min(box[axis + 2], true[axis + 2]) - max(box[axis], true[axis]) for axis in (0, 1))
    shared = max(width, 0) * max(height, 0)
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (box, true)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("method", ["cam", "dist_cam"])
def test_table1_errors_are_those_of_the_maps_of_the_best_classes(finished, method):
    """Top-1 and Top-5 by their definition, with a map of every one of the five best classes of every image."""
    folder, config, metrics = finished
    given = {one.name: one for one in find_networks(config)}["resnet18_weights"]
    network, data = given.load(10), training.load_split(config, "eval")
    prototypes = load_prototypes(given.prototypes_path(folder / "out")).prototypes
    (batch,) = network.batches(data.source, batch=24)
    output, features = network(batch["image"])
    maps, linear = np.asarray(features["pre_pool"], np.float64), np.asarray(network.class_weights)
    figures = metrics["backbones"]["resnet18"]["networks"]["weights"]["methods"][method]
    side = config.input.image_size
    scale = cv2.imdecode(np.frombuffer(data.source[0]["image"], np.uint8), cv2.IMREAD_COLOR).shape[0] / side
    for at in ("default", "tuned"):
        counts = dict.fromkeys(("top1_error", "top5_error", "gt_known"), 0)
        for row, example in enumerate(data.source):
            distances = np.abs(prototypes - maps[row].mean((0, 1)))
            score = -np.asarray(output)[row] if method == "cam" else distances.sum(axis=1)
            reciprocal = 1 / (distances / distances.mean(axis=1, keepdims=True) + 0.1)
            weights = linear if method == "cam" else reciprocal
            hits = {}
            for c in {*np.argsort(score)[:5].tolist(), example["label"]}:
                box = box_by_hand(maps[row] @ weights[c], side, figures[at]["threshold"], scale)
                found = box is not None and any(overlap(box, true) >= 0.5 for true in example["boxes"])
                hits[c] = c == example["label"] and found
            counts["top1_error"] += not hits[int(np.argsort(score)[0])]
            counts["top5_error"] += not any(hits[c] for c in np.argsort(score)[:5].tolist())
            counts["gt_known"] += hits[example["label"]]
        found = {name: round(20 * figures[at][name]["value"]) for name in counts}
        assert found == counts
    assert counts["top5_error"] < counts["top1_error"]  # some are right, and not all by the best class


@pytest.mark.parametrize("kind", TITLES)
def test_table1_figures_are_those_counted_from_the_kept_hits(finished, kind):
    folder, config, metrics = finished
    with np.load(folder / "out" / "hits" / f"resnet18_{kind}.npz", allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files}
    found = metrics["backbones"]["resnet18"]["networks"][kind]
    assert found["images"] == len(kept["index"]) == 20
    assert set(found["methods"]) == {
        *(name for name in config.evaluate.methods if kind != "metric" or name != "cam"),
        *("center_box", "whole_image", "wrong_prototype"),
    }
    tuned = json.loads(str(kept["tuned"]))
    for method, by_threshold in found["methods"].items():
        for at in ("default", "tuned"):
            base, source = ("dist_cam", "wrong") if method == "wrong_prototype" else (method, "right")
            right, among, boxes = 0, 0, 0
            for row in range(20):
                if method in ("center_box", "whole_image"):
                    box = kept[f"trivial.{method}"][row]
                else:
                    place = round((0.2 if at == "default" else tuned[base]) / 0.05) - 1
                    box = kept[f"{source}.{base}"][row, place // 8] >> (7 - place % 8) & 1
                place = kept["places.softmax" if method == "cam" else "places.nearest"][row]
                boxes += bool(box)
                right += bool(box) and place == 0
                among += bool(box) and place < 5
            assert by_threshold[at]["top5_error"]["value"] == pytest.approx(1 - among / 20)
            assert by_threshold[at]["gt_known"]["value"] == pytest.approx(boxes / 20)
            assert by_threshold[at]["top1_error"]["value"] == pytest.approx(1 - right / 20)


def test_table1_a_second_call_measures_nothing_again(finished, monkeypatch):
    folder, config, metrics = finished
    calls = counted(monkeypatch)
    config = config.copy_and_resolve_references()
    config.evaluate.batch = 8  # of no consequence
    again = evaluator.table1(config, folder / "out")
    assert not calls
    assert again["backbones"] == metrics["backbones"]


def test_table1_measures_changed_weights_and_options_again(finished, tmp_path, monkeypatch):
    folder, config, _ = finished
    path, changed = tmp_path / "resnet18.safetensors", config.copy_and_resolve_references()
    tensors = load_file(folder / "weights" / "resnet18.safetensors")
    saved(path, tensors)
    changed.update(weights="", runs="", backbones=("resnet18",))
    changed.networks.resnet18.weights = str(path)
    first = evaluator.table1(changed, tmp_path / "out")
    calls = counted(monkeypatch)
    tensors["fc.weight"] = -tensors["fc.weight"]  # the embedding stays, CAM does not
    saved(path, tensors)
    second = evaluator.table1(changed, tmp_path / "out")
    assert calls == ["resnet18_weights"] * 2  # the held-out images and the reported ones
    before, after = (one["backbones"]["resnet18"]["networks"]["weights"]["methods"] for one in (first, second))
    assert before["cam"] != after["cam"]
    assert before["dist_cam"] == after["dist_cam"]
    changed.evaluate.eps = 0.5
    evaluator.table1(changed, tmp_path / "out")
    assert len(calls) == 4
    changed.evaluate.whitening_samples = 3
    third = evaluator.table1(changed, tmp_path / "out")["backbones"]["resnet18"]["networks"]["weights"]["methods"]
    assert len(calls) == 6
    assert third["cam"] == after["cam"]


def test_table1_goes_on_where_it_was_stopped(finished, tmp_path, monkeypatch, capsys):
    _, config, metrics = finished
    with monkeypatch.context() as patch:
        calls = counted(patch, stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            evaluator.table1(config, tmp_path)
        assert calls == ["resnet18_weights"] * 2 + ["resnet18_softmax"]
    assert "resnet18_weights is measured, 1 of 4 networks" in capsys.readouterr().out
    part = (tmp_path / "tables.md").read_text()
    assert "| resnet18 · metric run | not yet measured |" in part
    assert "run the command again and it goes on" in part
    assert not json.loads((tmp_path / "metrics.json").read_text())["complete"]
    calls = counted(monkeypatch)
    whole = evaluator.table1(config, tmp_path)
    assert calls == [name for name in ("resnet18_softmax", "resnet18_metric", "resnet50_weights") for _ in range(2)]
    assert whole["backbones"] == metrics["backbones"]


class Unboxed(Sequence):
    """A source whose rows of some remainder have lost their boxes."""

    def __init__(self, source, lost):
        self.source, self.lost = source, lost

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = self.source[index]
        return {**example, "boxes": example["boxes"][:0]} if self.lost(index) else example


@pytest.fixture
def with_lost_boxes(monkeypatch):
    """Makes training.load_split lose boxes, split by split."""
    load, lost = training.load_split, {}

    def load_split(config, split):
        data = load(config, split)
        return dataclasses.replace(data, source=Unboxed(data.source, lost.get(split, lambda index: False)))

    monkeypatch.setattr(training, "load_split", load_split)
    return lost


def test_table1_leaves_images_without_boxes_out(finished, tmp_path, with_lost_boxes):
    _, config, metrics = finished
    config = config.copy_and_resolve_references()
    config.update(runs="", backbones=("resnet18",))
    with_lost_boxes |= {"tune": lambda index: index % 2 == 0, "eval": lambda index: index in (3, 19)}
    found = evaluator.table1(config, tmp_path)["backbones"]["resnet18"]["networks"]["weights"]
    assert found["images"] == 18
    whole = metrics["backbones"]["resnet18"]["networks"]["weights"]
    assert found["methods"]["center_box"] != whole["methods"]["center_box"]
    with np.load(tmp_path / "hits" / "resnet18_weights.npz") as file:
        assert file["index"].tolist() == [row for row in range(20) if row not in (3, 19)]


def test_table1_refuses_images_to_tune_on_of_which_none_has_a_box(finished, tmp_path, with_lost_boxes):
    _, config, _ = finished
    with_lost_boxes["tune"] = lambda index: True
    with pytest.raises(ValueError, match=r"no image of digits, split validation, has a box; .*tune_split=validation"):
        evaluator.table1(config, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))  # it was said before the pass over the training images


def test_tables_show_the_figures_of_the_paper_beside_ours(finished):
    _, _, metrics = finished
    metrics = json.loads(json.dumps(metrics))
    assert "nothing here compares with the paper" in format_table(backbone_table(metrics, "resnet18"))
    metrics["data"] = "ilsvrc2012"
    assert "its Table 1 (Shen et al., ICIG 2021" in format_table(backbone_table(metrics, "resnet18"))
    metrics["backbones"]["resnet18"]["paper"] = {"cam": 61.5, "dist_cam": 3}  # made up
    table = backbone_table(metrics, "resnet18")
    shown = {row.name: row.cells[0] for row in table.rows if row.cells[0] is not None}
    literal = {f"{TITLES[kind]}: Dist-CAM, literal Eq. 5": 3.0 for kind in TITLES}
    ours = {f"{TITLES[kind]}: Dist-CAM": 3.0 for kind in TITLES}
    assert shown == {f"{TITLES[kind]}: CAM": 61.5 for kind in ("weights", "softmax")} | ours | literal
    assert "not available to us" not in table.note
    assert len(make_tables(metrics)) == 6
