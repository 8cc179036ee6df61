"""What training changes, and where it lies: the model, its optimizer and the mesh of devices."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distcam_jax.models import Backbone, create_model
from distcam_jax.models.layers import BatchNorm
from distcam_jax.training import objectives
from distcam_jax.training.optimizers import weight_average

SHARDINGS = ("replicated", "fsdp")
_SMALLEST_SHARDED = 2**14  # elements; a smaller array costs more to gather than it saves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and that a checkpoint holds.

    Attributes:
      step: finished steps. All randomness is drawn from keys folded from it and the seed.
      params: the model's parameters, and the objective's own.
      statistics: the model's batch-norm statistics.
      optimizer: optax's state.
      average: optax's state of the moving average over the model's parameters and statistics; None without one.
      class_means: running class means `[c, k]` of the metric objective, of what its loss compares.
      class_counts: samples each of them stands for `[c]`.
    """

    # Any: tree maps put shapes and host arrays where the arrays are.
    step: Any
    params: Any
    statistics: Any
    optimizer: Any
    average: Any
    class_means: Any
    class_counts: Any


def create_mesh(devices: list | None = None) -> Mesh:
    """One mesh with the single axis "data" over the devices (default: all of them)."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",))


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits this process's part of a batch over its devices.

    Args:
      batch: host arrays whose first axis is the batch.
      mesh: from `create_mesh`.

    Returns:
      Global arrays, split along their first axis.

    Raises:
      ValueError: when the batch does not divide evenly.
    """
    local = max(1, mesh.size // jax.process_count())
    sizes = {len(value) for value in batch.values()}
    if any(size % local for size in sizes):
        raise ValueError(f"a batch of {sizes.pop()} images does not divide evenly over {local} devices")
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def build_model(config: ml_collections.ConfigDict, num_classes: int) -> Backbone:
    """The configured backbone with the head that its objective needs, see `objectives.head_of`."""
    objectives.check_objective(config)
    options = {key: value for key, value in config.model.items() if key != "name"}
    head, outputs = objectives.head_of(config, num_classes)
    return create_model(config.model.name, num_classes=outputs, rngs=nnx.Rngs(config.seed), head=head, **options)


def normalize(images: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Images in [0, 1] to the network's input: `(images - mean) / std` per channel."""
    return (images - jnp.asarray(config.input.mean, images.dtype)) / jnp.asarray(config.input.std, images.dtype)


def create_state(
    config: ml_collections.ConfigDict, num_classes: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """Makes the model and its training state, on the devices of the mesh.

    Args:
      config: see `configs/`. With `sharding` "replicated" every device holds the whole state; with "fsdp" each holds
        its part of the parameters, of the optimizer's state and of the average between steps; a step starts with
        gathering all parameters and ends with splitting their gradients (after Rajbhandari et al., "ZeRO", SC 2020).
      num_classes: classes c of the training data.
      optimizer: from `make_optimizer`.
      mesh: from `create_mesh`.

    Returns:
      The model's graph (in training mode) and the state at step 0.

    Raises:
      ValueError: on a name in the configuration that is unknown.
    """
    if config.sharding not in SHARDINGS:
        raise ValueError(f"unknown sharding {config.sharding!r}; choose one of {', '.join(SHARDINGS)}")
    model = build_model(config, num_classes)
    model.train()
    if _has_weights(config) and config.start.get("freeze_statistics", False):
        _freeze_statistics(model)
    head, outputs = objectives.head_of(config, num_classes)
    channels = outputs if head == "projection" else model.embedding_size
    graph, params, statistics = nnx.split(model, nnx.Param, ...)
    trained = {"model": params} | objectives.objective_params(config, num_classes, channels)
    average = weight_average(config)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        statistics=statistics,
        optimizer=optimizer.init(trained),
        average=average.init((params, statistics)) if average else None,
        class_means=jnp.zeros((num_classes, channels), jnp.float32),
        class_counts=jnp.zeros((num_classes,), jnp.float32),
    )
    return graph, jax.device_put(state, _shardings(config, state, mesh))


def _has_weights(config: ml_collections.ConfigDict) -> bool:
    """Whether training starts from weights that are there, of a run or a file."""
    return "start" in config and bool(config.start.run or config.start.get("weights", ""))


def _freeze_statistics(model: Backbone) -> None:
    """Lets every normalisation but a head's keep the statistics that it starts with, and normalise by them."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm) and path[:1] != ("head",):
            module.eval()


def _shardings(config: ml_collections.ConfigDict, state: TrainState, mesh: Mesh) -> TrainState:
    """Where every array of the state lies."""
    whole = NamedSharding(mesh, PartitionSpec())

    def split(leaf):
        """Along the longest axis that divides evenly."""
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if leaf.size < _SMALLEST_SHARDED or not axes:
            return whole
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "data"))

    shardings = jax.tree.map(lambda _: whole, state)
    if config.sharding == "replicated":
        return shardings
    parts = {name: jax.tree.map(split, getattr(state, name)) for name in ("params", "optimizer", "average")}
    return dataclasses.replace(shardings, **parts)


def evaluation_weights(config: ml_collections.ConfigDict, state: TrainState) -> tuple[nnx.State, nnx.State]:
    """The model's parameters and statistics that are evaluated: the moving average where there is one."""
    if state.average is None:
        return state.params["model"], state.statistics
    # What the steps so far add up to, 1 - decay ** count, which float32 has no digits for when the decay is near 1.
    total = -jnp.expm1(state.average.count.astype(jnp.float32) * math.log(config.average))
    return jax.tree.map(lambda leaf: leaf / total, state.average.ema)
