"""The training loop: nothing that ends a run loses more than the steps since its newest checkpoint."""

import itertools
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

from configs import quickstart
from distcam_jax import checkpoints, runs, training
from distcam_jax.input_pipeline import make_eval_batches, make_train_iterator
from distcam_jax.training import loop, validation
from tests.killed_run import killed_config
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("prepared_data")

ROOT = Path(__file__).parents[1]


def steps_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def environment(**changes):
    return {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1", **changes}


def restored(config, workdir, restore=checkpoints.restore_latest):
    optimizer = training.make_optimizer(config, training.learning_rate_schedule(config, 1, 1.0))
    _, state = training.create_state(config, 10, optimizer, training.create_mesh(jax.devices()[:1]))
    with checkpoints.checkpoint_manager(workdir, read_only=True) as manager:
        step, state = restore(manager, state)
    return step, jax.device_get(state)


# ---- to the end, and on from where it stood


def test_check_workdir_names_what_differs(tmp_path):
    runs.claim_workdir(tiny_config(), tmp_path)
    runs.check_workdir(tiny_config(log_every=7, sharding="fsdp", profile=3), tmp_path)
    with pytest.raises(ValueError, match=r"\(model.width: 4 there, 8 here\); choose another --workdir"):
        runs.check_workdir(tiny_config(**{"model.width": 8}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 12}, r"config.batch must be a multiple of 8 \(8 devices, config.accumulate 1\), got 12"),
        ({"accumulate": 4}, r"config.batch must be a multiple of 32 \(8 devices, config.accumulate 4\), got 16"),
        ({"accumulate": 0}, "config.accumulate must be positive, got 0"),
        ({"checkpoint.keep": 0}, "config.checkpoint.keep must be positive, got 0"),
        ({"average": 1.0}, r"config.average must lie in \[0, 1\), got 1.0"),
        ({"profile": -1}, "config.profile must be 0 or more, got -1"),
        ({"sharding": "model"}, "unknown sharding 'model'; choose one of replicated, fsdp"),
        ({"evaluate.checkpoint": "last"}, "config.evaluate.checkpoint must be latest or best, got 'last'"),
    ],
)
def test_fit_refuses_a_bad_configuration_and_leaves_no_folder(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        training.fit(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fit_refuses_a_configuration_that_lacks_a_key(tmp_path):
    config = tiny_config()
    del config["average"]
    with pytest.raises(ValueError, match="the configuration has no key average"):
        training.fit(config, tmp_path)


def test_fit_trains_to_the_end_and_a_second_call_changes_nothing(tmp_path):
    state = training.fit(tiny_config(), tmp_path)
    assert int(state.step) == 8
    assert json.loads((tmp_path / "config.json").read_text())["batch"] == 16
    assert list((tmp_path / "tensorboard").iterdir())
    chex.assert_trees_all_equal(jax.device_get(training.fit(tiny_config(), tmp_path)), jax.device_get(state))


def test_fit_resumed_after_an_interruption_equals_an_uninterrupted_run(tmp_path, monkeypatch):
    changes = {"average": 0.8, "accumulate": 2}
    whole = training.fit(tiny_config(**changes), tmp_path / "whole")
    saved = checkpoints.save

    def save_then_die(manager, step, *arguments, **options):
        saved(manager, step, *arguments, **options)
        manager.wait_until_finished()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        training.fit(tiny_config(**changes), tmp_path / "halved")
    monkeypatch.setattr(checkpoints, "save", saved)
    resumed = training.fit(tiny_config(**changes), tmp_path / "halved")
    chex.assert_trees_all_equal(jax.device_get(resumed), jax.device_get(whole))


def test_fit_writes_checkpoints_that_later_steps_do_not_touch(tmp_path):
    # Saving goes on in the background while the next steps reuse the state's memory.
    config = tiny_config(**{"checkpoint.every_steps": 1, "checkpoint.keep": 8})
    whole = training.fit(config, tmp_path)
    for step in range(4, 9):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    chex.assert_trees_all_equal(jax.device_get(training.fit(config, tmp_path)), jax.device_get(whole))


def test_fit_killed_at_twenty_random_moments_ends_with_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "tests.killed_run", str(tmp_path), "20", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = [int(line) for line in done.stdout.split()]
    assert len(seen) == 20
    assert seen == sorted(seen)
    assert any(a == b for a, b in itertools.pairwise(seen)), "no kill came before a checkpoint"
    config = killed_config()
    assert steps_in(tmp_path / "killed") == steps_in(tmp_path / "whole") == [148, 150]
    chex.assert_trees_all_equal(restored(config, tmp_path / "killed"), restored(config, tmp_path / "whole"))


# ---- what ends a run


def train_script(workdir, **options):
    return [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT}/configs/quickstart.py:metric",
        f"--workdir={workdir}",
        *("--config.model.width=4", "--config.input.image_size=32", "--config.batch=16"),
        *(f"--config.{name}={value}" for name, value in options.items()),
    ]


@pytest.fixture
def started():
    """Starts the script, with a session of its own, and returns once it has begun to train; ends what is left of it."""
    processes = []

    def start(command, workdir, settle=1.0):
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment(), start_new_session=True, **pipes))
        deadline = time.monotonic() + 120
        while not list(workdir.glob("tensorboard/*")) and processes[-1].poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(settle)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_train_script_saves_when_it_is_asked_to_stop_and_goes_on(number, workers, started, tmp_path):
    # No checkpoint is due: what is found is what the signal made the run save. A terminal signals the workers too.
    options = {"checkpoint.every_steps": 10**6, "log_every": 1, "epochs": 1000, "input.num_workers": workers}
    command, step = train_script(tmp_path / "run", **options), 0
    for _ in range(2):
        process = started(command, tmp_path / "run", settle=0.1 if workers else 1.0)  # workers may still be starting
        shutil.rmtree(tmp_path / "run" / "tensorboard")
        os.killpg(process.pid, number)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 128 + number, errors
        assert step == 0 or f" {step}/" in errors
        assert steps_in(tmp_path / "run")[-1] > step
        step = steps_in(tmp_path / "run")[-1]
        last = errors.strip().splitlines()[-1]
        assert last == f"train.py: stopped by {number.name} after step {step}, which is saved; the same command goes on"


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_train_script_that_is_killed_leaves_no_process_behind(started, tmp_path):
    process = started(train_script(tmp_path / "run", epochs=1000, **{"input.num_workers": 1}), tmp_path / "run")
    children = " ".join(path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")).split()
    process.kill()
    process.communicate(timeout=60)
    assert children
    deadline = time.monotonic() + 30
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(child) for child in children)


