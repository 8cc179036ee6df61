"""Checkpoints of a training run: Orbax writes the state and Grain's iterator state of one step together.

A save is atomic (Orbax renames a finished folder), so a killed process leaves whole checkpoints only; should a file
break later, restoring walks back to the newest step that still reads, and a run that goes on from there writes the
later steps anew.
"""

from pathlib import Path

import grain
import jax
import orbax.checkpoint as ocp
from absl import logging


def checkpoint_manager(
    workdir: str | Path, *, keep: int = 2, asynchronous: bool = True, read_only: bool = False
) -> ocp.CheckpointManager:
    """Opens the `checkpoints` folder of a run.

    Args:
        workdir: the run's folder; `checkpoints` is made inside.
        keep: newest checkpoints that stay, at least 1.
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
        max_to_keep=keep, enable_async_checkpointing=asynchronous, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(directory, options=options)


def save(manager: ocp.CheckpointManager, step: int, state, iterator) -> None:
    """Saves the training state and where the data stands, as checkpoint `step`.

    Args:
        manager: from `checkpoint_manager`.
        step: finished training steps.
        state: any pytree of JAX arrays.
        iterator: the Grain iterator that fed the step.

    Raises:
        ValueError: when there is a checkpoint of this or a later step, which Orbax would keep and drop this one.

    Examples:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> batches = iter(grain.MapDataset.range(9).to_iter_dataset())
        >>> with tempfile.TemporaryDirectory() as workdir, checkpoint_manager(workdir) as manager:
        ...     save(manager, 4, {"weight": jnp.ones(2)}, batches)
        ...     step, state = restore_latest(manager, {"weight": jnp.zeros(2)}, batches)
        >>> step, state["weight"].tolist()
        (4, [1.0, 1.0])
    """
    items = {"state": ocp.args.StandardSave(state), "data": grain.checkpoint.CheckpointSave(iterator)}
    if not manager.save(step, args=ocp.args.Composite(**items)):
        raise ValueError(f"step {step} cannot be saved: {manager.directory} holds step {manager.latest_step()}")


def _abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def restore_latest(manager: ocp.CheckpointManager, state, iterator=None):
    """Restores the newest checkpoint that reads, skipping broken ones with a warning.

    Args:
        manager: from `checkpoint_manager`.
        state: a pytree of JAX arrays of the shapes, types and shardings to restore to.
        iterator: a Grain iterator that is set to where the run stood, so that the run can go on: broken steps after
            the restored one are then deleted to make room. None only reads, and removes nothing.

    Returns:
        `(step, state)`, or None when the run has no checkpoint yet.

    Raises:
        ValueError: when there are checkpoints and none of them reads.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        items: dict[str, ocp.args.CheckpointArgs] = {"state": ocp.args.StandardRestore(_abstract(state))}
        if iterator is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(iterator)
        try:
            restored = manager.restore(step, args=ocp.args.Composite(**items))["state"]
        # Orbax and TensorStore raise many types for a broken folder (KeyError, FileNotFoundError, XlaRuntimeError...).
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            logging.warning("checkpoint %d in %s does not read (%s)", step, manager.directory, reason)
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
