import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from configs import ilsvrc2012, table1, tiny_imagenet
from distcam_jax import training
from distcam_jax.evaluators import table1 as evaluator
from distcam_jax.evaluators.table1_networks import find_networks
from distcam_jax.evaluators.table1_tables import backbone_table, make_tables
from distcam_jax.report import format_table
from tests.tiny_run import tiny_config
from tests.torch_layout import resnet_keys, saved, tensors_of

pytestmark = pytest.mark.usefixtures("prepared_data")

TITLES = {"weights": "imported weights", "softmax": "softmax run", "metric": "metric run"}


# ---- small inputs


def tiny_table(**changes) -> ml_collections.ConfigDict:
    """The table's configuration on the digits of tests.tiny_run, with the two backbones that compile fastest."""
    config, tiny = table1.get_config("stand_in"), tiny_config()
    config.backbones = ("resnet18", "resnet50")
    config.model.update({name: tiny.model[name] for name in config.model})
    config.data = tiny.data.to_dict()
    config.input.update({name: tiny.input[name] for name in config.input})
    config.evaluate.update(batch=16, resamples=100)
    for name in config.networks:
        config.networks[name].width = 4
    config.update_from_flattened_dict(changes)
    return config


def weights_file(path, backbone="resnet18", seed=0):
    counts, expansion = {"resnet18": ((2, 2, 2, 2), 1), "resnet50": ((3, 4, 6, 3), 4)}[backbone]
    keys = resnet_keys(counts, expansion=expansion, width=4, classes=10, stem=3)
    path.parent.mkdir(exist_ok=True)
    return saved(path, tensors_of(keys, seed))


