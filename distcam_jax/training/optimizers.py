"""Learning rate, optimizer, and the moving average of the weights."""

import jax
import jax.numpy as jnp
import ml_collections
import optax

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "steps")


def learning_rate_schedule(
    config: ml_collections.ConfigDict, steps: int, steps_per_epoch: float | int
) -> optax.Schedule:
    """Linear warm-up, then a cosine down to zero, or steps.

    Args:
      config: see `configs/`; `optimizer.schedule` is "cosine", which stands where there is none, or "steps", which
        multiplies the rate by `step_factor` after each of the epochs `milestones`. The warm-up starts from the part
        `warmup_start` of the rate, 0 where it is not given.
      steps: of the whole training.
      steps_per_epoch: which epochs are counted by.

    Returns:
      Step to learning rate.

    Raises:
      ValueError: on an unknown schedule.

    References:
      Goyal et al., "Accurate, Large Minibatch SGD", 2017; Loshchilov and Hutter, "SGDR", ICLR 2017.
    """
    options = config.optimizer
    name, start = options.get("schedule", "cosine"), options.get("warmup_start", 0.0)
    if name not in SCHEDULES:
        raise ValueError(f"unknown optimizer.schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    rate, warmup = options.learning_rate, min(steps, round(options.warmup_epochs * steps_per_epoch))
    if name == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(start * rate, rate, warmup, max(steps, warmup + 1))
    else:
        falls = {round(epoch * steps_per_epoch): options.step_factor for epoch in options.milestones}
        ramp = optax.linear_schedule(start, 1.0, warmup) if warmup else optax.constant_schedule(1.0)
        stairs = optax.piecewise_constant_schedule(rate, falls)

        def schedule(step):
            return ramp(step) * stairs(step)

    return lambda step: schedule(jnp.asarray(step, jnp.float32))  # optax mixes the step with floats


def make_optimizer(config: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The configured optimizer.

    "sgd" and "adamw" decay kernels only, "adam" scales and biases too, as torch's does. The temperature is not decayed,
    nor are proxies and centres, which are places in the embedding's space: decay would draw them to its origin. The
    centres of the centre loss go by plain SGD of their own, at the rate `neck.center_learning_rate`, and by the
    gradient of that loss without its weight (Luo et al., CVPRW 2019).

    Args:
      config: see `configs/`; `optimizer.name` is "sgd" (Nesterov momentum, decay coupled to the gradient), "adam"
        (decay coupled to the gradient; `momentum` is its first moment's) or "adamw" (decoupled decay; likewise).
      schedule: step to learning rate.

    Returns:
      An optax transformation.

    Raises:
      ValueError: on an unknown name.
    """
    options = config.optimizer
    if options.name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer.name {options.name!r}; choose one of {', '.join(OPTIMIZERS)}")
    decay, momentum = options.weight_decay, options.momentum
    if options.name == "adamw":
        optimizer = optax.adamw(schedule, b1=momentum, weight_decay=decay, mask=_kernels)
    else:
        mask, rule = (
            (_kernels, optax.sgd(schedule, momentum=momentum, nesterov=True))
            if options.name == "sgd"
            else (_weights, optax.adam(schedule, b1=momentum))
        )
        optimizer = optax.chain(optax.add_decayed_weights(decay, mask=mask), rule)
    if config.objective != "neck" or not config.neck.center:
        return optimizer
    centers = optax.chain(optax.scale(1 / config.neck.center), optax.sgd(config.neck.center_learning_rate))
    return optax.partition({"network": optimizer, "centers": centers}, _owners)


def _owners(params):
    """Which optimizer moves which leaves."""
    return {
        name: jax.tree.map(lambda _, own=name: "centers" if own == "centers" else "network", part)
        for name, part in params.items()
    }


_PLACES = ("proxies", "prototypes", "centers")


def _weights(params):
    """Which leaves are neither places nor the temperature."""

    def is_weight(path, _):
        name = jax.tree_util.keystr(path)
        return not any(f"'{other}'" in name for other in (*_PLACES, "log_scale"))

    return jax.tree.map_with_path(is_weight, params)


def _kernels(params):
    """Which leaves are decayed where only kernels are."""
    return jax.tree.map(lambda leaf, weight: weight and leaf.ndim > 1, params, _weights(params))


def weight_average(config: ml_collections.ConfigDict) -> optax.GradientTransformation | None:
    """The exponential moving average of weights that `average` asks for, or None where it is 0."""
    return optax.ema(config.average, debias=False) if config.average else None
