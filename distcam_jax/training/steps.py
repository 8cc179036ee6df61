"""The compiled training step and the compiled validation step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from distcam_jax import losses
from distcam_jax.models.convolution import compiler_options
from distcam_jax.training.episodic import episode_objective
from distcam_jax.training.objectives import objective, trained_embedding
from distcam_jax.training.optimizers import weight_average
from distcam_jax.training.state import TrainState, evaluation_weights, normalize


def make_train_step(
    config: ml_collections.ConfigDict,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles one training step.

    With `accumulate` n above 1, the batch is cut into n micro-batches of which the gradients are averaged, so that a
    batch may be larger than the memory; row i of the batch goes to micro-batch i modulo n, whatever the devices. Batch
    normalisation sees one micro-batch at a time, and so does an objective that compares the samples of a batch.

    Args:
      config: see `configs/`.
      graph: the model's graph in training mode.
      optimizer: from `make_optimizer`.
      shardings: where each array of the state lies, and stays; None leaves it to JAX.

    Returns:
      A jitted `(state, batch) -> (state, metrics)`; the old state's memory is reused. The metrics are the batch's
      means: "loss" in nats, "accuracy", and "gradient_norm".
    """
    average = weight_average(config)
    gradients_of = _accumulated(_gradients(config, graph), config.accumulate)

    @functools.partial(
        jax.jit,
        donate_argnums=0,
        out_shardings=None if shardings is None else (shardings, None),
        compiler_options=compiler_options(),
    )
    def step(state: TrainState, batch: dict[str, jax.Array]):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        means = (state.class_means, state.class_counts)
        whole = state.params if shardings is None else _placed(state.params, _whole(shardings.params))
        gradients, statistics, means, metrics = gradients_of(whole, state.statistics, means, batch, key)
        gradients = gradients if shardings is None else _placed(gradients, shardings.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        averaged = state.average
        if average:
            _, averaged = average.update((params["model"], statistics), averaged)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        state = TrainState(
            step=state.step + 1,
            params=params,
            statistics=statistics,
            optimizer=optimizer_state,
            average=averaged,
            class_means=means[0],
            class_counts=means[1],
        )
        return state, metrics

    return step


def _gradients(config: ml_collections.ConfigDict, graph: nnx.GraphDef) -> Callable:
    """The function from parameters, statistics, class means, a batch and a key to gradients and what else changes."""

    def loss_fn(params, statistics, means, batch, key):
        model = nnx.merge(graph, params["model"], statistics, copy=True)
        output, features = model(normalize(batch["image"], config), key=key)
        labels = batch["label"]
        if config.objective == "episodes":
            loss, logits, labels = episode_objective(config, params, features["embedding"])
        else:
            loss, logits, means = objective(config, params, means, output, features["embedding"], labels)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        _, _, statistics = nnx.split(model, nnx.Param, ...)
        return loss, (statistics, means, accuracy)

    def gradients_of(params, statistics, means, batch, key):
        grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (statistics, means, accuracy)), gradients = grad(params, statistics, means, batch, key)
        return gradients, statistics, means, {"loss": loss, "accuracy": accuracy}

    return gradients_of


def _accumulated(gradients_of: Callable, count: int) -> Callable:
    """The same function, over `count` micro-batches one after the other; gradients and metrics are their means."""
    if count == 1:
        return gradients_of

    def accumulated(params, statistics, means, batch, key):
        # The rows of a device stay on it, whatever their number.
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(carry, inputs):
            sums, statistics, means = carry
            number, micro_batch = inputs
            own_key = jax.random.fold_in(key, number)
            gradients, statistics, means, metrics = gradients_of(params, statistics, means, micro_batch, own_key)
            return (jax.tree.map(jnp.add, sums, gradients), statistics, means), metrics

        start = (jax.tree.map(jnp.zeros_like, params), statistics, means)
        carry, metrics = jax.lax.scan(body, start, (jnp.arange(count), micro_batches))
        gradients = jax.tree.map(lambda x: x / count, carry[0])
        return gradients, carry[1], carry[2], jax.tree.map(jnp.mean, metrics)

    return accumulated


def _placed(tree, shardings):
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def _whole(shardings):
    """The same devices, every one with all parameters: what the network is computed with, however they are kept."""
    return jax.tree.map(lambda sharding: NamedSharding(sharding.mesh, PartitionSpec()), shardings)


def make_validation_step(config: ml_collections.ConfigDict, graph: nnx.GraphDef):
    """Compiles the counting of right decisions, by the weights that are evaluated.

    A network with a classifier decides by it, a "metric" one by the nearest of the running class means in L1.

    Args:
      config: see `configs/`.
      graph: the model's graph in evaluation mode.

    Returns:
      A jitted `(state, batch) -> (right, images)`: two counts over all processes; padding does not count.
    """

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def step(state: TrainState, batch: dict[str, jax.Array]):
        params, statistics = evaluation_weights(config, state)
        model = nnx.merge(graph, params, statistics, copy=True)
        output, features = model(normalize(batch["image"], config))
        scores = output
        if config.objective == "metric":
            embedding = trained_embedding(config, output, features["embedding"])
            scores = losses.prototype_logits(embedding, state.class_means, state.class_counts)
        right = (jnp.argmax(scores, axis=-1) == batch["label"]) & batch["mask"]
        return jnp.sum(right), jnp.sum(batch["mask"])

    return step


def shardings_of(state: TrainState) -> TrainState:
    """Where every array of a state lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)
