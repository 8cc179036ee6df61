"""Learning rate, optimizer, and the moving average of the weights."""

import jax
import jax.numpy as jnp
import ml_collections
import optax

OPTIMIZERS = ("sgd", "adamw")


def learning_rate_schedule(
    config: ml_collections.ConfigDict, steps: int, steps_per_epoch: float | int
) -> optax.Schedule:
    """Linear warm-up, then a cosine down to zero (Goyal et al., 2017; Loshchilov and Hutter, ICLR 2017)."""
    warmup = min(steps, round(config.optimizer.warmup_epochs * steps_per_epoch))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.optimizer.learning_rate, warmup, max(steps, warmup + 1))
    return lambda step: schedule(jnp.asarray(step, jnp.float32))  # optax mixes the step with floats


def make_optimizer(config: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The configured optimizer, with weight decay on kernels only.

    Scales, biases and the temperature are no kernels, and neither are proxies and centres, which are places in the
    embedding's space: decay would draw them to its origin.

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
    if options.name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(options.weight_decay, mask=_kernels),
            optax.sgd(schedule, momentum=options.momentum, nesterov=True),
        )
    if options.name == "adamw":
        return optax.adamw(schedule, b1=options.momentum, weight_decay=options.weight_decay, mask=_kernels)
    raise ValueError(f"unknown optimizer.name {options.name!r}; choose one of {', '.join(OPTIMIZERS)}")


_PLACES = ("proxies", "prototypes", "centers")


def _kernels(params):
    """Which leaves are decayed."""

    def is_kernel(path, leaf):
        name = jax.tree_util.keystr(path)
        return leaf.ndim > 1 and not any(f"'{place}'" in name for place in _PLACES)

    return jax.tree.map_with_path(is_kernel, params)


def weight_average(config: ml_collections.ConfigDict) -> optax.GradientTransformation | None:
    """The exponential moving average of weights that `average` asks for, or None where it is 0."""
    return optax.ema(config.average, debias=False) if config.average else None
