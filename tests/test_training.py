import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distcam_jax import losses, training
from tests.tiny_run import neck_config, tiny_config


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.random((size, 32, 32, 3), dtype=np.float32),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


def run_steps(config, devices, steps=3):
    mesh = training.create_mesh(devices)
    optimizer = training.make_optimizer(config, training.learning_rate_schedule(config, 10, 5))
    graph, state = training.create_state(config, 10, optimizer, mesh)
    step = training.make_train_step(config, graph, optimizer, training.shardings_of(state))
    for number in range(steps):
        state, metrics = step(state, training.shard_batch(batch_of(16, number), mesh))
    return jax.device_get(state), jax.device_get(metrics)


VARIANTS = [{}, {"accumulate": 2}, {"sharding": "fsdp", "model.width": 8, "average": 0.5}]


@pytest.mark.parametrize(
    ("make", "objective", "changes"),
    [
        (tiny_config, "softmax", VARIANTS[0]),
        *((tiny_config, "metric", changes) for changes in VARIANTS[:2]),
        (neck_config, "neck", VARIANTS[2]),
    ],
)
def test_train_step_is_the_same_on_eight_devices_and_one(make, objective, changes):
    one = run_steps(make(objective, **changes), jax.devices()[:1])
    eight = run_steps(make(objective, **changes), jax.devices())
    chex.assert_trees_all_close(one, eight, rtol=2e-3, atol=2e-4)


def test_train_step_keeps_the_parts_of_a_state_where_they_lie():
    config = tiny_config(**VARIANTS[2])
    mesh = training.create_mesh()
    optimizer = training.make_optimizer(config, training.learning_rate_schedule(config, 10, 5))
    graph, state = training.create_state(config, 10, optimizer, mesh)
    shardings = training.shardings_of(state)
    step = training.make_train_step(config, graph, optimizer, shardings)
    state, _ = step(state, training.shard_batch(batch_of(16), mesh))
    assert training.shardings_of(state) == shardings
    for tree in (state.params, state.optimizer, state.average):
        large = [leaf for leaf in jax.tree.leaves(tree) if leaf.size >= 2**14]
        assert large
        assert all(leaf.addressable_shards[0].data.size == leaf.size // 8 for leaf in large)


def test_train_step_in_micro_batches_averages_the_gradients_of_every_other_row():
    config = tiny_config("softmax", accumulate=2)
    mesh = training.create_mesh(jax.devices()[:1])
    optimizer = training.make_optimizer(config, lambda step: 0.1)
    graph, state = training.create_state(config, 10, optimizer, mesh)
    batch, params, statistics = batch_of(16), state.params["model"], state.statistics

    def loss_fn(params, statistics, image, label):
        model = nnx.merge(graph, params, statistics, copy=True)
        output, _ = model(training.normalize(image, config))
        return losses.softmax_cross_entropy(output, label), nnx.split(model, nnx.Param, ...)[2]

    gradients, gradient_of = [], jax.jit(jax.grad(loss_fn, has_aux=True))
    for start in (0, 1):
        gradient, statistics = gradient_of(params, statistics, batch["image"][start::2], batch["label"][start::2])
        gradients.append(gradient)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    updates, _ = optimizer.update({"model": mean}, optimizer.init({"model": params}), {"model": params})
    wanted = jax.device_get(jax.tree.map(jnp.add, params, updates["model"])), jax.device_get(statistics)
    state, _ = training.make_train_step(config, graph, optimizer)(state, training.shard_batch(batch, mesh))
    got = jax.device_get(state.params["model"]), jax.device_get(state.statistics)
    chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [0.7, 0.99999])
def test_evaluation_weights_are_the_weighted_mean_of_the_steps(decay):
    steps = 4
    config = tiny_config(average=decay)
    mesh = training.create_mesh(jax.devices()[:1])
    optimizer = training.make_optimizer(config, lambda step: 0.1)
    graph, state = training.create_state(config, 10, optimizer, mesh)
    step = training.make_train_step(config, graph, optimizer)
    seen = []
    for number in range(steps):
        state, _ = step(state, training.shard_batch(batch_of(16, number), mesh))
        seen.append(jax.device_get((state.params["model"], state.statistics)))
    weights = np.array([decay ** (steps - 1 - i) for i in range(steps)])
    wanted = jax.tree.map(lambda *values: np.tensordot(weights / weights.sum(), np.stack(values), 1), *seen)
    averaged = jax.device_get(training.evaluation_weights(config, state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), averaged, wanted)


