"""Training: state, step and loop, data-parallel over every device of one mesh.

All state is replicated and batches are split along the axis "data"; `jit` does the rest, so that one device and many
compute the same thing, batch-norm statistics and class means included.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tensorboardX import SummaryWriter
from tqdm import tqdm

from distcam_jax import checkpoints, losses, runs
from distcam_jax.datasets import Dataset, load_dataset
from distcam_jax.input_pipeline import make_train_iterator
from distcam_jax.models import Backbone, create_model
from distcam_jax.models.convolution import compiler_options

OBJECTIVES = ("softmax", "metric")
OPTIMIZERS = ("sgd", "adamw")
PROTOTYPES = ("class_means", "running_means", "proxies")  # what the metric objective may train against


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and that a checkpoint holds.

    Attributes:
      step: finished steps.
      params: the model's parameters, and the metric objective's `log_scale`.
      statistics: the model's batch-norm statistics.
      optimizer: optax's state.
      class_means: running class means `[c, k]` that the metric objective trains against.
      class_counts: samples each of them stands for `[c]`.
    """

    # Any: tree maps put shapes and host arrays where the arrays are.
    step: Any
    params: Any
    statistics: Any
    optimizer: Any
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
    """The configured backbone, with a linear head for "softmax" and none for "metric"."""
    if config.objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {config.objective!r}; choose one of {', '.join(OBJECTIVES)}")
    options = {key: value for key, value in config.model.items() if key != "name"}
    head = "linear" if config.objective == "softmax" else "none"
    return create_model(config.model.name, num_classes=num_classes, rngs=nnx.Rngs(config.seed), head=head, **options)


def normalize(images: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Images in [0, 1] to the network's input: `(images - mean) / std` per channel."""
    return (images - jnp.asarray(config.input.mean, images.dtype)) / jnp.asarray(config.input.std, images.dtype)


def learning_rate_schedule(
    config: ml_collections.ConfigDict, steps: int, steps_per_epoch: float | int
) -> optax.Schedule:
    """Linear warm-up, then a cosine down to zero (Goyal et al., 2017; Loshchilov and Hutter, ICLR 2017)."""
    warmup = min(steps, round(config.optimizer.warmup_epochs * steps_per_epoch))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.optimizer.learning_rate, warmup, max(steps, warmup + 1))
    return lambda step: schedule(jnp.asarray(step, jnp.float32))  # optax mixes the step with floats


