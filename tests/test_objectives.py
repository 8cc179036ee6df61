"""Which loss a configuration trains with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distcam_jax import losses, training
from distcam_jax.training import objectives
from tests.tiny_run import tiny_config

rng = np.random.default_rng(0)
EMBEDDING = rng.random((12, 6), dtype=np.float32)
LABELS = np.array([0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 0], np.int32)
EMPTY = np.zeros((4, 6), np.float32), np.zeros(4, np.float32)


def loss_of(**changes):
    config = tiny_config("metric", **{f"metric.{name}": value for name, value in {"auxiliary": 0.0, **changes}.items()})
    params = objectives.objective_params(config, 4, 6)
    loss, scores, means = objectives.objective(
        config, params, *jax.tree.map(jnp.asarray, (EMPTY, EMBEDDING, EMBEDDING, LABELS))
    )
    return float(loss), np.asarray(scores), means, params


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"loss": "contrastive"}, lambda: losses.contrastive(EMBEDDING, LABELS, metric="l1")),
        (
            {"loss": "contrastive", "distance": "l2", "margin": 0.5},
            lambda: losses.contrastive(EMBEDDING, LABELS, metric="l2", margin=0.5),
        ),
        ({"loss": "batch_hard_triplet"}, lambda: losses.batch_hard_triplet(EMBEDDING, LABELS, metric="l1", margin=0.3)),
        (
            {"loss": "semi_hard_triplet", "distance": "squared_l2"},
            lambda: losses.semi_hard_triplet(EMBEDDING, LABELS, metric="squared_l2", margin=0.2),
        ),
        ({"loss": "n_pair", "margin": 0.5}, lambda: losses.n_pair(EMBEDDING, LABELS)),
        ({"loss": "nt_xent"}, lambda: losses.nt_xent(EMBEDDING, LABELS)),
        ({"loss": "multi_similarity"}, lambda: losses.multi_similarity(EMBEDDING, LABELS)),
    ],
)
def test_objective_over_pairs_is_the_named_loss_and_decides_by_the_class_means(changes, wanted):
    loss, scores, means, params = loss_of(**changes)
    np.testing.assert_allclose(loss, float(wanted()), rtol=1e-6)
    assert "proxies" not in params
    centres = np.stack([EMBEDDING[label == LABELS].mean(axis=0) for label in range(4)])
    np.testing.assert_allclose(means[0], centres, rtol=1e-5)
    distances = np.abs(EMBEDDING[:, None] - centres).sum(axis=2)
    np.testing.assert_array_equal(scores.argmax(axis=1), distances.argmin(axis=1))


def test_objective_of_proxies_is_proxy_nca_in_the_configured_distance():
    loss, scores, _, params = loss_of(loss="proxy_nca")
    distances = np.abs(EMBEDDING[:, None] - np.asarray(params["proxies"])).sum(axis=2)
    own = np.eye(4, dtype=bool)[LABELS]
    terms = [row[y] + np.log(np.exp(-row[~mine]).sum()) for row, y, mine in zip(distances, LABELS, own, strict=True)]
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(scores, -distances, rtol=1e-5)


@pytest.mark.parametrize("name", ["sphereface", "cosface", "arcface"])
def test_objective_with_an_angular_margin_is_larger_than_without(name):
    loss, scores, _, params = loss_of(loss=name)
    directions = np.asarray(params["proxies"])
    lengths = np.linalg.norm(EMBEDDING, axis=1)[:, None] * np.linalg.norm(directions, axis=1)
    np.testing.assert_allclose(scores, EMBEDDING @ directions.T / lengths, rtol=1e-4, atol=1e-6)
    without = {"sphereface": 1.0, "cosface": 0.0, "arcface": 0.0}[name]
    logits = 64 * scores
    plain = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(12), LABELS])
    np.testing.assert_allclose(loss_of(loss=name, margin=without)[0], plain, rtol=1e-4)
    assert loss > plain


@pytest.mark.parametrize("name", objectives.METRIC_LOSSES)
def test_every_loss_trains_a_network(name):
    config = tiny_config("metric", **{"metric.loss": name, "metric.auxiliary": 0.0, "optimizer.weight_decay": 0.0})
    mesh = training.create_mesh(jax.devices()[:1])
    optimizer = training.make_optimizer(config, lambda step: 0.01)
    graph, state = training.create_state(config, 10, optimizer, mesh)
    batch = {"image": rng.random((16, 32, 32, 3), dtype=np.float32), "label": np.arange(16, dtype=np.int32) // 4}
    before = jax.device_get(state.params["model"])
    state, metrics = training.make_train_step(config, graph, optimizer)(state, training.shard_batch(batch, mesh))
    assert all(np.isfinite(value) for value in jax.device_get(metrics).values())
    assert metrics["gradient_norm"] > 0
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params["model"]))
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", ["loss", "prototypes", "distance"])
def test_check_objective_refuses_an_unknown_name(name):
    with pytest.raises(ValueError, match=rf"unknown metric.{name} 'other'; choose one of \w+, "):
        objectives.check_objective(tiny_config("metric", **{f"metric.{name}": "other"}))
