import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from configs.ablations import get_config
from distcam_jax import runs, training
from distcam_jax.evaluators import ablations as ablations_module
from distcam_jax.evaluators.ablation_pass import (
    Scores,
    Variant,
    drawn_prototypes,
    drawn_rows,
    random_classes,
    score_split,
)
from distcam_jax.evaluators.ablation_rows import Ablation, Line, check_ablations, make_ablations, make_variants
from distcam_jax.evaluators.ablation_tables import Measured, Resamples, make_tables, summarize
from distcam_jax.evaluators.ablations import ablations, is_trained, network_config
from distcam_jax.evaluators.explain import Samples
from distcam_jax.evaluators.localize import THRESHOLDS, threshold_index, wrong_classes
from distcam_jax.evaluators.network import Network
from distcam_jax.localization import PROTOCOLS, best_iou, heatmap_to_box
from distcam_jax.prototypes import Prototypes
from distcam_jax.statistics import bootstrap_interval, paired_bootstrap_interval
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("prepared_data")

SIZE, CHANNELS, CLASSES = 32, 12, 5
MIX = np.random.default_rng(3).normal(size=(3, CHANNELS)).astype(np.float32)
ABSENT = 4


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


# ---- what is measured, against a loop


class PatchNetwork(Network):
    """Features are rectified mixtures of the mean colours of patches; scores a linear layer of their mean."""

    def __init__(self):
        config = ml_collections.ConfigDict({"input": {"image_size": SIZE}})
        linear = np.random.default_rng(5).normal(size=(CLASSES, CHANNELS)).astype(np.float32)
        self.__dict__.update(config=config, mesh=training.create_mesh(), class_weights=jnp.asarray(linear))

    def __call__(self, images):
        maps = patch_features(images)
        pooled = maps.mean((1, 2))
        output = pooled @ np.asarray(self.class_weights).T
        return jnp.asarray(output), {"pre_pool": jnp.asarray(maps), "embedding": jnp.asarray(pooled)}


