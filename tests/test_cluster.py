"""Two processes on this machine that train as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distcam_jax import checkpoints, cluster, training
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("prepared_data")

ROOT = Path(__file__).parents[1]
SPLIT = {"sharding": "fsdp", "model.width": 8, "average": 0.5}  # a state that the devices share between them


def train_on_two(folder, changes, *options):
    """Trains in two processes of one device each and gives what each printed, and its errors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(exist_ok=True)
    # Only the first process writes to a cache of compiled programs. With one that holds what other tests compiled, it
    # would be so far ahead that its first exchange with the second one may run into JAX's limit of half a minute.
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "tests.cluster_run", str(folder), json.dumps(changes), str(port), *options]
    code = subprocess.run(command, cwd=ROOT, env=environment, timeout=300, check=False).returncode
    output, errors = (
        [(folder / f"{name}{number}").read_text() for number in range(2)] for name in ("output", "errors")
    )
    assert code == 0, "\n".join(text[-3000:] for text in errors)
    return output, errors


def restored(config, workdir, devices):
    optimizer = training.make_optimizer(config, training.learning_rate_schedule(config, 1, 1.0))
    _, state = training.create_state(config, 10, optimizer, training.create_mesh(devices))
    with checkpoints.checkpoint_manager(workdir, read_only=True) as manager:
        return checkpoints.restore_latest(manager, state)


def test_two_processes_train_and_resume_like_one(tmp_path):
    changes = {**SPLIT, "checkpoint.every_steps": 2, "checkpoint.validation_images": 20}
    config = tiny_config(**changes)
    train_on_two(tmp_path / "two", changes)
    run = tmp_path / "two" / "run"
    assert (run / "config.json").is_file()
    # The newest checkpoint breaks: both processes go back to the one before and end where they were.
    _, whole = restored(config, run, jax.devices())
    for file in (run / "checkpoints" / "8" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:20])
    _, errors = train_on_two(tmp_path / "two", changes)
    assert all("checkpoint 8 in" in text for text in errors)
    step, again = restored(config, run, jax.devices())
    assert step == 8
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(whole))
    alone = training.fit(config, tmp_path / "one")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), *map(jax.device_get, (whole, alone))
    )


def test_two_processes_stop_after_the_same_step_when_one_is_asked_to(tmp_path):
    changes = {"epochs": 100.0, "checkpoint.every_steps": 10000}
    output, _ = train_on_two(tmp_path, changes, "stop")
    said = {text.strip().splitlines()[-1] for text in output}
    assert len(said) == 1
    (step,) = (int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert said == {f"stopped by SIGTERM after step {step}, which is saved; the same command goes on"}


def test_a_checkpoint_of_eight_devices_restores_on_two(tmp_path):
    config = tiny_config(**SPLIT)
    trained = training.fit(config, tmp_path)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(trained))
    step, state = restored(config, tmp_path, jax.devices()[:2])
    assert step == 8
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {2}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(trained))


def test_join_cluster_alone_does_nothing(monkeypatch):
    for name in ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    cluster.join_cluster()
    assert not jax.distributed.is_initialized()


def test_join_cluster_tells_what_a_lonely_process_lacks(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=r"the processes of this job do not find each other .* JAX_PROCESS_ID"):
        cluster.join_cluster()


def test_agree_of_one_process_is_its_own_answer():
    assert cluster.agree(True)
    assert not cluster.agree(False)
