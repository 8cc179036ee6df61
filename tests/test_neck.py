"""The objective with a neck, the projection, and training that starts from published weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distcam_jax import losses, training
from distcam_jax.models import check_search_space, create_model, search_features
from distcam_jax.training import loop, objectives, starting, validation
from tests.tiny_run import neck_config
from tests.torch_layout import resnet_keys, saved, tensors_of

pytestmark = pytest.mark.usefixtures("prepared_data")

generator = np.random.default_rng(0)
EMBEDDING = generator.random((8, 6), dtype=np.float32)
OUTPUT = generator.normal(size=(8, 3)).astype(np.float32)
LABELS = np.array([0, 0, 1, 1, 2, 2, 0, 1], np.int32)


def test_neck_objective_is_the_sum_of_identity_triplet_and_center_loss():
    config = neck_config(**{"optimizer.label_smoothing": 0.1})
    params = objectives.objective_params(config, 3, 6)
    means = jnp.zeros((3, 6)), jnp.zeros(3)
    given = jax.tree.map(jnp.asarray, (OUTPUT, EMBEDDING, LABELS))
    loss, scores, _ = objectives.objective(config, params, means, *given)
    np.testing.assert_array_equal(scores, OUTPUT)

    log_shares = OUTPUT - np.log(np.exp(OUTPUT).sum(axis=1, keepdims=True))
    smooth = np.full((8, 3), 0.1 / 3)
    smooth[np.arange(8), LABELS] += 0.9
    identity = -np.mean(np.sum(smooth * log_shares, axis=1))
    terms = []
    for i in range(8):
        apart = np.linalg.norm(EMBEDDING[i] - EMBEDDING, axis=1)
        farthest = max(apart[j] for j in range(8) if j != i and LABELS[j] == LABELS[i])
        nearest = min(apart[j] for j in range(8) if LABELS[j] != LABELS[i])
        terms.append(max(0.0, 0.3 + farthest - nearest))
    centers = np.asarray(params["centers"])
    squared = [np.sum((EMBEDDING[i] - centers[LABELS[i]]) ** 2) for i in range(8)]
    np.testing.assert_allclose(loss, identity + 0.7 * np.mean(terms) + 0.01 * np.mean(squared), rtol=1e-4)


def test_neck_objective_without_center_loss_has_no_parameters_of_its_own():
    assert objectives.objective_params(neck_config(**{"neck.center": 0.0}), 3, 6) == {}


def test_metric_objective_compares_the_projection_where_there_is_one():
    config = neck_config("metric", **{"metric.loss": "multi_similarity", "metric.auxiliary": 0.0})
    params = objectives.objective_params(config, 3, 5)
    projected = generator.random((8, 5), dtype=np.float32)
    means = jnp.zeros((3, 5)), jnp.zeros(3)
    given = jax.tree.map(jnp.asarray, (projected, EMBEDDING, LABELS))
    loss, _, means = objectives.objective(config, params, means, *given)
    np.testing.assert_allclose(loss, losses.multi_similarity(projected, LABELS), rtol=1e-6)
    np.testing.assert_allclose(means[0][2], projected[LABELS == 2].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        ("contrastive", lambda unit: losses.contrastive(unit, LABELS, metric="l1")),
        ("n_pair", lambda _: losses.n_pair(EMBEDDING, LABELS)),  # wants lengths
    ],
)
def test_metric_objective_normalises_before_the_distances_of_pairs(loss, wanted):
    changes = {
        "metric.loss": loss,
        "metric.auxiliary": 0.0,
        "metric.projection": 0,
        "evaluate.search.space": "embedding",
    }
    config = neck_config("metric", **changes)
    with config.unlocked():
        config.metric.normalize = True
    params = objectives.objective_params(config, 3, 6)
    given = jax.tree.map(jnp.asarray, (EMBEDDING, EMBEDDING, LABELS))
    found, *_ = objectives.objective(config, params, (jnp.zeros((3, 6)), jnp.zeros(3)), *given)
    unit = EMBEDDING / np.linalg.norm(EMBEDDING, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted(unit), rtol=1e-5)


def test_statistics_are_frozen_only_where_weights_are_there():
    config = neck_config(**{"start.freeze_statistics": True})
    optimizer, mesh = training.make_optimizer(config, lambda step: 0.0), training.create_mesh(jax.devices()[:1])
    graph, state = training.create_state(config, 3, optimizer, mesh)
    assert not nnx.merge(graph, state.params["model"], state.statistics, copy=True).bn1.use_running_average
    config.start.run = "runs/one"
    graph, state = training.create_state(config, 3, optimizer, mesh)
    model = nnx.merge(graph, state.params["model"], state.statistics, copy=True)
    assert model.bn1.use_running_average
    assert not model.head.norm.use_running_average


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neck.loss": "prototypes"}, r"unknown neck.loss 'prototypes'; choose one of contrastive, batch_hard"),
        ({"neck.distance": "l3"}, r"unknown neck.distance 'l3'; choose one of l1, "),
        ({"batch": 32}, r"config.batch must be 16 \(4 classes, 4 images of each\), got 32"),
        ({"accumulate": 2}, "config.accumulate must be 1 with config.sampler"),
        ({"sampler.classes": 11, "batch": 44}, "config.sampler.classes must be at most the 10 classes of digits"),
        ({"start.weights": "none.safetensors"}, "there is no file none.safetensors; check the path"),
        ({"evaluate.search.space": "gap"}, r"unknown evaluate.search.space 'gap'; choose one of embedding, "),
        (
            {"evaluate.search.space": "projection"},
            "'projection' needs a metric objective with config.metric.projection",
        ),
        ({"checkpoint.validation_images": 1}, "none of the first 1 images of split .* has another one of its class"),
    ],
)
def test_fit_refuses_what_cannot_be(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "create_mesh", lambda: training.create_mesh(jax.devices()[:1]))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        training.fit(neck_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def model():
    return create_model("resnet18", num_classes=3, width=4, stem="small", head="batch_norm_neck", rngs=nnx.Rngs(0))


def test_search_features_after_the_neck_are_the_normalised_embedding(model):
    head, embedding = model.head, generator.random((2, 32), dtype=np.float32)
    mean, var, scale = (generator.uniform(0.5, 2, 32).astype(np.float32) for _ in range(3))
    for variable, value in ((head.norm.mean, mean), (head.norm.var, var), (head.norm.scale, scale)):
        variable.set_value(jnp.asarray(value))
    head.eval()
    wanted = scale * (embedding - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(search_features(model, jnp.asarray(embedding), "neck"), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(search_features(model, jnp.asarray(embedding), "embedding"), embedding)


def test_check_search_space_refuses_an_unknown_name(model):
    with pytest.raises(ValueError, match="unknown search space 'gap'; choose one of embedding, projection, neck"):
        check_search_space(model, "gap")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, common_folder):
    """A run with a neck that starts from a file of weights, whose normalisations are frozen."""
    folder = tmp_path_factory.mktemp("neck")
    keys = resnet_keys((2, 2, 2, 2), expansion=1, width=4, classes=9, stem=3)
    tensors = tensors_of(keys)
    path = saved(folder / "weights.safetensors", tensors)
    changes = {"start.weights": str(path), "start.freeze_statistics": True, "checkpoint.validation_images": 20}
    changes |= {"optimizer.learning_rate": 0.0, "optimizer.weight_decay": 0.0, "neck.center_learning_rate": 0.0}
    config = neck_config(**changes, epochs=0.5)
    mesh = training.create_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTCAM_DATA_DIR", str(common_folder / "prepared"))
        patch.setattr(loop, "create_mesh", lambda: mesh)
        state = training.fit(config, folder / "run")
        path.unlink()
        again = training.fit(config, folder / "run")  # has begun, and goes on without the file
    assert int(again.step) == int(state.step)
    return config, tensors, state


def test_fit_starts_from_the_weights_of_a_file(trained):
    _, tensors, state = trained
    found = {path: leaf[...] for path, leaf in nnx.to_flat_state(state.params["model"])}
    for place, key in (
        (("conv1", "kernel"), "conv1.weight"),
        (("stages", 3, 1, "conv2", "kernel"), "layer4.1.conv2.weight"),
    ):
        np.testing.assert_array_equal(found[place], tensors[key].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(found["bn1", "scale"], tensors["bn1.weight"])


def test_fit_with_frozen_statistics_moves_those_of_the_neck_alone(trained):
    _, tensors, state = trained
    found = {path: leaf[...] for path, leaf in nnx.to_flat_state(state.statistics)}
    np.testing.assert_array_equal(found["bn1", "mean"], tensors["bn1.running_mean"])
    np.testing.assert_array_equal(found["stages", 2, 0, "bn2", "var"], tensors["layer3.0.bn2.running_var"])
    assert np.any(found["head", "norm", "mean"] != 0)


def test_validation_of_a_search_is_recall_at_1_by_the_neck(trained):
    config, _, state = trained
    mesh = training.create_mesh(jax.devices()[:1])
    data = loop.load_split(config, "tune")
    found = validation.make_validation(config, 10, mesh, data)(state)
    graph, _ = training.create_state(config, 10, training.make_optimizer(config, lambda step: 0.0), mesh)
    model = nnx.merge(graph, state.params["model"], state.statistics, copy=True)
    model.eval()
    (batch,) = validation.make_eval_batches(data.source, batch_size=20, image_size=32)
    embed = jax.jit(lambda images: model.head.neck(model(images)[1]["embedding"]))
    features = np.asarray(embed(training.normalize(jnp.asarray(batch["image"]), config)), np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    alike = features @ features.T
    np.fill_diagonal(alike, -np.inf)
    labels = batch["label"]
    searched = [i for i in range(20) if np.sum(labels == labels[i]) > 1]
    assert found == pytest.approx(np.mean([labels[alike[i].argmax()] == labels[i] for i in searched]))


def test_start_refuses_a_run_and_weights_together():
    config = neck_config(**{"start.run": "runs/one", "start.weights": "weights.safetensors"})
    with pytest.raises(ValueError, match=r"a run, runs/one, and weights, weights.safetensors; give one"):
        starting.starting_config(config)
