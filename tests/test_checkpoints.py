"""Saving and restoring, and what is left of a run when its newest checkpoint is broken."""

import gc
import logging
import shutil

import cv2
import grain
import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distcam_jax.checkpoints import checkpoint_manager, restore_latest, save
from distcam_jax.input_pipeline import make_train_iterator

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    """Orbax may leave a coroutine of a failed restore behind, which complains when it is collected: here, not later."""
    yield
    gc.collect()


def state_of(value):
    return {"weight": jnp.full((2, 3), value, jnp.float32), "step": jnp.asarray(int(value), jnp.int32)}


def numbers():
    return iter(grain.MapDataset.range(100).to_iter_dataset())


@pytest.fixture
def folder(tmp_path):
    """A run with checkpoints of the steps 1, 2 and 3; the next number of its data is the step's."""
    data = numbers()
    with checkpoint_manager(tmp_path, keep=3, asynchronous=False) as manager:
        for step in (1, 2, 3):
            next(data)
            save(manager, step, state_of(step), data)
    return tmp_path


@pytest.fixture
def warnings(caplog):
    """The texts that were logged as warnings."""
    with caplog.at_level(logging.WARNING, logger="absl"):
        yield lambda: [record.getMessage() for record in caplog.records]


# ---- going on


def test_restore_latest_of_a_fresh_run_is_none(tmp_path):
    with checkpoint_manager(tmp_path) as manager:
        assert restore_latest(manager, state_of(0), numbers()) is None
    assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_restore_latest_goes_on_where_the_run_stood(asynchronous, tmp_path):
    encoded = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    source = [{"image": encoded, "label": i, "file_name": f"{i}.png"} for i in range(10)]

    def batches():
        return make_train_iterator(
            source, batch_size=3, image_size=4, seed=5, augmentation=None, num_threads=0, prefetch=1
        )

    unbroken = batches()
    want = [next(unbroken)["index"].tolist() for _ in range(6)]
    first = batches()
    with checkpoint_manager(tmp_path, asynchronous=asynchronous) as manager:
        for step in range(1, 5):
            next(first)
            save(manager, step, {"weight": jnp.full((300, 300), step, jnp.float32)}, first)
        next(first)  # what the first run reads after its last save is not part of it
    second = batches()
    with checkpoint_manager(tmp_path) as manager:
        assert sorted(manager.all_steps()) == [3, 4]
        step, state = restore_latest(manager, {"weight": jnp.zeros((300, 300))}, second)
    assert step == 4
    np.testing.assert_array_equal(state["weight"], np.full((300, 300), 4, np.float32))
    assert [next(second)["index"].tolist() for _ in range(2)] == want[4:]
    for iterator in (unbroken, first, second):
        iterator.close()


def test_restore_latest_puts_the_state_where_it_is_asked_to(tmp_path):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    values = np.arange(16, dtype=np.float32)
    with checkpoint_manager(tmp_path) as manager:
        save(manager, 1, {"a": jax.device_put(values, split), "b": jax.device_put(values, whole)}, numbers())
        manager.wait_until_finished()
        asked = {"a": jax.device_put(0 * values, whole), "b": jax.device_put(0 * values, split)}
        _, state = restore_latest(manager, asked)
    assert (state["a"].sharding, state["b"].sharding) == (whole, split)
    np.testing.assert_array_equal(state["a"], values)
    np.testing.assert_array_equal(state["b"], values)


