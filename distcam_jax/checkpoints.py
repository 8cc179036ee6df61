"""Checkpoints of a training run: Orbax writes the state and where the data stands, of one step together.

A save is atomic (Orbax renames a finished folder), so a killed process leaves whole checkpoints only; should a file
break later, restoring walks back to the newest step that still reads, and a run that goes on from there writes the
later steps anew. The accuracies that were measured on the way stand in the run's `accuracies.json`.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from distcam_jax.checks import one_line
from distcam_jax.cluster import is_primary
from distcam_jax.files import write_atomically


def checkpoint_manager(
    workdir: str | Path, *, keep: int = 2, asynchronous: bool = True, read_only: bool = False
) -> ocp.CheckpointManager:
    """Opens the `checkpoints` folder of a run.

    Args:
        workdir: the run's folder; `checkpoints` is made inside.
        keep: newest checkpoints that stay, at least 1. The one with the best accuracy stays beside them.
        asynchronous: whether saving goes on in the background.
        read_only: for whoever only restores: nothing in the folder is made, changed or removed. Otherwise what an
            unfinished save left is cleared away, which would spoil the save of a run that is under way.

    Returns:
        Orbax's manager; close it (it is a context manager).

    Raises:
        ValueError: when keep is below 1.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as workdir, checkpoint_manager(workdir) as manager:
        ...     manager.latest_step() is None
        True
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1 checkpoint, got {keep}")
    directory = (Path(workdir) / "checkpoints").absolute()
    if read_only:
        options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # Orbax warns that the folder is read only, which was asked for
        try:
            return ocp.CheckpointManager(directory, options=options)
        finally:
            logging.set_verbosity(verbosity)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_NewestAndBest(directory, keep),
        enable_async_checkpointing=asynchronous,
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(directory, options=options)


class _NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Which checkpoints stay; with a policy of Orbax, one accuracy that does not read would close the whole folder."""

    def __init__(self, directory: Path, keep: int):
        self.directory, self.keep = directory, keep

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = {*steps[-self.keep :], _best_step(self.directory, steps)}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _accuracies(directory: Path) -> dict[str, float]:
    """The accuracy at each step at which one was measured; none where the file is missing or broken."""
    try:
        noted = json.loads((directory.parent / "accuracies.json").read_text())
        return {str(int(step)): float(accuracy) for step, accuracy in noted.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        logging.warning("%s does not read (%s)", directory.parent / "accuracies.json", error)
        return {}


def _best_step(directory: Path, steps: list[int]) -> int | None:
    """Of these steps the one with the best accuracy, the later one of two; None where none was measured."""
    accuracies = _accuracies(directory)
    return max((step for step in steps if str(step) in accuracies), key=lambda s: (accuracies[str(s)], s), default=None)


@contextlib.contextmanager
def open_checkpoints(workdir: str | Path, *, keep: int) -> Iterator[ocp.CheckpointManager]:
    """The `checkpoint_manager` of a run that trains: at the end, whatever ends it, the save under way is finished.

    Raises:
        OSError: when that save cannot be written, unless another error is under way.
    """
    manager = checkpoint_manager(workdir, keep=keep)
    try:
        yield manager
    except BaseException:
        with contextlib.suppress(Exception):
            manager.close()
        raise
    finish(manager)
    manager.close()


def save(
    manager: ocp.CheckpointManager, step: int, state: Any, iterator: Any, *, accuracy: float | None = None
) -> None:
    """Saves the training state and where the data stands, as checkpoint `step`.

    Args:
        manager: from `checkpoint_manager`.
        step: finished training steps.
        state: any pytree of JAX arrays.
        iterator: what fed the step: its `get_state()` gives values that JSON can hold, the same in every process.
        accuracy: on held-out images, where it was measured; the checkpoint with the largest one is kept.

    Raises:
        ValueError: when there is a checkpoint of this or a later step, which Orbax would keep and drop this one.
        OSError: when this checkpoint, or the one before it, cannot be written.

    Examples:
        >>> import tempfile
        >>> import grain
        >>> import jax.numpy as jnp
        >>> batches = iter(grain.MapDataset.range(9).to_iter_dataset())
        >>> with tempfile.TemporaryDirectory() as workdir, checkpoint_manager(workdir) as manager:
        ...     save(manager, 4, {"weight": jnp.ones(2)}, batches)
        ...     step, state = restore_latest(manager, {"weight": jnp.zeros(2)}, batches)
        >>> step, state["weight"].tolist()
        (4, [1.0, 1.0])
    """
    items = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(iterator.get_state())}
    _check_room(Path(manager.directory), state)
    with _as_os_error(manager):
        if is_primary():
            _note_accuracy(Path(manager.directory), step, accuracy)
        saved = manager.save(step, args=ocp.args.Composite(**items))
    if not saved:
        raise ValueError(f"step {step} cannot be saved: {manager.directory} holds step {manager.latest_step()}")


def _check_room(directory: Path, state: Any) -> None:
    """Refuses a save for which the disk has no room, before anything is written."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            f"a checkpoint of {needed / 1e6:.1f} MB cannot be written to {directory}, whose disk has "
            f"{free / 1e6:.1f} MB left; the ones before are kept. Make room; the same command goes on from them"
        )