def test_train_step_in_bfloat16_keeps_float32_weights_and_nearly_the_loss():
    full, half = (
        run_steps(tiny_config("metric", **{"model.dtype": dtype}), jax.devices()[:1], steps=1)
        for dtype in ("float32", "bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(half[0].params)} == {np.dtype("float32")}
    np.testing.assert_allclose(half[1]["loss"], full[1]["loss"], rtol=0.02)
    assert half[1]["loss"] != full[1]["loss"]


def test_train_step_splits_the_batch_over_the_devices():
    mesh = training.create_mesh()
    image = training.shard_batch(batch_of(16), mesh)["image"]
    assert {shard.data.shape[0] for shard in image.addressable_shards} == {16 // len(jax.devices())}


def test_shard_batch_refuses_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="12 images does not divide evenly over 8 devices"):
        training.shard_batch(batch_of(12), training.create_mesh())


@pytest.mark.parametrize("objective", ["softmax", "metric"])
def test_train_step_learns_one_batch_by_heart(objective):
    config = tiny_config(objective)
    mesh = training.create_mesh(jax.devices()[:1])
    optimizer = training.make_optimizer(config, lambda step: 0.05)
    graph, state = training.create_state(config, 10, optimizer, mesh)
    step, batch = training.make_train_step(config, graph, optimizer), batch_of(16)
    losses = []
    for _ in range(30):
        state, metrics = step(state, training.shard_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 30


def test_train_step_keeps_class_means_near_the_embeddings_of_the_batch():
    config = tiny_config("metric", **{"optimizer.learning_rate": 0.0})
    mesh = training.create_mesh(jax.devices()[:1])
    optimizer = training.make_optimizer(config, lambda step: 0.0)
    graph, state = training.create_state(config, 10, optimizer, mesh)
    batch = batch_of(16)
    model = nnx.merge(graph, state.params["model"], state.statistics, copy=True)
    _, features = model(training.normalize(jnp.asarray(batch["image"]), config))
    state, _ = training.make_train_step(config, graph, optimizer)(state, training.shard_batch(batch, mesh))
    for label in range(10):
        own = np.asarray(features["embedding"])[batch["label"] == label]
        expected = own.mean(axis=0) if len(own) else np.zeros(own.shape[1])
        np.testing.assert_allclose(state.class_means[label], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state.class_counts, np.bincount(batch["label"], minlength=10))


def test_make_optimizer_decays_kernels_only():
    config = tiny_config(**{"optimizer.weight_decay": 0.1})
    optimizer = training.make_optimizer(config, lambda step: 1.0)
    kept = {"scale": jnp.ones(2), "log_scale": jnp.ones(()), "proxies": jnp.ones((2, 2))}
    params = {"kernel": jnp.ones((2, 2)), "head": {"prototypes": jnp.ones((2, 2))}, **kept}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert np.all(np.asarray(updates["kernel"]) < 0)
    assert not any(np.any(updates[name]) for name in kept)
    assert not np.any(updates["head"]["prototypes"])


def test_learning_rate_schedule_warms_up_then_falls_to_zero():
    schedule = training.learning_rate_schedule(tiny_config(), steps=100, steps_per_epoch=20)
    values = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(values, [0.0, 0.025, 0.05, 0.025, 0.0], atol=1e-7)


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
    config = tiny_config(**{"input.mean": (0.1, 0.2, 0.3), "input.std": (0.5, 1.0, 2.0)})
    np.testing.assert_allclose(training.normalize(jnp.ones((1, 1, 1, 3)), config)[0, 0, 0], [1.8, 0.8, 0.35], rtol=1e-6)


def test_build_model_refuses_unknown_prototypes():
    with pytest.raises(ValueError, match=r"unknown metric.prototypes 'means'; choose one of class_means"):
        training.build_model(tiny_config(**{"metric.prototypes": "means"}), 10)


def test_build_model_refuses_an_unknown_objective():
    with pytest.raises(ValueError, match="unknown objective 'contrast'; choose one of softmax, cosine, metric"):
        training.build_model(tiny_config("contrast"), 10)
