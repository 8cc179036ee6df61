import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distcam_jax import checkpoints, runs, training
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("prepared_data")

ROOT = Path(__file__).parents[1]


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.random((size, 32, 32, 3), dtype=np.float32),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


def run_steps(config, devices, steps=3):
    mesh = training.create_mesh(devices)
    optimizer = training.make_optimizer(config, training.learning_rate_schedule(config, 10, 5))
    graph, state = training.create_state(config, 10, optimizer, mesh)
    step = training.make_train_step(config, graph, optimizer)
    for number in range(steps):
        state, metrics = step(state, training.shard_batch(batch_of(16, number), mesh))
    return jax.device_get(state), jax.device_get(metrics)


@pytest.mark.parametrize("objective", training.OBJECTIVES)
def test_train_step_is_the_same_on_eight_devices_and_one(objective):
    one = run_steps(tiny_config(objective), jax.devices()[:1])
    eight = run_steps(tiny_config(objective), jax.devices())
    chex.assert_trees_all_close(one, eight, rtol=2e-3, atol=2e-4)


def test_train_step_splits_the_batch_over_the_devices():
    mesh = training.create_mesh()
    image = training.shard_batch(batch_of(16), mesh)["image"]
    assert {shard.data.shape[0] for shard in image.addressable_shards} == {16 // len(jax.devices())}


def test_shard_batch_refuses_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="12 images does not divide evenly over 8 devices"):
        training.shard_batch(batch_of(12), training.create_mesh())


@pytest.mark.parametrize("objective", training.OBJECTIVES)
def test_train_step_learns_one_batch_by_heart(objective):
    config = tiny_config(objective)
    mesh = training.create_mesh(jax.devices()[:1])
    optimizer = training.make_optimizer(config, lambda step: 0.05)
    graph, state = training.create_state(config, 10, optimizer, mesh)
    step, batch = training.make_train_step(config, graph, optimizer), batch_of(16)
    losses = []
    for _ in range(30):
        state, metrics = step(state, training.shard_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 30


def test_train_step_keeps_class_means_near_the_embeddings_of_the_batch():
    config = tiny_config("metric", **{"optimizer.learning_rate": 0.0})
    mesh = training.create_mesh(jax.devices()[:1])
    optimizer = training.make_optimizer(config, lambda step: 0.0)
    graph, state = training.create_state(config, 10, optimizer, mesh)
    batch = batch_of(16)
    model = nnx.merge(graph, state.params["model"], state.statistics, copy=True)
    _, features = model(training.normalize(jnp.asarray(batch["image"]), config))
    state, _ = training.make_train_step(config, graph, optimizer)(state, training.shard_batch(batch, mesh))
    for label in range(10):
        own = np.asarray(features["embedding"])[batch["label"] == label]
        expected = own.mean(axis=0) if len(own) else np.zeros(own.shape[1])
        np.testing.assert_allclose(state.class_means[label], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state.class_counts, np.bincount(batch["label"], minlength=10))


def test_make_optimizer_decays_kernels_only():
    config = tiny_config(**{"optimizer.weight_decay": 0.1})
    optimizer = training.make_optimizer(config, lambda step: 1.0)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2), "log_scale": jnp.ones(())}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert np.all(np.asarray(updates["kernel"]) < 0)
    assert not np.any(updates["scale"])
    assert not np.any(updates["log_scale"])


def test_learning_rate_schedule_warms_up_then_falls_to_zero():
    schedule = training.learning_rate_schedule(tiny_config(), steps=100, steps_per_epoch=20)
    values = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(values, [0.0, 0.025, 0.05, 0.025, 0.0], atol=1e-7)


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
    config = tiny_config(**{"input.mean": (0.1, 0.2, 0.3), "input.std": (0.5, 1.0, 2.0)})
    np.testing.assert_allclose(training.normalize(jnp.ones((1, 1, 1, 3)), config)[0, 0, 0], [1.8, 0.8, 0.35], rtol=1e-6)


def test_build_model_refuses_an_unknown_objective():
    with pytest.raises(ValueError, match="unknown objective 'contrast'; choose one of softmax, metric"):
        training.build_model(tiny_config("contrast"), 10)


def test_check_workdir_names_what_differs(tmp_path):
    runs.claim_workdir(tiny_config(), tmp_path)
    runs.check_workdir(tiny_config(log_every=7), tmp_path)
    with pytest.raises(ValueError, match=r"\(model.width: 4 there, 8 here\); choose another --workdir"):
        runs.check_workdir(tiny_config(**{"model.width": 8}), tmp_path)


def test_fit_trains_to_the_end_and_a_second_call_changes_nothing(tmp_path):
    state = training.fit(tiny_config(), tmp_path)
    assert int(state.step) == 8
    assert json.loads((tmp_path / "config.json").read_text())["batch"] == 16
    assert list((tmp_path / "tensorboard").iterdir())
    chex.assert_trees_all_equal(jax.device_get(training.fit(tiny_config(), tmp_path)), jax.device_get(state))


def test_fit_resumed_after_an_interruption_equals_an_uninterrupted_run(tmp_path, monkeypatch):
    whole = training.fit(tiny_config(), tmp_path / "whole")
    saved = checkpoints.save

    def save_then_die(manager, step, *rest):
        saved(manager, step, *rest)
        manager.wait_until_finished()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        training.fit(tiny_config(), tmp_path / "halved")
    monkeypatch.setattr(checkpoints, "save", saved)
    resumed = training.fit(tiny_config(), tmp_path / "halved")
    chex.assert_trees_all_equal(jax.device_get(resumed), jax.device_get(whole))


def test_fit_writes_checkpoints_that_later_steps_do_not_touch(tmp_path):
    # Saving goes on in the background while the next steps reuse the state's memory.
    config = tiny_config(**{"checkpoint.every_steps": 1, "checkpoint.keep": 8})
    whole = training.fit(config, tmp_path)
    for step in range(4, 9):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    chex.assert_trees_all_equal(jax.device_get(training.fit(config, tmp_path)), jax.device_get(whole))


def test_fit_stops_at_a_loss_that_is_not_finite(tmp_path):
    config = tiny_config("softmax", **{"optimizer.learning_rate": 1e30, "log_every": 1})
    with pytest.raises(FloatingPointError, match="the loss is nan at step"):
        training.fit(config, tmp_path)


def test_train_script_killed_at_any_moment_continues_from_its_checkpoint(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT}/configs/quickstart.py:metric",
        f"--workdir={tmp_path}/run",
        *("--config.model.width=4", "--config.input.image_size=32", "--config.batch=16", "--config.epochs=0.1"),
        *("--config.checkpoint.every_steps=5", "--config.log_every=1"),
    ]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )

    def finished():  # while Orbax writes, the folder has a longer name
        return {int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdigit()}

    while not finished() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    kept = finished()
    assert kept, errors
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f" {max(kept)}/" in done.stderr