def _note_accuracy(directory: Path, step: int, accuracy: float | None) -> None:
    """Writes it beside those of earlier steps; what stands there of later ones comes from a run that was undone."""
    noted = _accuracies(directory)
    kept = {name: value for name, value in noted.items() if int(name) < step}
    kept |= {} if accuracy is None else {str(step): accuracy}
    if kept != noted:
        text = json.dumps(kept, indent=2) + "\n"
        write_atomically(directory.parent / "accuracies.json", lambda temporary: temporary.write_text(text))


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until the save under way is written; an OSError says that it cannot be."""
    with _as_os_error(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _as_os_error(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise for a full disk and the like into an OSError."""
    try:
        yield
    except Exception as error:  # of many types: ValueError, RuntimeError, XlaRuntimeError...
        reason = one_line(error)[-300:]
        raise OSError(
            f"a checkpoint cannot be written to {manager.directory} ({reason}); the ones before are kept. Make room or "
            "mend the folder; the same command goes on from them"
        ) from error


def _abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def restore_latest(
    manager: ocp.CheckpointManager, state: Any, iterator: Any = None, *, agree: Callable[[bool], bool] = bool
):
    """Restores the newest checkpoint that reads, skipping broken ones with a warning.

    Args:
        manager: from `checkpoint_manager`.
        state: a pytree of JAX arrays of the shapes, types and shardings to restore to; the devices may be others than
            those that saved.
        iterator: what is to go on where the run stood, through its `set_state`: broken steps after the restored one
            are then deleted to make room. None only reads, and removes nothing.
        agree: whether something holds in all processes that restore together, asked in each of them.

    Returns:
        `(step, state)`, or None when the run has no checkpoint yet.

    Raises:
        ValueError: when there are checkpoints and none of them reads.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        restored = _restore(manager, step, state, iterator)
        if not agree(restored is not None):
            continue
        if iterator is not None:
            # Orbax drops, without a word, the save of a step that is not later than all it holds.
            for broken in (later for later in steps if later > step):
                logging.warning("deleting the broken checkpoint %d in %s", broken, manager.directory)
                manager.delete(broken)
        return step, restored
    if steps:
        raise ValueError(
            f"none of the checkpoints {steps} in {manager.directory} fits this configuration or reads; the warnings "
            "above say why. Use the configuration they were made with, or move the folder away to train anew"
        )
    return None


def restore_best(manager: ocp.CheckpointManager, state: Any):
    """Restores the checkpoint with the best accuracy on held-out images.

    Args:
        manager: from `checkpoint_manager`.
        state: see `restore_latest`.

    Returns:
        `(step, state)`.

    Raises:
        ValueError: when no checkpoint has an accuracy, or the best does not read.
    """
    step = _best_step(Path(manager.directory), list(manager.all_steps()))
    if step is None:
        raise ValueError(
            f"no checkpoint in {manager.directory} has an accuracy: the run was trained with "
            "config.checkpoint.validation_images=0. Use config.evaluate.checkpoint=latest"
        )
    restored = _restore(manager, step, state)
    if restored is None:
        raise ValueError(
            f"the best checkpoint, {step} in {manager.directory}, does not fit this configuration or does not read; "
            "the warning above says why. Use config.evaluate.checkpoint=latest"
        )
    return step, restored


def _restore(manager: ocp.CheckpointManager, step: int, state: Any, iterator: Any = None) -> Any:
    """The state of one step, or None, with a warning, where it does not read."""
    items: dict[str, ocp.args.CheckpointArgs] = {"state": ocp.args.StandardRestore(_abstract(state))}
    if iterator is not None:
        items["data"] = ocp.args.JsonRestore()
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**items))
        if iterator is not None:
            iterator.set_state(restored["data"])
    # Orbax and TensorStore raise many types for a broken folder (KeyError, FileNotFoundError, XlaRuntimeError...).
    except Exception as error:
        reason = one_line(error)[:300]
        logging.warning("checkpoint %d in %s does not read (%s)", step, manager.directory, reason)
        return None
    return restored["state"]
