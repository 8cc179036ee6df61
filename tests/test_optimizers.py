"""Learning rates and optimizers beside loops written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cub200, market1501
from distcam_jax import training
from tests.tiny_run import tiny_config


def optimizer_config(**changes):
    config = tiny_config("metric")
    with config.unlocked():
        config.neck = {"center": 5e-4, "center_learning_rate": 0.5}
        config.optimizer.update(schedule="steps", milestones=(4.0, 7.0), step_factor=0.1, warmup_start=0.01)
    config.update_from_flattened_dict(changes)
    return config


def test_schedule_of_steps_falls_at_its_milestones_after_a_warm_up():
    config = optimizer_config(**{"optimizer.learning_rate": 0.2, "optimizer.warmup_epochs": 1.0})
    schedule = training.learning_rate_schedule(config, steps=120, steps_per_epoch=10)

    def by_hand(step):
        rate = 0.2 * 0.1 ** ((step >= 40) + (step >= 70))  # the first step of an epoch has its rate
        return rate * (0.01 + 0.99 * step / 10 if step < 10 else 1.0)

    steps = [0, 1, 5, 9, 10, 39, 40, 41, 70, 71, 119]
    np.testing.assert_allclose([schedule(step) for step in steps], [by_hand(step) for step in steps], rtol=1e-5)


def test_schedule_of_steps_without_warm_up_or_milestones_is_constant():
    changes = {"optimizer.milestones": (), "optimizer.warmup_epochs": 0.0, "optimizer.learning_rate": 0.3}
    schedule = training.learning_rate_schedule(optimizer_config(**changes), steps=9, steps_per_epoch=3)
    np.testing.assert_allclose([schedule(step) for step in (0, 4, 8)], 0.3, rtol=1e-6)


def test_schedule_of_a_cosine_warms_up_from_the_given_part():
    changes = {"optimizer.schedule": "cosine", "optimizer.warmup_start": 0.5, "optimizer.learning_rate": 0.1}
    schedule = training.learning_rate_schedule(optimizer_config(**changes), steps=20, steps_per_epoch=8)
    np.testing.assert_allclose([schedule(0), schedule(2), schedule(4), schedule(20)], [0.05, 0.075, 0.1, 0], atol=1e-8)


def test_schedule_refuses_an_unknown_name():
    with pytest.raises(ValueError, match=r"unknown optimizer.schedule 'linear'; choose one of cosine, steps"):
        training.learning_rate_schedule(optimizer_config(**{"optimizer.schedule": "linear"}), 10, 1)


def test_optimizer_refuses_an_unknown_name():
    with pytest.raises(ValueError, match=r"unknown optimizer.name 'lion'; choose one of sgd, adam, adamw"):
        training.make_optimizer(optimizer_config(**{"optimizer.name": "lion"}), lambda step: 0.1)


@jax.numpy_dtype_promotion("standard")  # optax's bias correction raises a float to a whole number
def test_adam_couples_its_decay_to_the_gradient_of_every_parameter_of_the_network():
    changes = {"optimizer.name": "adam", "optimizer.weight_decay": 0.3, "optimizer.momentum": 0.8}
    optimizer = training.make_optimizer(optimizer_config(**changes), lambda step: 0.01)
    generator = np.random.default_rng(0)
    start = {
        "model": {"kernel": generator.normal(size=(2, 3)), "scale": generator.normal(size=3)},
        "proxies": np.ones(4),
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), start)
    state, gradients = optimizer.init(params), []
    for _ in range(3):
        gradient = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), params)
        gradients.append(gradient)
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)

    def by_loop(value, given, decay):
        first = second = np.zeros_like(value)
        for count, gradient in enumerate(given, 1):
            gradient = np.asarray(gradient, np.float64) + decay * value
            first, second = 0.8 * first + 0.2 * gradient, 0.999 * second + 0.001 * gradient**2
            value = value - 0.01 * (first / (1 - 0.8**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        return value

    for name in ("kernel", "scale"):
        wanted = by_loop(start["model"][name], [gradient["model"][name] for gradient in gradients], 0.3)
        np.testing.assert_allclose(params["model"][name], wanted, rtol=1e-4)
    wanted = by_loop(start["proxies"], [gradient["proxies"] for gradient in gradients], 0.0)
    np.testing.assert_allclose(params["proxies"], wanted, rtol=1e-4)


@jax.numpy_dtype_promotion("standard")
def test_centers_go_by_their_own_sgd_and_without_the_weight_of_their_loss():
    changes = {"objective": "neck", "optimizer.name": "adam", "optimizer.weight_decay": 0.3}
    optimizer = training.make_optimizer(optimizer_config(**changes), lambda step: 0.01)
    params = {"model": {"kernel": jnp.ones((2, 2))}, "centers": jnp.full((3, 2), 4.0)}
    gradient = {"model": {"kernel": jnp.ones((2, 2))}, "centers": jnp.full((3, 2), 5e-4)}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["centers"], -0.5, rtol=1e-6)  # the rate, times a gradient of one
    np.testing.assert_allclose(updates["model"]["kernel"], -0.01, rtol=1e-5)  # Adam's first step


def test_recipe_of_reidentification_has_the_published_rates():
    config = market1501.get_config()
    schedule = training.learning_rate_schedule(config, steps=120 * 200, steps_per_epoch=200)
    rates = [schedule(epoch * 200) for epoch in (0, 5, 10, 39, 41, 69, 71, 119)]
    wanted = [3.5e-6, 3.5e-4 * 0.505, 3.5e-4, 3.5e-4, 3.5e-5, 3.5e-5, 3.5e-6, 3.5e-6]
    np.testing.assert_allclose(rates, wanted, rtol=1e-4)
    assert config.batch == config.sampler.classes * config.sampler.images == 64


@pytest.mark.parametrize(
    ("recipe", "argument", "message"),
    [
        (cub200, "triplet", "got 'triplet', want loss"),
        (cub200, "n_pair,small", "with a loss of multi_similarity, .* a variant of image_folder, stand_in"),
        (market1501, "small", "got 'small', want pedestrians or nothing"),
    ],
)
def test_recipes_refuse_another_argument(recipe, argument, message):
    with pytest.raises(ValueError, match=message):
        recipe.get_config(argument)