def make_optimizer(config: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The configured optimizer, with weight decay on kernels only, not on scales, biases or the temperature.

    Args:
      config: see `configs/`; `optimizer.name` is "sgd" (Nesterov momentum, decay coupled to the gradient) or "adamw"
        (decoupled decay; `momentum` is its first moment's).
      schedule: step to learning rate.

    Returns:
      An optax transformation.

    Raises:
      ValueError: on an unknown name.
    """
    options = config.optimizer
    kernels = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    if options.name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(options.weight_decay, mask=kernels),
            optax.sgd(schedule, momentum=options.momentum, nesterov=True),
        )
    if options.name == "adamw":
        return optax.adamw(schedule, b1=options.momentum, weight_decay=options.weight_decay, mask=kernels)
    raise ValueError(f"unknown optimizer.name {options.name!r}; choose one of {', '.join(OPTIMIZERS)}")


def create_state(
    config: ml_collections.ConfigDict, num_classes: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """Makes the model and its training state, replicated over the mesh.

    Args:
      config: see `configs/`.
      num_classes: classes c of the training data.
      optimizer: from `make_optimizer`.
      mesh: from `create_mesh`.

    Returns:
      The model's graph (in training mode) and the state at step 0.
    """
    model = build_model(config, num_classes)
    model.train()
    graph, params, statistics = nnx.split(model, nnx.Param, ...)
    trained = {"model": params}
    if config.objective == "metric":
        trained |= _metric_params(config, num_classes, model.embedding_size)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        statistics=statistics,
        optimizer=optimizer.init(trained),
        class_means=jnp.zeros((num_classes, model.embedding_size), jnp.float32),
        class_counts=jnp.zeros((num_classes,), jnp.float32),
    )
    return graph, jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def _metric_params(config, num_classes: int, channels: int) -> dict[str, jax.Array]:
    """The metric objective's own parameters, none of which the network needs once it is trained.

    `log_scale` is the logarithm of the inverse temperature. `auxiliary` is the kernel of a classifier whose
    cross-entropy is added with the weight `metric.auxiliary`, as re-identification adds identity and metric losses (Luo
    et al., 2019). `proxies` are free prototypes, where they are chosen.
    """
    if config.metric.prototypes not in PROTOTYPES:
        raise ValueError(
            f"unknown metric.prototypes {config.metric.prototypes!r}; choose one of {', '.join(PROTOTYPES)}"
        )
    params = {"log_scale": jnp.log(jnp.asarray(config.metric.scale, jnp.float32))}
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    if config.metric.auxiliary:
        bound = 1.0 / np.sqrt(channels)
        params["auxiliary"] = jax.random.uniform(keys[0], (channels, num_classes), minval=-bound, maxval=bound)
    if config.metric.prototypes == "proxies":
        params["proxies"] = jax.random.uniform(keys[1], (num_classes, channels))
    return params


def _objective(config, state: TrainState, params, output, embedding, labels):
    """Loss, class scores, and the class means after this batch."""
    smoothing = config.optimizer.label_smoothing
    if config.objective == "softmax":
        loss = losses.softmax_cross_entropy(output, labels, label_smoothing=smoothing)
        return loss, output, (state.class_means, state.class_counts)
    means, counts = losses.update_class_means(
        state.class_means, state.class_counts, jax.lax.stop_gradient(embedding), labels, memory=config.metric.memory
    )
    options = {"scale": jnp.exp(params["log_scale"]), "relative": True}
    if config.metric.prototypes == "class_means":
        logits = losses.class_mean_logits(embedding, labels, means, counts, **options)
    elif config.metric.prototypes == "running_means":
        logits = losses.prototype_logits(embedding, means, counts, **options)
    else:
        logits = losses.prototype_logits(embedding, params["proxies"], jnp.ones_like(counts), **options)
    loss = losses.softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
    if config.metric.auxiliary:
        scores = embedding @ params["auxiliary"]
        auxiliary = losses.softmax_cross_entropy(scores, labels, label_smoothing=smoothing)
        loss += config.metric.auxiliary * auxiliary
    return loss, logits, (means, counts)


def make_train_step(config: ml_collections.ConfigDict, graph: nnx.GraphDef, optimizer: optax.GradientTransformation):
    """Compiles one training step.

    Args:
      config: see `configs/`.
      graph: the model's graph in training mode.
      optimizer: from `make_optimizer`.

    Returns:
      A jitted `(state, batch) -> (state, metrics)`; the old state's memory is reused. The metrics are the batch's
      means: "loss" in nats, "accuracy", and "gradient_norm".
    """

    def loss_fn(params, state, batch):
        model = nnx.merge(graph, params["model"], state.statistics, copy=True)
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        output, features = model(normalize(batch["image"], config), key=key)
        loss, logits, means = _objective(config, state, params, output, features["embedding"], batch["label"])
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
        _, _, statistics = nnx.split(model, nnx.Param, ...)
        return loss, (statistics, means, accuracy)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def step(state: TrainState, batch: dict[str, jax.Array]):
        (loss, (statistics, (means, counts), accuracy)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state, batch
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": optax.tree.norm(gradients)}
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            statistics=statistics,
            optimizer=optimizer_state,
            class_means=means,
            class_counts=counts,
        )
        return state, metrics

    return step


def load_split(config: ml_collections.ConfigDict, split: str) -> Dataset:
    """The split named `config.input.<split>_split` of the configured data set."""
    return load_dataset(split=config.input[f"{split}_split"], **config.data)


class _Progress:
    """The progress bar and TensorBoard's files, fed every `log_every` steps."""

    def __init__(self, workdir: Path, first: int, steps: int, batch: int, schedule: optax.Schedule):
        self.bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True, smoothing=0.1)
        self.writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=first)
        self.batch, self.schedule = batch, schedule
        self.since, self.step = time.monotonic(), first

    def update(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        now = time.monotonic()
        values["images_per_second"] = (step - self.step) * self.batch / max(now - self.since, 1e-9)
        values["learning_rate"] = float(np.asarray(self.schedule(step)))
        self.bar.update(step - self.step)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.3f}, accuracy {values['accuracy']:.3f}, {values['images_per_second']:.0f} images/s"
        )
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        self.since, self.step = now, step
        if not np.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss is {values['loss']} at step {step}; the last checkpoint is kept. Lower "
                "config.optimizer.learning_rate"
            )

    def close(self) -> None:
        self.bar.close()
        self.writer.close()


def fit(config: ml_collections.ConfigDict, workdir: str | Path) -> TrainState:
    """Trains, from the newest checkpoint if there is one, to the last step.

    Args:
      config: see `configs/`.
      workdir: the run's folder, for its configuration, checkpoints and TensorBoard files.

    Returns:
      The trained state.

    Raises:
      ValueError: on a configuration that does not fit the folder or the data.
      FloatingPointError: when the loss is not finite.
    """
    runs.check_config(config)
    runs.check_workdir(config, workdir)
    mesh = create_mesh()
    data = load_split(config, "train")
    steps_per_epoch = len(data.source) / config.batch
    steps = max(1, round(config.epochs * steps_per_epoch))
    schedule = learning_rate_schedule(config, steps, steps_per_epoch)
    optimizer = make_optimizer(config, schedule)
    graph, state = create_state(config, data.num_classes, optimizer, mesh)
    iterator = make_train_iterator(
        data.source,
        batch_size=config.batch // jax.process_count(),
        image_size=config.input.image_size,
        seed=config.seed,
        augmentation=config.input.augmentation.to_dict() if config.input.augmentation else None,
        num_workers=config.input.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    workdir = runs.claim_workdir(config, workdir)  # only now: a configuration that does not work leaves nothing behind
    with checkpoints.checkpoint_manager(workdir, keep=config.checkpoint.keep) as manager:
        restored = checkpoints.restore_latest(manager, state, iterator)
        first, state = restored if restored else (0, state)
        logging.info("training from step %d to %d on %d device(s)", first, steps, mesh.size)
        if first >= steps:
            return state
        train_step = make_train_step(config, graph, optimizer)
        progress = _Progress(workdir, first, steps, config.batch, schedule)
        try:
            for step in range(first + 1, steps + 1):
                batch = next(iterator)
                state, metrics = train_step(state, shard_batch({k: batch[k] for k in ("image", "label")}, mesh))
                due = step % config.checkpoint.every_steps == 0 or step == steps
                if step % config.log_every == 0 or due:
                    progress.update(step, metrics)
                if due:
                    checkpoints.save(manager, step, state, iterator)
            manager.wait_until_finished()
        finally:
            progress.close()
    return state
