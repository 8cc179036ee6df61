"""Training by episodes, from the weights of another run, validated on other classes."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distcam_jax import runs, training
from distcam_jax.training import episodic, loop, starting, validation
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("prepared_data")

EPISODES = {"ways": 3, "shots": 2, "queries": 1, "distance": "l1", "scale": 5.0}
generator = np.random.default_rng(0)
EMBEDDING = jnp.asarray(generator.random((18, 5), dtype=np.float32))


def episode_config(objective="episodes", **changes):
    config = tiny_config("metric")
    with config.unlocked():
        config.objective = objective
        config.cosine = {"scale": 4.0}
        config.episodes = dict(EPISODES)
        config.start = {"run": "", "checkpoint": "latest"}
        config.checkpoint.validation_episodes = 0
        config.batch = 18
    config.update_from_flattened_dict(changes)
    return config


def loop_scores(embedding, distance):
    """Scores of all queries, episode by episode, class by class; distances in units of the episode's mean."""
    scores = []
    for episode in np.asarray(embedding, np.float64).reshape(2, 3, 3, 5):
        means = [shots[:2].mean(axis=0) for shots in episode]
        queries = [shots[2] for shots in episode]
        table = np.array([[distance(query, mean) for mean in means] for query in queries])
        scores += list(-5.0 * table / table.mean())
    return np.array(scores)


@pytest.mark.parametrize(
    ("name", "distance"),
    [("l1", lambda a, b: np.abs(a - b).sum()), ("squared_l2", lambda a, b: ((a - b) ** 2).sum())],
)
def test_episode_objective_is_the_cross_entropy_of_the_class_means_of_the_supports(name, distance):
    config = episode_config(**{"episodes.distance": name})
    params = {"log_scale": jnp.log(jnp.float32(5.0))}
    loss, scores, labels = episodic.episode_objective(config, params, EMBEDDING)
    wanted = loop_scores(EMBEDDING, distance)
    np.testing.assert_allclose(scores, wanted, rtol=1e-4)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    terms = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(wanted, [0, 1, 2] * 2, strict=True)]
    np.testing.assert_allclose(float(loss), np.mean(terms), rtol=1e-4)


def test_cosine_objective_is_the_cross_entropy_of_scaled_similarities():
    config = episode_config("cosine")
    params = training.objectives.objective_params(config, 4, 5)
    output, labels = generator.uniform(-1, 1, (6, 4)).astype(np.float32), np.array([0, 1, 2, 3, 0, 1], np.int32)
    means = jnp.zeros((4, 5)), jnp.zeros(4)
    given = jnp.asarray(output), EMBEDDING[:6], jnp.asarray(labels)
    loss, scores, _ = training.objectives.objective(config, params, means, *given)
    terms = [np.log(np.exp(4.0 * row).sum()) - 4.0 * row[label] for row, label in zip(output, labels, strict=True)]
    np.testing.assert_allclose(float(loss), np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(scores, 4.0 * output, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 16}, r"config.batch must be a multiple of 9 \(3 ways, 2 shots and 1 queries in 1 process\(es\)\)"),
        ({"accumulate": 2}, "config.accumulate must be 1 with the objective episodes"),
        ({"episodes.distance": "l3"}, "unknown episodes.distance 'l3'; choose one of l1, l2, squared_l2, cosine"),
        ({"episodes.ways": 11, "batch": 264}, "ways: want at most the 10 classes that there are, got 11"),
        ({"episodes.shots": 99, "batch": 2400}, "class . has . images, and an episode takes 100 of each class"),
    ],
)
def test_fit_refuses_episodes_that_cannot_be(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "create_mesh", lambda: training.create_mesh(jax.devices()[:1]))
    with pytest.raises(ValueError, match=message):
        training.fit(episode_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_check_objective_names_the_section_that_is_missing():
    config = tiny_config("episodes")
    with pytest.raises(ValueError, match="the objective episodes needs the section episodes of a configuration"):
        training.build_model(config, 10)


@pytest.fixture(scope="module")
def stages(tmp_path_factory, common_folder):
    """A run of whole classification and one by episodes that goes on from it."""
    folder = tmp_path_factory.mktemp("stages")
    validated = {"checkpoint.validation_images": 20, "checkpoint.validation_episodes": 6, "episodes.shots": 1}
    mesh = training.create_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTCAM_DATA_DIR", str(common_folder / "prepared"))
        patch.setattr(loop, "create_mesh", lambda: mesh)
        first = training.fit(episode_config("cosine", **validated), folder / "cosine")
        config = episode_config(**{**validated, "batch": 12, "start.run": str(folder / "cosine"), "epochs": 0.5})
        second = training.fit(config, folder / "episodes")
    return folder, config, first, second


def test_fit_by_episodes_starts_from_the_weights_of_the_other_run(stages):
    _, config, first, _ = stages
    mesh = training.create_mesh(jax.devices()[:1])
    optimizer = training.make_optimizer(config, lambda step: 0.0)
    _, fresh = training.create_state(config, 10, optimizer, mesh)
    started = loop._started(config, starting.starting_config(config), None, 10, fresh, mesh)
    there = dict(nnx.to_flat_state(first.params["model"]))
    for path, value in nnx.to_flat_state(started.params["model"]):
        np.testing.assert_array_equal(value.get_value(), there[path].get_value())
    assert any(path[0] == "head" for path in there)
    chex.assert_trees_all_equal(jax.device_get(started.statistics), jax.device_get(first.statistics))


def test_fit_by_episodes_learns_and_chooses_by_the_episodes_of_held_out_images(stages):
    folder, _, first, second = stages
    noted = json.loads((folder / "episodes" / "accuracies.json").read_text())
    assert noted
    for value in noted.values():
        assert 0 <= value <= 1
        assert value * 6 * 3 == pytest.approx(round(value * 6 * 3))
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), first.statistics, second.statistics)
    assert all(jax.tree.leaves(moved))


