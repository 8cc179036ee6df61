"""The ablations: their configuration and the command."""

import json
import shutil
from pathlib import Path

import cv2
import ml_collections
import pytest
from flax import nnx

from configs.ablations import get_config
from distcam_jax import runs, training
from distcam_jax.evaluators import ablations as ablations_module
from distcam_jax.evaluators.ablation_pass import score_split
from distcam_jax.evaluators.ablation_rows import check_ablations
from distcam_jax.evaluators.ablation_tables import make_tables
from distcam_jax.evaluators.ablations import ablations, is_trained, network_config
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("prepared_data")


def small(**changes) -> ml_collections.ConfigDict:
    """The ablations' configuration on digits, with networks of a moment."""
    config = get_config()
    for objective in config.base:
        base = tiny_config(objective)
        config.data = base.data.to_dict()
        config.base[objective] = {name: value for name, value in base.to_dict().items() if name != "data"}
    networks = {name: config.networks[name].to_dict() for name in ("metric_0", "softmax_0", "metric_1")}
    config.networks = networks
    config.update(seeds=tuple(networks), varied=("softmax_0",), last_stride=(), pre_pool=())
    config.vary.update(eps=(1e-6, 0.1, 10.0), samples=(1, 3), draws=2)
    config.evaluate.update(batch=16, resamples=50)
    config.update(changes)
    return config


# ---- the configuration


def test_network_config_is_that_of_training_with_the_changes_of_its_name():
    config = get_config()
    config.data.manual_dir = "somewhere"
    for name in config.networks:
        made = network_config(config, name)
        runs.check_config(made)
        assert made.data.manual_dir == "somewhere"
        assert made.epochs == 10
        model = nnx.eval_shape(lambda made=made: training.build_model(made, 100))
        stride = 2 if "stride2" in name else 1
        assert model.total_stride == 8 * stride
        assert made.seed == int(name.removesuffix("_stride2").rpartition("_")[2])
        assert (made.objective == "metric") == ("metric" in name)
    assert "pre_pool" not in network_config(config, "metric_0").model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"varied": ("metric_9",)}, "config.varied: no network 'metric_9'; config.networks has metric_0"),
        ({"last_stride": (("metric_0", "metric_8"),)}, "config.last_stride: no network 'metric_8'"),
        ({"vary": {"norm": ("sum", "l3")}}, "config.vary.norm: want some of sum"),
        ({"vary": {"distance": ("l7",)}}, "config.vary.distance: want some of l1"),
        ({"vary": {"eps": (0.0,)}}, "config.vary.eps: want positive numbers, got 0.0"),
        ({"vary": {"draws": 0}}, "want at least 1, got 0"),
    ],
)
def test_check_ablations_names_the_option(change, message):
    config = small()
    config.update(change)
    with pytest.raises(ValueError, match=message):
        check_ablations(config)


# ---- the command


@pytest.fixture(scope="module")
def command(tmp_path_factory, common_folder, copy_run):
    """Two of three networks, trained as the command would, and what it wrote when it was to train none."""
    folder = tmp_path_factory.mktemp("ablations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTCAM_DATA_DIR", str(common_folder / "prepared"))
        config = small(runs=str(folder / "runs"))
        for name in ("metric_0", "softmax_0"):
            assert network_config(config, name) == tiny_config(name.removesuffix("_0"))
            copy_run(name.removesuffix("_0"), folder / "runs" / name)
        config.train_missing = False
        metrics = ablations(config, folder / "out")
    return config, folder, metrics


def test_ablations_name_missing_networks_and_leave_them_out(command):
    _, folder, metrics = command
    assert metrics["missing"] == ["metric_1"]
    text = (folder / "out" / "tables.md").read_text()
    assert text.startswith("Left out, because not trained: metric_1.\n")
    assert "metric_1" not in text.split("\n", 1)[1]
    assert set(metrics["networks"]) == {"metric_0", "softmax_0"}


def test_ablations_write_tables_figures_and_metrics(command):
    config, folder, metrics = command
    written = json.loads((folder / "out" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(metrics))
    assert metrics["images"] == 20
    text = (folder / "out" / "tables.md").read_text()
    assert all(table.title in text for table in make_tables(metrics))
    eps = [row["label"] for row in metrics["ablations"]["eps"]["rows"] if not row["muted"]]
    assert [f"eps {value:g} · {network}" for network in config.varied for value in config.vary.eps] == eps
    for name in ("eps", "samples", "thresholds"):
        picture = cv2.imread(str(folder / "out" / f"{name}.png"))
        assert picture.shape[1] > 600
        assert (picture[0] == 255).all()
    assert str(folder) not in json.dumps(metrics)  # nothing of this machine's folders


def test_ablations_measure_each_network_once(command, monkeypatch, tmp_path):
    config, folder, metrics = command
    output = tmp_path / "out"
    shutil.copytree(folder / "out", output)
    (output / "pieces" / "softmax_0.json").unlink()
    passes = []

    def counted(network, *args, **kwargs):
        passes.append(network.name)
        return score_split(network, *args, **kwargs)

    monkeypatch.setattr(ablations_module, "score_split", counted)
    again = ablations(config, output)
    assert passes == ["softmax_0"] * 2  # the tuning images and the others
    assert again["ablations"] == metrics["ablations"]
    assert again["threshold_curves"] == metrics["threshold_curves"]


def test_ablations_train_what_is_missing(command, capsys, tmp_path):
    _, folder, _ = command
    shutil.copytree(folder / "runs" / "metric_0", tmp_path / "metric_0")
    last = max(int(path.name) for path in (tmp_path / "metric_0" / "checkpoints").iterdir())
    shutil.rmtree(tmp_path / "metric_0" / "checkpoints" / str(last))  # as if it had been stopped before its end
    changed = small(runs=str(tmp_path), train_missing=True, seeds=("metric_0",), varied=())
    changed.networks = {"metric_0": changed.networks.metric_0.to_dict()}
    assert not is_trained(network_config(changed, "metric_0"), tmp_path / "metric_0")
    metrics = ablations(changed, tmp_path / "out")
    assert f"training metric_0 into {tmp_path / 'metric_0'}, 1 of 1: about 35 minutes" in capsys.readouterr().out
    assert metrics["networks"]["metric_0"]["steps"] == last
    assert metrics["missing"] == []


def test_ablations_refuse_a_folder_of_another_run_in_one_line(tmp_path):
    config = small(runs=str(tmp_path), train_missing=True)
    other = network_config(config, "softmax_0")
    other.model.width = 8
    runs.claim_workdir(other, tmp_path / "softmax_0")
    with pytest.raises(ValueError, match=r"the network softmax_0: .*model.width: 8 there, 4 here") as caught:
        ablations(config, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not Path(tmp_path / "metric_0").exists()  # before any training


def test_ablations_without_any_network_say_how_to_train(tmp_path):
    config = small(runs=str(tmp_path), train_missing=False)
    with pytest.raises(ValueError, match=r"holds none of the networks; .*train_missing=True"):
        ablations(config, tmp_path / "out")