def empty_run(folder, objective="metric", checkpoints=True, **changes):
    """A folder that looks like a run until its weights are read."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tiny_config(objective, **changes).to_dict()))
    if checkpoints:
        (folder / "checkpoints").mkdir()
    return folder


# ---- what is given


def names(config):
    return [(one.name, Path(one.source).name) for one in find_networks(config)]


def test_find_networks_takes_what_the_folders_hold_and_what_is_named(tmp_path):
    for name in ("resnet18.pth", "resnet50.pth", "resnet50.safetensors", "resnet34.pth"):
        (tmp_path / name).touch()
    empty_run(tmp_path / "runs" / "resnet50_softmax", "softmax", **{"model.name": "resnet50"})
    elsewhere = empty_run(tmp_path / "elsewhere")
    (tmp_path / "mine.safetensors").touch()
    config = tiny_table(weights=str(tmp_path), runs=str(tmp_path / "runs"))
    config.networks.resnet18.metric = str(elsewhere)
    assert names(config) == [
        ("resnet18_weights", "resnet18.pth"),
        ("resnet18_metric", "elsewhere"),
        ("resnet50_weights", "resnet50.safetensors"),
        ("resnet50_softmax", "resnet50_softmax"),
    ]
    config.networks.resnet18.weights = str(tmp_path / "mine.safetensors")
    config.networks.resnet50.weights = "timm/resnet50.tv_in1k"
    assert ("resnet18_weights", "mine.safetensors") in names(config)
    assert "timm/resnet50.tv_in1k" in [one.source for one in find_networks(config)]


def test_find_networks_tells_what_it_looked_for_where_nothing_is_given(tmp_path):
    config = tiny_table(weights=str(tmp_path), runs=str(tmp_path))
    with pytest.raises(ValueError, match="no network was given; looked for ") as caught:
        find_networks(config)
    message = str(caught.value)
    assert f"{tmp_path}/<backbone>{{.safetensors,.pth,.pt,.bin}}" in message
    assert f"{tmp_path}/<backbone>_{{softmax,metric}}" in message
    assert "resnet18, resnet50" in message
    assert "\n" not in message
    with pytest.raises(ValueError, match=r"<config\.weights>/<backbone>"):
        find_networks(tiny_table())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbones": ("resnet18", "resnet34")}, "unknown backbone 'resnet34'; choose some of .*resnet18"),
        ({"networks.resnet18.weights": "none.safetensors"}, "no file none.safetensors; check config.networks.resnet18"),
        ({"networks.resnet50.metric": "none"}, "config.networks.resnet50.metric: there is no folder none"),
        ({"weights": "nowhere"}, "config.weights: there is no folder nowhere"),
        ({"runs": "nowhere"}, "config.runs: there is no folder nowhere"),
        ({"paper.resnet18.cam": 0.52}, "config.paper.resnet18.cam must be an error in percent, got 0.52"),
        ({"evaluate.methods": ("cam", "uniform")}, "must hold dist_cam"),
        ({"evaluate.methods": ("cam", "dist_cam", "rays")}, "unknown method 'rays'"),
        ({"evaluate.checkpoint": "first"}, "must be latest or best, got 'first'"),
        ({"evaluate.resamples": 0}, "config.evaluate.resamples must be positive, got 0"),
    ],
)
def test_find_networks_refuses_what_the_user_can_mend(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_networks(tiny_table(**changes))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"model.name": "resnet50"}, "is given as the metric run of resnet18; its model.name is resnet50"),
        ({"objective": "softmax"}, "is given as the metric run of resnet18; its objective is softmax"),
        ({"data.train_size": 65}, "was trained on other data"),
        ({"checkpoints": False}, "holds no checkpoints"),
        ({"batch": 0}, "resnet18_metric: config.batch must be positive"),
    ],
)
def test_find_networks_refuses_another_run(run, message, tmp_path):
    empty_run(tmp_path / "resnet18_metric", **run)
    with pytest.raises(ValueError, match=message):
        find_networks(tiny_table(runs=str(tmp_path)))


# ---- the whole way


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Both runs of resnet18, weights of both backbones, and their table."""
    folder = tmp_path_factory.mktemp("table1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTCAM_DATA_DIR", str(tmp_path_factory.getbasetemp() / "prepared"))
        for objective in training.OBJECTIVES:
            training.fit(tiny_config(objective), folder / "runs" / f"resnet18_{objective}")
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
            right, boxes = 0, 0
            for row in range(20):
                if method in ("center_box", "whole_image"):
                    box = kept[f"trivial.{method}"][row]
                else:
                    place = round((0.2 if at == "default" else tuned[base]) / 0.05) - 1
                    box = kept[f"{source}.{base}"][row, place // 8] >> (7 - place % 8) & 1
                decided = kept["decided.softmax" if method == "cam" else "decided.nearest"][row]
                boxes += bool(box)
                right += bool(box) and bool(decided)
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


# ---- the configuration


@pytest.mark.parametrize("backbone", table1.BACKBONES)
def test_configuration_builds_imported_networks_with_the_published_width(backbone, tmp_path):
    path = tmp_path / f"{backbone}.safetensors"
    path.touch()
    config = table1.get_config()
    config.networks[backbone].weights = str(path)
    (given,) = find_networks(config)
    model = nnx.eval_shape(lambda: training.build_model(given.config, 1000))
    published = {"resnet18": 512, "densenet161": 2208, "densenet169": 1664, "densenet201": 1920}
    assert model.embedding_size == published.get(backbone, 2048)


def test_configuration_agrees_with_the_recipes():
    config, recipe = table1.get_config(), ilsvrc2012.get_config("resnet50,softmax")
    assert table1.BACKBONES == ilsvrc2012.BACKBONES
    for name in ("train_split", "tune_split", "eval_split", "image_size", "mean", "std"):
        assert config.input[name] == recipe.input[name]
    assert (config.data, config.model.stem, config.model.last_stride) == (recipe.data, "imagenet", 2)
    stand_in, small = table1.get_config("stand_in"), tiny_imagenet.get_config("metric")
    assert stand_in.data == small.data
    assert all(stand_in.input[name] == small.input[name] for name in stand_in.input)
    with pytest.raises(ValueError, match="got 'resnet18', want one of ilsvrc2012, stand_in"):
        table1.get_config("resnet18")