def is_running(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_fit_stops_at_a_loss_that_is_not_finite_and_names_step_and_images(tmp_path):
    # Looked at every fourth step only, the message still names the first bad step and the images of its batch.
    config = tiny_config("softmax", **{"optimizer.learning_rate": 1e30, "log_every": 4, "checkpoint.every_steps": 1})
    config.checkpoint.every_steps = 100
    with pytest.raises(
        FloatingPointError, match=r"the (loss|gradient norm) is \S+ at step \d, on the images"
    ) as raised:
        training.fit(config, tmp_path)
    told = json.loads((tmp_path / "not_finite.json").read_text())
    source = loop.load_split(config, "train").source
    batches = make_train_iterator(source, batch_size=16, image_size=32, seed=config.seed, augmentation=None)
    batch = [next(batches) for _ in range(told["step"])][-1]
    batches.close()
    assert told["images"] == [source[int(i)]["file_name"] for i in batch["index"]]
    assert ", ".join(told["images"][:3]) in str(raised.value)
    assert f"at step {told['step']}" in str(raised.value)
    # By hand: the first step's rate is 0 (warm-up) and leaves the network as it was, the second's is 5e29.
    assert told["step"] in (2, 3)


def test_fit_keeps_the_last_checkpoint_that_is_finite(tmp_path):
    config = tiny_config("softmax", **{"optimizer.learning_rate": 1e30, "checkpoint.every_steps": 1})
    with pytest.raises(FloatingPointError, match="the last checkpoint is kept"):
        training.fit(config, tmp_path)
    _, state = restored(config, tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


# Any file of this process ends at 40 kB, as on a disk that is full.
ON_A_FULL_DISK = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("prepared", "what", "mend"),
    [
        (False, "the data set", "make room or name another data_dir"),
        (
            True,
            "a checkpoint",
            "Make room or mend the folder; the same command goes on from them",
        ),
    ],
)
def test_train_script_says_in_one_line_what_cannot_be_written(prepared, what, mend, tmp_path, monkeypatch):
    if not prepared:
        monkeypatch.setenv("DISTCAM_DATA_DIR", str(tmp_path / "data"))
    else:
        loop.load_split(quickstart.get_config(), "train")
    command = train_script(tmp_path / "run", **{"checkpoint.every_steps": 5})
    limited = environment(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"))
    command = [sys.executable, "-c", ON_A_FULL_DISK, *command]
    done = subprocess.run(command, env=limited, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert line.startswith(f"train.py: {what} cannot be written to {tmp_path}")
    assert line.endswith(mend)
    assert not list(tmp_path.glob("run/checkpoints/[0-9]"))


def test_fit_on_a_full_disk_keeps_what_was_saved_before(tmp_path, monkeypatch):
    rooms = iter([10**9, 10**9, 100_000])
    room = shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room(10**9, 0, next(rooms)))
    with pytest.raises(OSError, match=r"of \d\.\d MB cannot be written .* has 0.1 MB left; the ones before are kept"):
        training.fit(tiny_config(**{"checkpoint.every_steps": 1}), tmp_path)
    assert steps_in(tmp_path) == [1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_fit_names_an_image_that_cannot_be_read(workers, tmp_path, monkeypatch):
    config = tiny_config(**{"input.num_workers": workers})
    data = loop.load_split(config, "train")
    examples = [data.source[i] for i in range(len(data.source))]
    examples[5] = {**examples[5], "image": examples[5]["image"][:200], "file_name": "spoilt.png"}
    monkeypatch.setattr(
        loop, "load_split", lambda *_: loop.Dataset(data.name, data.split, examples, *[("0",) * 10] * 2)
    )
    with pytest.raises(ValueError, match=r"image 'spoilt.png' ends early \(200 bytes\): fetch the file again"):
        training.fit(config, tmp_path)


# ---- what a run keeps and tells


def test_fit_keeps_the_newest_and_the_best_checkpoint(tmp_path, monkeypatch):
    accuracies = iter([0.2, 0.9, 0.5, 0.4])
    monkeypatch.setattr(validation, "_accuracy", lambda *_: next(accuracies))
    config = tiny_config(**{"checkpoint.every_steps": 2, "checkpoint.keep": 1, "checkpoint.validation_images": 20})
    training.fit(config, tmp_path)
    assert steps_in(tmp_path) == [4, 8]
    assert restored(config, tmp_path)[0] == 8
    assert restored(config, tmp_path, checkpoints.restore_best)[0] == 4


def test_restore_best_without_an_accuracy_says_what_to_use(tmp_path, copy_run):
    with pytest.raises(ValueError, match=r"has an accuracy: .* Use config.evaluate.checkpoint=latest"):
        restored(tiny_config(), copy_run("metric", tmp_path / "run"), checkpoints.restore_best)


@pytest.mark.parametrize("objective", ["softmax", "metric"])
def test_fit_measures_the_accuracy_on_held_out_images(objective, tmp_path, monkeypatch):
    config = tiny_config(objective, **{"checkpoint.every_steps": 8, "checkpoint.validation_images": 19})
    seen = []
    monkeypatch.setattr(loop.Progress, "validated", lambda self, step, accuracy: seen.append((step, accuracy)))
    state = jax.device_get(training.fit(config, tmp_path))
    model = training.build_model(config, 10)
    nnx.update(model, *jax.tree.map(jnp.asarray, (state.params["model"], state.statistics)))
    model.eval()
    graph, weights = nnx.split(model)
    compiled, right = jax.jit(lambda images: nnx.merge(graph, weights)(images)), []
    for batch in make_eval_batches(loop.load_split(config, "tune").source, batch_size=1, image_size=32):
        output, features = compiled(training.normalize(jnp.asarray(batch["image"]), config))
        if objective == "metric":
            distances = np.abs(np.asarray(features["embedding"]) - state.class_means).sum(axis=1)
            decided = np.argmin(np.where(state.class_counts > 0, distances, np.inf))
        else:
            decided = np.argmax(output)
        right.append(decided == batch["label"][0])
    assert seen == [(8, pytest.approx(np.mean(right[:19])))]


def test_fit_writes_a_profile_of_as_many_steps_as_asked(tmp_path):
    training.fit(tiny_config(profile=2), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
