from pathlib import Path

import pytest
from flax import nnx

from configs import ilsvrc2012, table1, tiny_imagenet
from distcam_jax import training
from distcam_jax.evaluators import table1 as evaluator
from distcam_jax.evaluators.table1_networks import find_networks
from distcam_jax.evaluators.table1_splits import check_splits, shared_images
from tests.tiny_table import empty_run, tiny_table, weights_file
from tests.torch_layout import resnet_keys, saved, tensors_of

pytestmark = pytest.mark.usefixtures("prepared_data")


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
        ({"backbones": ()}, "config.backbones is empty; choose some of .*resnet18"),
        ({"backbones": ("resnet18", "resnet18")}, "config.backbones names resnet18 twice"),
        ({"evaluate.methods": ("cam", "uniform")}, "must hold dist_cam"),
        ({"evaluate.methods": ("cam", "dist_cam")}, "must hold uniform, which is a baseline"),
        ({"evaluate.eps": 0.0}, "config.evaluate.eps: want a positive finite number, got 0.0"),
        ({"evaluate.norm": "l3"}, "config.evaluate.norm: want one of 'sum', .*, got 'l3'"),
        ({"input.image_size": 0}, "config.input.image_size must be positive, got 0"),
        ({"input.num_workers": -1}, "config.input.num_workers must be 0 or more, got -1"),
        ({"seed": -1}, "config.seed must be 0 or more, got -1"),
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


# ---- which images


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [
        ("train[:99%]", "train[99%:]", 0),
        ("validation[:5%]", "validation[5%:]", 0),
        ("train", "validation", 0),
        ("train[:50%]", "train[25%:75%]", 30),
        ("validation", "validation", 40),
        ("train[:10]+validation[-4:]", "train[6:50]+validation[30:38]", 6),
        ("train[-30:]", "train[:91]", 1),
    ],
)
def test_shared_images_are_those_counted_by_hand(a, b, count):
    sizes = {"train": 120, "validation": 40}
    assert shared_images(a, b, sizes) == shared_images(b, a, sizes) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input.tune_split": "test"}, r"config\.input\.tune_split is 'test', which shares 20 images with .*'test'"),
        (
            {"input.tune_split": "test[:12]", "input.eval_split": "test[10:]"},
            r"tune_split is 'test\[:12\]', which shares 2 images with config\.input\.eval_split 'test\[10:\]'",
        ),
        ({"input.eval_split": "validation+test"}, "tune_split is 'validation', which shares 20 images"),
        ({"input.train_split": "train+test[:1]"}, r"config\.input\.train_split is .*shares 1 images"),
        ({"input.tune_split": "test[:50%]", "input.eval_split": "test[50%:]"}, None),
        ({"input.tune_split": "train[:5]"}, None),  # published weights have seen all of them anyway
    ],
)
def test_check_splits_refuses_to_report_images_that_were_used(changes, message, tmp_path):
    (tmp_path / "resnet18.safetensors").touch()
    config = tiny_table(weights=str(tmp_path), **changes)
    if message is None:
        check_splits(config, find_networks(config))
        return
    with pytest.raises(ValueError, match=message):
        check_splits(config, find_networks(config))


def test_check_splits_looks_at_what_a_run_was_trained_on(tmp_path):
    empty_run(tmp_path / "resnet18_metric", **{"input.train_split": "train+test[18:]"})
    config = tiny_table(runs=str(tmp_path))
    with pytest.raises(ValueError, match=r"resnet18_metric is trained on 'train.test.18:.', which shares 2 images"):
        check_splits(config, find_networks(config))


# ---- before the work


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "is not a whole safetensors file"),
        (lambda path: path.write_bytes(b""), "is not a whole safetensors file"),
        (lambda path: nan_weights(path), r"NaN, infinite or a negative variance \(1\): layer2.0.bn1.bias"),
        (lambda path: path.write_bytes(path.with_name("resnet18.safetensors").read_bytes()), "it holds another one"),
    ],
    ids=["cut off", "empty", "nan", "another"],
)
def test_table1_reads_all_weights_before_it_measures_any(spoil, message, tmp_path):
    for name in ("resnet18", "resnet50"):
        path = weights_file(tmp_path / "weights" / f"{name}.safetensors", name)
    spoil(path)
    with pytest.raises(ValueError, match=rf"(?s)resnet50\.safetensors .*{message}"):
        evaluator.table1(tiny_table(weights=str(tmp_path / "weights")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def nan_weights(path):
    tensors = tensors_of(resnet_keys((3, 4, 6, 3), expansion=4, width=4, classes=10, stem=3))
    tensors["layer2.0.bn1.bias"][3] = float("nan")
    saved(path, tensors)


def test_table1_refuses_splits_that_share_images_before_it_measures(tmp_path):
    weights_file(tmp_path / "weights" / "resnet18.safetensors")
    config = tiny_table(weights=str(tmp_path / "weights"), **{"input.tune_split": "test[:5]"})
    with pytest.raises(ValueError, match="shares 5 images"):
        evaluator.table1(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_table1_refuses_a_run_without_a_finished_checkpoint(tmp_path):
    empty_run(tmp_path / "runs" / "resnet18_metric")
    with pytest.raises(ValueError, match="resnet18_metric holds no finished checkpoint yet; train first"):
        evaluator.table1(tiny_table(runs=str(tmp_path / "runs")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["metrics.json", "prototypes/resnet18_weights.safetensors"])
def test_table1_refuses_a_place_that_it_cannot_write_to(file, tmp_path):
    weights_file(tmp_path / "weights" / "resnet18.safetensors")
    path = tmp_path / "out" / file
    path.mkdir(parents=True)  # a folder of the file's name: what no user may overwrite, root included
    with pytest.raises(OSError, match=f"cannot write .*{path.name}: it is a folder"):
        evaluator.table1(tiny_table(weights=str(tmp_path / "weights")), tmp_path / "out")
    assert [found for found in (tmp_path / "out").rglob("*") if found.is_file()] == []


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