# ---- broken checkpoints


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def halve_arrays(step):
    files = [file for file in (step / "state").rglob("d/*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def halve_everything(step):
    for file in step.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_state(step):
    shutil.rmtree(step / "state")


def empty_state(step):
    empty(step / "state")


def remove_data(step):
    shutil.rmtree(step / "data")


def halve_data(step):
    (step / "data" / "metadata").write_text('{"next_')


BREAKAGES = [empty, halve_arrays, halve_everything, remove_state, empty_state, remove_data, halve_data]


@pytest.mark.parametrize("spoil", BREAKAGES)
def test_restore_latest_walks_back_and_the_run_goes_on(spoil, folder, warnings):
    spoil(folder / "checkpoints" / "3")
    data = numbers()
    with checkpoint_manager(folder, keep=3) as manager:
        step, state = restore_latest(manager, state_of(0), data)
        assert (step, state["step"].item(), state["weight"].sum().item()) == (2, 2, 12)
        assert any(text.startswith("checkpoint 3 in ") and "does not read (" in text for text in warnings())
        assert next(data) == 2
        # Orbax by itself would drop the step without a word, as the broken one bears the same number.
        save(manager, 3, state_of(33), data)
    again = numbers()
    with checkpoint_manager(folder) as manager:
        step, state = restore_latest(manager, state_of(0), again)
    assert (step, state["step"].item()) == (3, 33)
    assert next(again) == 3


def test_restore_latest_walks_back_over_several(folder):
    empty(folder / "checkpoints" / "3")
    halve_arrays(folder / "checkpoints" / "2")
    data = numbers()
    with checkpoint_manager(folder, keep=3) as manager:
        step, state = restore_latest(manager, state_of(0), data)
        assert (step, state["step"].item(), next(data)) == (1, 1, 1)
        assert list(manager.all_steps()) == [1]
        save(manager, 2, state_of(22), data)
        manager.wait_until_finished()
        assert restore_latest(manager, state_of(0))[0] == 2


def test_restore_latest_without_data_reads_past_a_broken_iterator_and_removes_nothing(folder):
    remove_data(folder / "checkpoints" / "3")
    with checkpoint_manager(folder, read_only=True) as manager:
        assert restore_latest(manager, state_of(0))[0] == 3
    remove_state(folder / "checkpoints" / "3")
    with checkpoint_manager(folder) as manager:
        assert restore_latest(manager, state_of(0))[0] == 2
    assert (folder / "checkpoints" / "3").is_dir()


@pytest.mark.parametrize("spoil", [empty, halve_arrays])
def test_restore_latest_with_nothing_whole_tells_what_to_do(spoil, folder):
    for step in ("1", "2", "3"):
        spoil(folder / "checkpoints" / step)
    with (
        checkpoint_manager(folder) as manager,
        pytest.raises(ValueError, match=r"none of the checkpoints \[3, 2, 1\] in .*checkpoints .* move the folder"),
    ):
        restore_latest(manager, state_of(0), numbers())
    assert len(list((folder / "checkpoints").glob("[123]"))) == 3  # nothing is deleted unless an older one reads


@pytest.mark.parametrize(
    "other",
    [
        {"weight": jnp.zeros((2, 4)), "step": jnp.asarray(0)},
        {"weight": jnp.zeros((2, 3))},
        {"weight": jnp.zeros((2, 3)), "step": jnp.asarray(0), "more": jnp.zeros(1)},
    ],
)
def test_restore_latest_of_another_model_is_refused(other, folder, warnings):
    with checkpoint_manager(folder) as manager, pytest.raises(ValueError, match="Use the configuration"):
        restore_latest(manager, other, numbers())
    reasons = [text for text in warnings() if "does not read" in text]
    assert len(reasons) == 3
    assert all("\n" not in text for text in reasons)
    with checkpoint_manager(folder) as manager:
        assert restore_latest(manager, state_of(0), numbers())[0] == 3


# ---- saving


@pytest.mark.parametrize("step", [2, 3])
def test_save_refuses_a_step_that_would_be_dropped(step, folder):
    with (
        checkpoint_manager(folder, keep=3) as manager,
        pytest.raises(ValueError, match=f"step {step} cannot be saved: .* holds step 3"),
    ):
        save(manager, step, state_of(9), numbers())


def test_checkpoint_manager_keeps_the_newest(folder):
    with checkpoint_manager(folder, keep=1) as manager:
        save(manager, 4, state_of(4), numbers())
    assert {entry.name for entry in (folder / "checkpoints").iterdir()} == {"4"}


def test_checkpoint_manager_to_read_only_leaves_an_unfinished_save_alone(folder):
    unfinished = folder / "checkpoints" / "4.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    with checkpoint_manager(folder, read_only=True) as manager:
        assert restore_latest(manager, state_of(0), numbers())[0] == 3
    assert unfinished.is_dir()
    with checkpoint_manager(folder) as manager:
        assert restore_latest(manager, state_of(0), numbers())[0] == 3
    assert not unfinished.exists()


@pytest.mark.usefixtures("without_type_checks")
def test_checkpoint_manager_refuses_to_keep_none(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1 checkpoint, got 0"):
        checkpoint_manager(tmp_path, keep=0)
