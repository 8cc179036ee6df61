"""The training loop, which can be interrupted anywhere and goes on where its newest checkpoint stands."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Mesh

from distcam_jax import checkpoints, runs
from distcam_jax.cluster import Stopped, StopSignal, agree, is_primary
from distcam_jax.datasets import Dataset, load_dataset
from distcam_jax.input_pipeline import (
    ClassBatchSampler,
    EpisodeSampler,
    Order,
    TrainIterator,
    make_train_iterator,
    read_labels,
)
from distcam_jax.training.episodic import check_episodes
from distcam_jax.training.optimizers import learning_rate_schedule, make_optimizer
from distcam_jax.training.progress import Profile, Progress, Recent
from distcam_jax.training.starting import restore_model, starting_config, starting_weights, take_weights
from distcam_jax.training.state import TrainState, create_mesh, create_state, shard_batch
from distcam_jax.training.steps import make_train_step, shardings_of
from distcam_jax.training.validation import make_validation


def load_split(config: ml_collections.ConfigDict, split: str) -> Dataset:
    """The split named `config.input.<split>_split` of the configured data set."""
    return load_dataset(split=config.input[f"{split}_split"], **config.data)


def fit(config: ml_collections.ConfigDict, workdir: str | Path) -> TrainState:
    """Trains, from the newest checkpoint if there is one, to the last step.

    Args:
      config: see `configs/`.
      workdir: the run's folder, for its configuration, checkpoints and TensorBoard files; one that all processes share.

    Returns:
      The trained state.

    Raises:
      ValueError: on a configuration that does not fit the folder, the data or the devices.
      FloatingPointError: when a loss or gradient is not finite.
      OSError: when a checkpoint cannot be written.
      Stopped: after SIGTERM or SIGINT, once the state is saved.
    """
    runs.check_config(config)
    runs.check_workdir(config, workdir)
    mesh = create_mesh()
    _check_batch(config, mesh)
    data = load_split(config, "train")
    steps_per_epoch = len(data.source) / config.batch
    steps = max(1, round(config.epochs * steps_per_epoch))
    schedule = learning_rate_schedule(config, steps, steps_per_epoch)
    optimizer = make_optimizer(config, schedule)
    graph, state = create_state(config, data.num_classes, optimizer, mesh)
    iterator = _batches(config, data)
    validate = None
    if config.checkpoint.validation_images:
        validate = make_validation(config, data.num_classes, mesh, load_split(config, "tune"))
    start = starting_config(config)
    # Before anything is written, but not where the run has begun: it goes on without the file.
    weights = None if runs.has_begun(workdir) else starting_weights(config, data.num_classes)
    workdir = _claimed(config, workdir)  # only now: a configuration that does not work leaves nothing behind
    with checkpoints.open_checkpoints(workdir, keep=config.checkpoint.keep) as manager:
        restored = checkpoints.restore_latest(manager, state, iterator, agree=agree)
        first, state = restored if restored else (0, _started(config, start, weights, data.num_classes, state, mesh))
        del weights
        logging.info("training from step %d to %d on %d device(s)", first, steps, mesh.size)
        if first < steps:
            train_step = make_train_step(config, graph, optimizer, shardings_of(state))
            progress = Progress(workdir, first, steps, config.batch, schedule)
            recent = Recent(workdir, lambda index: data.source[index]["file_name"])
            run = _Run(config, mesh, steps, train_step, validate, manager, progress, recent)
            profile = Profile(config, workdir, first, steps)
            try:
                state = run.train(first, state, iterator, profile)
            finally:
                profile.close()
                progress.close()
                iterator.close()
    return state


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the loop works with."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    steps: int
    train_step: Callable
    validate: Callable[[TrainState], float] | None
    manager: ocp.CheckpointManager
    progress: Progress
    recent: Recent

    def train(self, first: int, state: TrainState, iterator: TrainIterator, profile: Profile) -> TrainState:
        """All steps after `first`, with checkpoints on the way."""
        with StopSignal() as stop:
            for step in range(first + 1, self.steps + 1):
                batch = next(iterator)
                profile.before(step)
                state, metrics = self.train_step(
                    state, shard_batch({k: batch[k] for k in ("image", "label")}, self.mesh)
                )
                profile.after(step, metrics)
                self.recent.add(step, batch["index"], metrics)
                last = step == self.steps
                signal = None if last else stop.after(step)
                due = step % self.config.checkpoint.every_steps == 0 or last or signal is not None
                if step % self.config.log_every == 0 or due:
                    self.progress.update(step, self.recent.check())
                if due:
                    self._save(step, state, iterator, validate=signal is None)
                if signal is not None:
                    checkpoints.finish(self.manager)
                    raise Stopped(step, signal)
        return state

    def _save(self, step: int, state: TrainState, iterator: TrainIterator, *, validate: bool) -> None:
        accuracy = self.validate(state) if validate and self.validate else None
        if accuracy is not None:
            self.progress.validated(step, accuracy)
        checkpoints.save(self.manager, step, state, iterator, accuracy=accuracy)


def _started(
    config: ml_collections.ConfigDict, start, weights, num_classes: int, state: TrainState, mesh: Mesh
) -> TrainState:
    """The state at step 0, with the weights of the run or of the file that `start` names, if it names one."""
    if start is not None:
        _, weights = restore_model(start, config.start.run, load_split(start, "train").num_classes, mesh)
    elif weights is None:  # the run had begun, and nothing of it could be restored
        weights = starting_weights(config, num_classes)
    return state if weights is None else take_weights(state, weights)


def _check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    parts = mesh.size * config.accumulate
    if config.batch % parts:
        raise ValueError(
            f"config.batch must be a multiple of {parts} ({mesh.size} devices, config.accumulate "
            f"{config.accumulate}), got {config.batch}"
        )
    if config.objective == "episodes":
        check_episodes(config, jax.process_count())
    elif "sampler" in config:
        _check_sampler(config)


def _order(config: ml_collections.ConfigDict, data: Dataset) -> Order | None:
    """The order in which the images are read, or None for permutations of them all."""
    if config.objective == "episodes":
        draw = {name: config.episodes[name] for name in ("ways", "shots", "queries")}
        return EpisodeSampler(read_labels(data.source), **draw, seed=config.seed)
    if "sampler" in config:
        if config.sampler.classes > data.num_classes:
            raise ValueError(
                f"config.sampler.classes must be at most the {data.num_classes} classes of {data.name}, split "
                f"{data.split}, got {config.sampler.classes}; set it, and config.batch to classes times images"
            )
        return ClassBatchSampler(read_labels(data.source), **config.sampler.to_dict(), seed=config.seed)
    return None


def _check_sampler(config: ml_collections.ConfigDict) -> None:
    """Refuses a batch that is not the classes times the images of the sampler; a ValueError says what would do."""
    classes, images = config.sampler.classes, config.sampler.images
    if config.batch != classes * images:
        raise ValueError(
            f"config.batch must be {classes * images} ({classes} classes, {images} images of each), got {config.batch}"
        )
    if config.accumulate != 1:
        raise ValueError(
            f"config.accumulate must be 1 with config.sampler, whose classes micro-batches would cut apart; got "
            f"{config.accumulate}"
        )


def _batches(config: ml_collections.ConfigDict, data: Dataset) -> TrainIterator:
    return make_train_iterator(
        data.source,
        batch_size=config.batch // jax.process_count(),
        image_size=config.input.image_size,
        seed=config.seed,
        augmentation=config.input.augmentation.to_dict() if config.input.augmentation else None,
        order=_order(config, data),
        num_workers=config.input.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _claimed(config: ml_collections.ConfigDict, workdir: str | Path) -> Path:
    """The run's folder, made by one process for all."""
    if is_primary():
        runs.claim_workdir(config, workdir)
    agree(True)  # the others wait
    return Path(workdir)