def patch_features(images):
    b, h, w, _ = images.shape
    colours = images.reshape(b, h // 4, 4, w // 4, 4, 3).mean((2, 4))
    return np.maximum(colours @ MIX, 0).astype(np.float32)


def batches(count=36, batch=10):
    generator = np.random.default_rng(11)
    images = generator.random((count, SIZE // 4, SIZE // 4, 3)).astype(np.float32) ** 3
    images = images.repeat(4, axis=1).repeat(4, axis=2)
    labels = generator.integers(0, CLASSES, count).astype(np.int32)
    low = generator.integers(0, 12, (count, 2))
    boxes = np.concatenate([low, low + generator.integers(14, 28, (count, 2))], axis=1).astype(np.float32)
    for start in range(0, count, batch):
        rows = np.arange(start, min(start + batch, count))
        padded = np.pad(rows, (0, batch - len(rows)), mode="edge")
        yield {
            "image": images[padded],
            "label": labels[padded],
            "index": padded.astype(np.int32),
            "mask": np.arange(batch) < len(rows),
            "boxes": boxes[padded][:, None],
            "num_boxes": np.ones(batch, np.int32),
            "image_size": np.tile(np.array([40, 40], np.int32), (batch, 1)),
        }


SOME = THRESHOLDS[1::3]
COUNTS = np.array([7, 7, 7, 7, 0])
PROTOTYPES = Prototypes(
    (np.random.default_rng(8).random((CLASSES, CHANNELS)) * (COUNTS > 0)[:, None]).astype(np.float32),
    COUNTS,
    tuple("abcde"),
    {},
    "",
)
DRAWN = {
    f"{samples} samples, draw {draw}": np.random.default_rng((samples, draw)).random((CLASSES, CHANNELS), np.float32)
    for samples in (1, 5)
    for draw in range(5)
}


def channel_distance(query, reference, distance):
    if distance == "cosine":
        query, reference = query / np.linalg.norm(query), reference / np.linalg.norm(reference)
        return (query - reference) ** 2 / 2
    return np.abs(query - reference) if distance == "l1" else (query - reference) ** 2


def loop_heatmap(variant, features, asked, prototypes, linear, label):
    """One map in float64, channel by channel."""
    pooled = features.mean((0, 1))
    if variant.kind == "uniform":
        weights = np.ones(CHANNELS)
    elif variant.kind == "cam":
        weights = linear[label]
    else:
        distances = channel_distance(pooled, prototypes[asked], variant.distance)
        weights = 1 / (distances / distances.mean() + variant.eps)
        if variant.norm == "minmax":
            weights = (weights - weights.min()) / (weights.max() - weights.min())
        elif variant.norm != "sum":
            weights = weights / {"l2": np.sqrt((weights**2).sum()), "max": weights.max()}[variant.norm]
    return sum(weights[channel] * features[:, :, channel] for channel in range(CHANNELS))


def loop(variant, seed=2):
    """Hits at some thresholds, and whether the class is right, image by image."""
    protocol = dataclasses.replace(PROTOCOLS["ilsvrc"], scaling=variant.scaling, input_size=SIZE)
    linear = np.asarray(PatchNetwork().class_weights, np.float64)
    sets = {"all": PROTOTYPES.prototypes, **DRAWN}
    prototypes = sets[variant.prototypes].astype(np.float64)
    hits, right = [], []
    for batch in batches():
        for i in np.flatnonzero(batch["mask"]):
            label, index = int(batch["label"][i]), batch["index"][i : i + 1]
            if label == ABSENT:
                continue
            features = patch_features(batch["image"][i : i + 1])[0].astype(np.float64)
            pooled = features.mean((0, 1))
            sums = [channel_distance(pooled, prototypes[c], variant.distance).sum() for c in range(ABSENT)]
            asked = {
                "true": label,
                "predicted": int(np.argmin(sums)),
                "wrong": int(wrong_classes(np.array([label]), index, ABSENT, seed)[0]),
                "random": int(random_classes(index, ABSENT, seed)[0]),
            }[variant.asked]
            heatmap = loop_heatmap(variant, features, asked, prototypes, linear, label).astype(np.float32)
            boxes = [heatmap_to_box(heatmap, (40, 40), threshold=t, protocol=protocol) for t in SOME]
            hits.append([best_iou(box, batch["boxes"][i]) >= 0.5 for box in boxes])
            decided = int(np.argmax(linear @ pooled)) if variant.kind == "cam" else int(np.argmin(sums))
            right.append(decided == label)
    return np.array(hits), np.array(right)


ALL_VARIANTS = make_variants(get_config(), linear=True, varied=True)


@pytest.fixture(scope="module")
def scores():
    return score_split(PatchNetwork(), PROTOTYPES, batches(batch=16), ALL_VARIANTS, drawn=DRAWN, seed=2)


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_score_split_finds_of_each_variant_what_a_loop_finds(scores, name):
    hits, right = loop(ALL_VARIANTS[name])
    np.testing.assert_array_equal(scores.hits[name][:, 1::3], hits)
    np.testing.assert_array_equal(scores.class_right[name], right)


def test_score_split_tells_variants_apart(scores):
    changed = {name for name in ALL_VARIANTS if (scores.hits[name] != scores.hits["dist_cam"]).any()}
    alike = set(ALL_VARIANTS) - changed
    assert alike <= {"dist_cam", "norm=l2", "norm=max"}  # which give the same picture
    decisions = {scores.class_right[name].tobytes() for name in ALL_VARIANTS}
    assert len(decisions) > 5


def test_score_split_covers_what_is_asked_for():
    variants = set(ALL_VARIANTS.values())
    for field, values in {
        "norm": {"sum", "l2", "max", "minmax"},
        "eps": {1e-6, 1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0},
        "distance": {"l1", "l2", "cosine"},
        "asked": {"true", "predicted", "wrong", "random"},
        "scaling": {"max", "minmax"},
        "prototypes": {"all", *DRAWN},
    }.items():
        assert {dataclasses.replace(Variant(), **{field: value}) for value in values} <= variants


def test_score_split_leaves_out_padding_and_images_of_absent_classes(scores):
    rows = [(i, c) for one in batches() for i, c, m in zip(one["index"], one["label"], one["mask"], strict=True) if m]
    kept = [index for index, label in rows if label != ABSENT]
    assert len(kept) < len(rows) == 36
    np.testing.assert_array_equal(scores.index, kept)


def test_score_split_scores_trivial_boxes_by_their_overlap(scores):
    boxes = [one["boxes"][i, 0] for one in batches() for i in np.flatnonzero(one["mask"] & (one["label"] != ABSENT))]
    areas = np.array([np.prod(box[2:] - box[:2]) for box in boxes])
    expected = areas / 1600 >= 0.5  # every true box lies in the image
    np.testing.assert_array_equal(scores.hits["whole_image"], np.repeat(expected[:, None], len(THRESHOLDS), axis=1))
    inside = [np.prod(np.clip(box[2:], 4, 36) - np.clip(box[:2], 4, 36)) for box in boxes]
    overlap = np.array(inside) / (32 * 32 + areas - inside)
    np.testing.assert_array_equal(scores.hits["center_box"][:, 3], overlap >= 0.5)
    np.testing.assert_array_equal(scores.class_right["center_box"], scores.class_right["dist_cam"])


def test_scores_come_back_from_json(scores):
    back = Scores.from_json(json.loads(json.dumps(scores.to_json())))
    np.testing.assert_array_equal(back.index, scores.index)
    for name in scores.hits:
        np.testing.assert_array_equal(back.hits[name], scores.hits[name])
        np.testing.assert_array_equal(back.class_right[name], scores.class_right[name])


def test_random_classes_may_be_any_and_are_an_images_own():
    chosen = random_classes(np.arange(300), 4, seed=0)
    assert set(chosen.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(random_classes(np.arange(50, 60), 4, seed=0), chosen[50:60])
    assert np.any(random_classes(np.arange(300), 4, seed=1) != chosen)


def test_drawn_rows_take_a_few_of_each_class_and_another_few_each_draw():
    labels = np.array([0, 1, 2] * 10)
    rows = drawn_rows(labels, [1, 4], 3, seed=7)
    for draw in range(3):
        one, four = rows[f"1 samples, draw {draw}"], rows[f"4 samples, draw {draw}"]
        assert np.bincount(labels[one]).tolist() == [1, 1, 1]
        assert np.bincount(labels[four]).tolist() == [4, 4, 4]
        assert set(one) <= set(four)
    assert len({rows[f"4 samples, draw {draw}"].tobytes() for draw in range(3)}) == 3


def test_drawn_prototypes_are_means_of_the_rows_they_name():
    embeddings = np.arange(8, dtype=np.float32).reshape(4, 2)  # of the rows 3, 5, 6, 9
    samples = Samples(embeddings, np.array([1, 0, 1, 0]))
    rows = {"few": np.array([3, 5]), "more": np.array([3, 6, 9])}
    found = drawn_prototypes(samples, np.array([3, 5, 6, 9]), rows, 3)
    assert found["few"].tolist() == [[2, 3], [0, 1], [0, 0]]
    assert found["more"].tolist() == [[6, 7], [2, 3], [0, 0]]


# ---- from measurements to figures


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
def command(tmp_path_factory):
    """Two of three networks trained by the command, and what it wrote once it may train no more."""
    folder = tmp_path_factory.mktemp("ablations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTCAM_DATA_DIR", str(tmp_path_factory.getbasetemp() / "prepared"))
        config = small(runs=str(folder / "runs"))
        for name in ("metric_0", "softmax_0"):
            ablations_module._train(config, {name: network_config(config, name)})
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
