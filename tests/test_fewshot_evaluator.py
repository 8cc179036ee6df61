"""Few-shot evaluation from a run's folder to figures, tables and the report, on digits and a network of a few steps."""

import json

import jax
import numpy as np
import pytest

from distcam_jax import runs, training
from distcam_jax.evaluators import (
    evaluate_run,
    fewshot,
    fewshot_cases,
    fewshot_tables,
    load_network,
    provenance,
)
from distcam_jax.evaluators.fewshot_decisions import check_fewshot_options, decisions_of
from distcam_jax.input_pipeline import EpisodeSampler, make_eval_batches, read_labels
from distcam_jax.report import format_table
from distcam_jax.training import loop
from tests.tiny_run import tiny_config

EVALUATE = {
    "batch": 16,
    "ways": 3,
    "shots": (1, 2),
    "queries": 2,
    "episodes": 30,
    "distances": ("l1", "cosine"),
    "temperature": 10.0,
    "controls": True,
    "methods": ("dist_cam", "mahalanobis"),
    "norm": "sum",
    "eps": 0.1,
    "whitening_samples": 5,
    "whitening_ridge": 1.0,
    "shown_episodes": 1,
    "shown_queries": 4,
    "checkpoint": "latest",
    "center_crop": False,
}


def fewshot_config(**changes):
    config = tiny_config("metric")
    with config.unlocked():
        config.objective, config.cosine = "cosine", {"scale": 4.0}
        config.evaluate = dict(EVALUATE)
    config.data.test_size = 60
    config.epochs = 0.25
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, and its evaluation."""
    folder = tmp_path_factory.mktemp("fewshot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTCAM_DATA_DIR", str(tmp_path_factory.getbasetemp() / "prepared"))
        mesh = training.create_mesh(jax.devices()[:1])
        patch.setattr(loop, "create_mesh", lambda: mesh)
        patch.setattr(training, "create_mesh", lambda: mesh)
        config = fewshot_config()
        training.fit(config, folder / "run")
        metrics = evaluate_run(config, folder / "run", output=folder / "out")
        data = training.load_split(config, "eval")
        network = load_network(config, folder / "run", 10, name="cosine")
        yield folder, config, metrics, data, network


def own_embeddings(network, data):
    (batch,) = make_eval_batches(data.source, batch_size=60, image_size=32)
    features = network(batch["image"])[1]
    return np.asarray(features["embedding"], np.float64), np.asarray(features["pre_pool"], np.float64), batch["label"]


@pytest.mark.parametrize(("name", "shots"), [("l1", 1), ("l1", 2), ("cosine", 2)])
def test_evaluate_fewshot_measures_the_share_of_queries_nearest_to_their_prototype(finished, name, shots):
    _, config, metrics, data, network = finished
    embeddings, _, labels = own_embeddings(network, data)
    sampler = EpisodeSampler(labels, ways=3, shots=shots, queries=2, seed=config.seed)
    accuracies = []
    for number in range(30):
        rows, right = sampler.episode(number)[1], 0
        prototypes = [embeddings[one[:shots]].mean(axis=0) for one in rows]
        for way, one in enumerate(rows):
            for query in embeddings[one[shots:]]:
                if name == "l1":
                    scores = [-np.abs(query - prototype).sum() for prototype in prototypes]
                else:
                    scores = [query @ p / np.linalg.norm(query) / np.linalg.norm(p) for p in prototypes]
                right += int(np.argmax(scores) == way)
        accuracies.append(right / 6)
    figure = metrics["accuracy"]["cosine"][name][str(shots)]
    half = 1.96 * np.std(accuracies, ddof=1) / np.sqrt(30)
    wanted = np.mean(accuracies), np.mean(accuracies) - half, np.mean(accuracies) + half
    np.testing.assert_allclose([figure["value"], figure["low"], figure["high"]], wanted, atol=1e-6)


def test_evaluate_fewshot_writes_figures_tables_report_and_a_picture(finished):
    folder, _, metrics, *_ = finished
    out = folder / "out"
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    page = (out / "report.html").read_text()
    assert "3-way 1-shot, episode 1" in page
    assert "3-way 2-shot, episode 1" in page
    assert "Mahalanobis CAM" in page
    assert (out / "examples.png").read_bytes().startswith(b"\x89PNG")
    tables = (out / "tables.md").read_text()
    assert "rectified, cosine, centred · cosine network" in tables
    assert "prototypes, L1 · pixels" in tables
    assert "prototypes, L1 · random weights" in tables
    assert "| chance | 33.33 | 33.33 |" in tables


def test_evaluate_fewshot_controls_are_other_features_than_the_network(finished):
    _, _, metrics, *_ = finished
    assert list(metrics["networks"]) == ["cosine", "random weights", "pixels"]
    values = [metrics["accuracy"][name]["l1"]["2"]["value"] for name in metrics["networks"]]
    assert len(set(values)) == 3


def test_summarize_pairs_decisions_over_the_same_episodes():
    generator = np.random.default_rng(0)
    accuracies = {
        network: {name: {1: generator.random(50)} for name in ("l1", "cosine", "rectified", "rectified_centred")}
        for network in ("a", "b")
    }
    found = fewshot.summarize(accuracies)["differences"]
    by_pair = {(*row["a"], *row["b"]): row["figures"]["1"] for row in found}
    assert ("a", "rectified", "a", "cosine") in by_pair
    assert ("a", "l1", "b", "l1") in by_pair
    difference = accuracies["a"]["cosine"][1] - accuracies["a"]["l1"][1]
    figure = by_pair["a", "cosine", "a", "l1"]
    half = 1.96 * difference.std(ddof=1) / np.sqrt(50)
    np.testing.assert_allclose([figure["value"], figure["high"]], [difference.mean(), difference.mean() + half])


def test_tables_show_the_intervals_of_both_numbers_of_shots(finished):
    _, _, metrics, *_ = finished
    accuracy, differences = fewshot_tables.make_tables(metrics)
    assert [column.name for column in accuracy.columns] == ["1-shot", "2-shot"]
    assert len(accuracy.rows) == 3 * len(decisions_of(("l1", "cosine"))) + 1
    assert "30 episodes of digits, split test" in format_table(accuracy)
    assert differences.rows


def test_make_episodes_explains_each_query_against_each_prototype(finished):
    _, config, _, data, network = finished
    embeddings, maps, labels = own_embeddings(network, data)
    drawn = fewshot.draw_episodes(config, data)
    prototypes = fewshot.network_prototypes(
        network, finished[0] / "run" / "prototypes.safetensors", data.class_names, batch=16
    )
    episodes = fewshot_cases.make_episodes(config, network, prototypes, embeddings.astype(np.float32), data, drawn)
    assert [episode.title for episode in episodes] == ["3-way 1-shot, episode 1", "3-way 2-shot, episode 1"]
    episode, (classes, supports, queries) = episodes[1], (values[0] for values in drawn[2])
    assert episode.class_names == [data.class_names[label] for label in classes]
    means = embeddings[supports].mean(axis=1)
    distances = {row: np.abs(embeddings[row] - means).sum(axis=1) for row in queries.ravel()}
    wrong = sum(np.argmin(distances[row]) != way for way, rows in enumerate(queries) for row in rows)
    assert (episode.wrong, episode.total) == (wrong, 6)
    for query in episode.queries:
        (row,) = [row for row, values in distances.items() if np.allclose(values, query.scores, rtol=1e-4)]
        assert labels[row] == classes[query.true]
        assert query.predicted == int(np.argmin(distances[row]))
        for way in range(3):
            gaps = np.abs(embeddings[row] - means[way])
            weights = 1 / (gaps / gaps.mean() + 0.1)
            wanted = maps[row] @ (weights / weights.sum())
            np.testing.assert_allclose(query.heatmaps["Dist-CAM"][way], wanted, rtol=1e-3, atol=1e-6)
    own = np.asarray(episode.support_heatmaps["Dist-CAM"])
    assert own.shape == (3, 2, 4, 4)


@pytest.mark.parametrize(("count", "wanted"), [(8, [3, 1, 2, 4, 5, 0]), (4, [3, 1, 2, 0]), (3, [3, 1, 2]), (1, [3])])
def test_shown_queries_are_failures_first_and_a_third_of_right_ones(count, wanted):
    distances = np.array([[1.0, 9.0], [5.0, 4.0], [3.0, 3.5], [2.0, 8.0], [3.0, 5.0], [3.0, 8.0]])
    true = np.array([0, 0, 0, 1, 0, 0])  # margins 8, -1, 0.5, -6, 2, 5
    assert fewshot_cases.shown_queries(distances, true, count).tolist() == wanted


def test_shown_queries_of_an_episode_without_failures_go_from_the_narrowest_to_the_clearest():
    distances = np.stack([np.zeros(9), np.arange(1.0, 10.0)], axis=1)
    assert fewshot_cases.shown_queries(distances, np.zeros(9, int), 3).tolist() == [0, 4, 8]


def test_embed_pixels_are_the_images_in_the_order_of_the_source(finished):
    *_, data, _ = finished
    pixels = fewshot.embed_pixels(data.source, size=8, batch=16)
    (batch,) = make_eval_batches(data.source, batch_size=60, image_size=8)
    np.testing.assert_array_equal(pixels, batch["image"].reshape(60, -1))
    assert pixels.shape == (60, 192)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 1}, "config.evaluate.ways must be at least 2, got 1"),
        ({"shots": (1, 0)}, r"config.evaluate.shots\[1\] must be at least 1, got 0"),
        ({"shots": ()}, "config.evaluate.shots is empty"),
        ({"distances": ()}, "config.evaluate.distances is empty; name some of l1, l2, cosine"),
        ({"distances": ("l3",)}, "config.evaluate.distances: got 'l3', choose some of l1, l2, cosine"),
        ({"temperature": 0.0}, "config.evaluate.temperature must be positive, got 0.0"),
        ({"methods": ("gradcam",)}, "unknown method 'gradcam'; choose some of"),
        ({"methods": ()}, "config.evaluate.methods is empty"),
        ({"shown_queries": -1}, "config.evaluate.shown_queries must be at least 0, got -1"),
        ({"whitening_samples": 0}, "config.evaluate.whitening_samples must be at least 1, got 0"),
    ],
)
def test_check_fewshot_options_names_the_key(changes, message):
    config = fewshot_config()
    with config.unlocked():
        config.evaluate = {**EVALUATE, **changes}
    with pytest.raises(ValueError, match=message):
        check_fewshot_options(config.evaluate)


def test_check_fewshot_options_refuses_a_missing_key():
    config = fewshot_config()
    with config.unlocked():
        del config.evaluate["controls"]
    with pytest.raises(ValueError, match=r"the configuration has no key evaluate\.controls; it was made for another"):
        check_fewshot_options(config.evaluate)


def test_draw_episodes_names_a_class_with_too_few_images(finished):
    *_, data, _ = finished
    counts = np.bincount(read_labels(data.source))
    config = fewshot_config(**{"evaluate.queries": int(counts.min())})
    with pytest.raises(ValueError, match=r"class \d has \d images, and an episode takes"):
        fewshot.draw_episodes(config, data)


@pytest.mark.parametrize("given", [{"weights": "a.safetensors"}, {"prototypes": "p.safetensors"}])
def test_evaluate_run_refuses_flags_that_few_shot_evaluation_passes_over(given, tmp_path):
    workdir = None if "weights" in given else tmp_path
    with pytest.raises(ValueError, match="few-shot evaluation takes the folder of a run, --workdir; leave --weights"):
        evaluate_run(fewshot_config(), workdir, **given)


def test_evaluate_fewshot_refuses_the_same_run_twice(finished):
    folder, config, *_ = finished
    with pytest.raises(ValueError, match="need folders of different names"):
        evaluate_run(config, folder / "run", output=folder / "twice", compare=[folder / "run"])
    assert not (folder / "twice").exists()


def test_data_options_of_a_run_do_not_tell_where_a_list_of_classes_lies():
    config = fewshot_config()
    with config.unlocked():
        config.data = {"name": "tiny_imagenet_fewshot", "manual_dir": "/a/b", "class_splits": "/a/splits.json"}
    assert runs.data_options(config) == {"name": "tiny_imagenet_fewshot", "class_splits": "splits.json"}


def test_portable_configuration_names_the_starting_run_without_its_place():
    config = fewshot_config()
    with config.unlocked():
        config.start = {"run": "/somewhere/runs/cosine", "checkpoint": "best"}
    assert provenance.portable(config)["start"] == {"run": "cosine", "checkpoint": "best"}


def test_runs_on_the_same_choice_of_classes_compare(finished, tmp_path):
    _, config, *_ = finished
    with config.copy_and_resolve_references().unlocked() as changed:
        changed.data.split_names = ("a", "b", "c")
    runs.claim_workdir(changed, tmp_path)
    assert list(runs.load_comparable_run(tmp_path, changed).data.split_names) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="was trained on other data than this configuration's"):
        runs.load_comparable_run(tmp_path, config)
