"""Two processes on this machine that train as one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from distcam_jax import checkpoints, cluster, training
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("prepared_data")

ROOT = Path(__file__).parents[1]
TRAIN = """
import sys, json
from pathlib import Path
from distcam_jax import cluster, scripts
from tests.tiny_run import tiny_config

def main():
    cluster.join_cluster()
    from distcam_jax.training import fit
    fit(tiny_config(**json.loads(sys.argv[2])), sys.argv[1])

if __name__ == "__main__":
    try:
        main()
    except cluster.Stopped as stopped:
        print(stopped)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_on_two(workdir, changes, *, stop=False):
    """Trains in two processes of one device each and gives what they printed; `stop` ends one of them by SIGTERM."""
    address, processes = f"127.0.0.1:{free_port()}", []
    for number in range(2):
        environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
            "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / f"compiled{number}"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-c", TRAIN, str(workdir), json.dumps(changes)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
    if stop:
        deadline = time.monotonic() + 120
        while not list(workdir.glob("tensorboard/*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)
    results = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return results


def restored(config, workdir, devices):
    optimizer = training.make_optimizer(config, training.learning_rate_schedule(config, 1, 1.0))
    _, state = training.create_state(config, 10, optimizer, training.create_mesh(devices))
    with checkpoints.checkpoint_manager(workdir, read_only=True) as manager:
        return checkpoints.restore_latest(manager, state)


def test_two_processes_train_and_resume_like_one(tmp_path):
    changes = {"checkpoint.every_steps": 2, "sharding": "fsdp", "model.width": 8, "checkpoint.validation_images": 20}
    config = tiny_config(**changes)
    train_on_two(tmp_path / "two", changes)
    assert (tmp_path / "two" / "config.json").is_file()
    # The newest checkpoint breaks: both processes go back to the one before and end where they were.
    _, whole = restored(config, tmp_path / "two", jax.devices())
    newest = tmp_path / "two" / "checkpoints" / "8"
    for file in (newest / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:20])
    results = train_on_two(tmp_path / "two", changes)
    assert all("checkpoint 8 in" in errors for _, errors in results)
    step, again = restored(config, tmp_path / "two", jax.devices())
    assert step == 8
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(whole))
    alone = training.fit(config, tmp_path / "one")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), *map(jax.device_get, (whole, alone))
    )


def test_two_processes_stop_after_the_same_step_when_one_is_asked_to(tmp_path):
    changes = {"epochs": 100.0, "checkpoint.every_steps": 10000}
    results = train_on_two(tmp_path, changes, stop=True)
    said = {output.strip().splitlines()[-1] for output, _ in results}
    assert len(said) == 1
    (step,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert said == {f"stopped by SIGTERM after step {step}, which is saved; the same command goes on"}


def test_a_checkpoint_of_eight_devices_restores_on_two(tmp_path):
    config = tiny_config(**{"sharding": "fsdp", "model.width": 8, "average": 0.5})
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
