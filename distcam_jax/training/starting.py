"""Training that starts from weights that are there: of another run, or published ones of ImageNet."""

import dataclasses
import json
from pathlib import Path

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from distcam_jax import checkpoints, runs
from distcam_jax.models import Backbone
from distcam_jax.models.pretrained import load_torch_weights
from distcam_jax.training.optimizers import learning_rate_schedule, make_optimizer
from distcam_jax.training.state import TrainState, build_model, create_state, evaluation_weights


def restore_model(
    config: ml_collections.ConfigDict, workdir: str | Path, num_classes: int, mesh: Mesh
) -> tuple[int, Backbone]:
    """The model of a run, with the weights of its newest checkpoint or of its best.

    Where training kept a moving average of the weights, it is the average that is loaded.

    Args:
      config: the run's configuration; `evaluate.checkpoint` says which checkpoint.
      workdir: the run's folder.
      num_classes: classes c of its training data.
      mesh: from `create_mesh`.

    Returns:
      The steps behind the weights, and the model in training mode.

    Raises:
      ValueError: when the folder holds no checkpoint that fits the configuration.
    """
    optimizer = make_optimizer(config, learning_rate_schedule(config, 1, 1.0))
    graph, state = create_state(config, num_classes, optimizer, mesh)
    if not (Path(workdir) / "checkpoints").is_dir():
        raise ValueError(
            f"{workdir} holds no checkpoints; train first: python train.py --config=... --workdir={workdir}"
        )
    restore = {"latest": checkpoints.restore_latest, "best": checkpoints.restore_best}[config.evaluate.checkpoint]
    with checkpoints.checkpoint_manager(workdir, read_only=True) as manager:
        restored = restore(manager, state)
    if restored is None:
        raise ValueError(f"{workdir} holds no finished checkpoint yet; train first, or wait for the first one")
    step, state = restored
    return step, nnx.merge(graph, *evaluation_weights(config, state), copy=True)


def starting_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
    """The configuration of the run that `start.run` names, or None where training starts from random weights.

    Raises:
      ValueError: when the folder holds no run, or one of another model; names the keys that differ.
    """
    folder = config.start.run if "start" in config else ""
    if not folder:
        return None
    if config.start.get("weights", ""):
        raise ValueError(
            f"config.start has both a run, {folder}, and weights, {config.start.weights}; give one of them"
        )
    made = runs.load_run_config(folder)
    # Through JSON, which the other has been through: a tuple is a list there.
    there, here = (json.loads(json.dumps({"model": one.model.to_dict()})) for one in (made, config))
    there, here = runs.flatten(there), runs.flatten(here)
    differ = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name) and name != "model.drop_rate"
    ]
    if differ:
        raise ValueError(f"config.start.run: {folder} holds a run of another model ({'; '.join(differ)})")
    made.evaluate.checkpoint = config.start.checkpoint
    return made


def starting_weights(config: ml_collections.ConfigDict, num_classes: int) -> Backbone | None:
    """The model with the weights that `start.weights` names, or None where it names none.

    Args:
      config: see `configs/`; `start.weights` is what `load_torch_weights` takes.
      num_classes: classes c of the training data.

    Returns:
      The model; its head is untrained.

    Raises:
      ValueError: when the weights are those of another model, or `load_torch_weights` refuses them.
      FileNotFoundError: when there is no such file.
    """
    weights = config.start.get("weights", "") if "start" in config else ""
    if not weights:
        return None
    model = build_model(config, num_classes)
    load_torch_weights(model, weights, head="drop")
    return model


def take_weights(state: TrainState, model: Backbone) -> TrainState:
    """A training state with the parameters and statistics of another model of the same kind; heads are left alone.

    Args:
      state: at step 0.
      model: of `restore_model` or `starting_weights`.

    Returns:
      The state, its arrays where they were.
    """
    _, params, statistics = nnx.split(model, nnx.Param, ...)
    started = dataclasses.replace(
        state,
        params=state.params | {"model": _replaced(state.params["model"], params)},
        statistics=_replaced(state.statistics, statistics),
    )
    return jax.device_put(started, jax.tree.map(lambda leaf: leaf.sharding, state))


def _replaced(target: nnx.State, source: nnx.State) -> nnx.State:
    """The target's tree with the source's values, but for a head."""
    values = dict(nnx.to_flat_state(source))
    return nnx.from_flat_state(
        [(path, leaf if path[0] == "head" else values[path]) for path, leaf in nnx.to_flat_state(target)]
    )