def test_validation_by_episodes_is_the_nearest_class_mean_of_the_supports(stages):
    _, config, _, state = stages
    mesh = training.create_mesh(jax.devices()[:1])
    data = loop.load_split(config, "tune")
    accuracy = validation.make_validation(config, 10, mesh, data)(state)
    graph, _ = training.create_state(config, 10, training.make_optimizer(config, lambda step: 0.0), mesh)
    model = nnx.merge(graph, state.params["model"], state.statistics, copy=True)
    model.eval()
    batches = validation.make_eval_batches(data.source, batch_size=20, image_size=32)
    (batch,) = batches
    embeddings = np.asarray(model(training.normalize(jnp.asarray(batch["image"]), config))[1]["embedding"])
    sampler = validation.EpisodeSampler(batch["label"], ways=3, shots=1, queries=1, seed=config.seed)
    right = []
    for number in range(6):
        rows = sampler.episode(number)[1]
        for way, (_, query) in enumerate(rows):
            distances = [np.abs(embeddings[query] - embeddings[support]).sum() for support, _ in rows]
            right.append(int(np.argmin(distances)) == way)
    assert accuracy == pytest.approx(np.mean(right))


def test_start_refuses_a_run_of_another_model(stages):
    _, config, *_ = stages
    changed = config.copy_and_resolve_references()
    changed.model.width = 8
    with pytest.raises(ValueError, match=r"holds a run of another model \(model.width: 4 there, 8 here\)"):
        starting.starting_config(changed)


def test_start_takes_a_run_of_the_same_model_whose_widths_were_a_tuple(tmp_path):
    config = episode_config(**{"start.run": str(tmp_path)})
    with config.unlocked():
        config.model.widths = (4, 8, 8, 16)
    runs.claim_workdir(config, tmp_path)
    assert starting.starting_config(config).evaluate.checkpoint == "latest"


def test_start_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"is no run of train\.py: it holds no config\.json"):
        starting.starting_config(episode_config(**{"start.run": str(tmp_path)}))


def test_train_step_by_episodes_is_the_same_on_eight_devices_and_one():
    config = episode_config(**{"batch": 72})
    batch = {"image": generator.random((72, 32, 32, 3), dtype=np.float32), "label": np.zeros(72, np.int32)}
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = training.create_mesh(devices)
        optimizer = training.make_optimizer(config, lambda step: 0.05)
        graph, state = training.create_state(config, 10, optimizer, mesh)
        step = training.make_train_step(config, graph, optimizer, training.shardings_of(state))
        state, metrics = step(state, training.shard_batch(batch, mesh))
        results.append(jax.device_get((dataclasses.replace(state, optimizer=None), metrics)))
    chex.assert_trees_all_close(*results, rtol=2e-3, atol=2e-4)
    assert runs.flatten(config.to_dict())["episodes.ways"] == 3
