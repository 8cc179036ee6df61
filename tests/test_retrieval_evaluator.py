"""Retrieval and re-identification from a run's folder to figures, tables and the report, on digits."""

import dataclasses
import json
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from distcam_jax import training
from distcam_jax.evaluators import evaluate_run, load_network, retrieval
from distcam_jax.input_pipeline import make_eval_batches
from tests.test_retrieval_options import EVALUATE
from tests.tiny_run import tiny_config


def retrieval_config(*, gallery="", **changes):
    """Of the run that all tests share; only how it is evaluated differs."""
    config = tiny_config("metric")
    with config.unlocked():
        config.evaluate = {**EVALUATE, "batch": 16, "resamples": 20, **changes}
        config.input.gallery_split = gallery
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory, common_folder, copy_run):
    """A trained run's folder, on one device."""
    folder = tmp_path_factory.mktemp("retrieval") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTCAM_DATA_DIR", str(common_folder / "prepared"))
        copy_run("metric", folder)
        mesh = training.create_mesh(jax.devices()[:1])
        patch.setattr(training, "create_mesh", lambda: mesh)
        yield folder


@pytest.fixture(scope="module")
def finished(run):
    """The evaluation of classes, in cosine, and what it is made of."""
    search = {"space": "embedding", "distance": "cosine"}
    config, shown = retrieval_config(search=search), []
    with pytest.MonkeyPatch.context() as patch:
        make = retrieval.make_retrieval
        patch.setattr(retrieval, "make_retrieval", lambda *given, **named: shown.extend(make(*given, **named)) or shown)
        metrics = evaluate_run(config, run, output=run / "out")
    data = training.load_split(config, "eval")
    network = load_network(config, run, 10, name="metric")
    (batch,) = make_eval_batches(data.source, batch_size=len(data.source), image_size=32)
    names = [data.source[row]["file_name"] for row in range(len(data.source))]
    features = network(batch["image"])[1]
    maps, pooled = (np.asarray(features[name], np.float64) for name in ("pre_pool", "embedding"))
    return run / "out", metrics, shown[0], maps, pooled, batch["label"], names


def cosine_distances(pooled):
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, np.inf)
    return distances


def test_evaluate_retrieval_measures_what_loops_find(finished):
    _, metrics, _, _, pooled, labels, _ = finished
    distances = {"embedding_cosine": cosine_distances(pooled)}
    distances["embedding_l1"] = np.array([[np.abs(a - b).sum() for b in pooled] for a in pooled])
    np.fill_diagonal(distances["embedding_l1"], np.inf)
    found, nearest = {}, {}
    for name, values in distances.items():
        found[name], nearest[name] = [], values.argmin(axis=1)
        for row, label in enumerate(labels):
            right = labels[np.argsort(values[row], kind="stable")[:-1]] == label
            if right.any():
                r = right.sum()
                precisions = np.cumsum(right[:r]) / np.arange(1, r + 1) * right[:r]
                found[name].append([right[0], right[:4].any(), right[:r].mean(), precisions.sum() / r])
    valid = [row for row, label in enumerate(labels) if np.sum(labels == label) > 1]
    for name, rows in found.items():
        figures = metrics["figures"]["metric"][name]
        got = [figures[metric]["value"] for metric in ("recall_1", "recall_4", "r_precision", "map_at_r")]
        np.testing.assert_allclose(got, np.mean(rows, axis=0), atol=1e-6)
    same = nearest["embedding_cosine"][valid] == nearest["embedding_l1"][valid]
    assert metrics["agreement"]["metric"]["same_image"]["value"] == pytest.approx(same.mean())
    assert metrics["data"]["queries"] == len(valid)
    assert metrics["data"]["left_out"] == len(labels) - len(valid)


def test_evaluate_retrieval_explains_both_of_each_pair(finished):
    _, _, shown, maps, pooled, labels, files = finished
    assert len(shown.queries) == 3
    assert shown.methods == ["Dist-CAM", "Mahalanobis CAM", "uniform weights"]
    distances = cosine_distances(pooled)

    def explained(image, reference):
        gaps = np.abs(pooled[image] - pooled[reference])
        weights = 1 / (gaps / gaps.mean() + 0.1)
        return maps[image] @ (weights / weights.sum())

    for query in shown.queries:
        names = [match.file_name for match in query.matches]
        row = files.index(query.file_name)
        nearest = np.argsort(distances[row])[: len(names)]
        assert names == [files[place] for place in nearest]
        for match, place in zip(query.matches, nearest, strict=True):
            assert match.correct == (labels[place] == labels[row])
            assert match.distance == pytest.approx(distances[row, place], abs=1e-5)
            np.testing.assert_allclose(match.query_heatmaps["Dist-CAM"], explained(row, place), rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(match.heatmaps["Dist-CAM"], explained(place, row), rtol=1e-3, atol=1e-6)
    precisions = [query.average_precision for query in shown.queries]
    assert precisions == sorted(precisions)


def test_evaluate_retrieval_writes_figures_tables_report_and_a_picture(finished):
    out, metrics, *_ = finished
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert (out / "examples.png").read_bytes().startswith(b"\x89PNG")
    page, tables = (out / "report.html").read_text(), (out / "tables.md").read_text()
    assert "which is not what is searched by: both choose the same nearest image for" in page
    assert "Mahalanobis CAM sets" in page
    for row in (
        "GAP, cosine · metric network",
        "GAP, L1 · random weights",
        "pixels, L2",
        "chance",
        "GAP, cosine − GAP, L1",
    ):
        assert f"| {row} |" in tables
    for row in ("metric network − pixels, cosine", "Dist-CAM, nearest image − centre box (80 % a side)"):
        assert row in tables or row.replace(", cosine", "") in tables
    assert "queries share classes and images" in tables


def test_evaluate_retrieval_scores_boxes_where_there_are_some(finished):
    _, metrics, *_ = finished
    found = metrics["localization"]["metric"]
    assert found["images"] == metrics["data"]["queries"]
    assert found["tuned_on"] == "validation"
    assert list(found["figures"]) == ["dist_cam", "mahalanobis", "uniform", "center_box", "whole_image"]
    assert list(found["figures"]["mahalanobis"]) == ["nearest", "same", "wrong"]


class Persons(Sequence):
    """Digits as persons: without boxes, with an identity and a camera each."""

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        example = dict(self._source[index])
        return example | {"identity": example["label"], "camera": 1 + index % 2, "boxes": np.zeros((0, 4), np.float32)}


def test_evaluate_retrieval_searches_for_persons_by_other_cameras(run, monkeypatch):
    load = training.load_split

    def load_persons(config, split):
        data = load(config, split)
        return data if split == "train" else dataclasses.replace(data, source=Persons(data.source))

    monkeypatch.setattr(training, "load_split", load_persons)
    rerank = {"k1": 4, "k2": 2, "lambda_value": 0.3}
    config = retrieval_config(gallery="validation", rerank=rerank, controls=False, methods=("dist_cam",))
    metrics = evaluate_run(config, run, output=run / "persons")
    assert list(metrics["chance"]) == ["rank_1", "rank_2", "rank_4", "map"]
    rows = metrics["figures"]["metric"]
    assert list(rows)[3:] == ["embedding_l1_reranked", "embedding_cosine_reranked"]
    assert metrics["localization"] == {}
    assert ["metric", "embedding_l1_reranked"] in [row["a"] for row in metrics["differences"]]
    tables = (run / "persons" / "tables.md").read_text()
    assert "Images of the query's person by the query's camera are taken out of its list." in tables
    assert "GAP, L1, re-ranked − GAP, L1" in tables
    assert "The search is that of Dist-CAM" in (run / "persons" / "report.html").read_text()


def test_evaluate_run_refuses_weights_for_a_search(tmp_path):
    with pytest.raises(ValueError, match="retrieval evaluation takes the folder of a run, --workdir; leave --weights"):
        evaluate_run(retrieval_config(), None, weights="a.safetensors")


def test_evaluate_retrieval_refuses_reranking_without_cameras(run):
    config = retrieval_config(rerank={"k1": 4, "k2": 2, "lambda_value": 0.3})
    with pytest.raises(ValueError, match="rerank is for re-identification, and the images have no cameras and identi"):
        evaluate_run(config, run, output=run / "refused")
    assert not (run / "refused").exists()


def test_evaluate_retrieval_refuses_a_space_that_the_network_does_not_have(run):
    config = retrieval_config(search={"space": "neck", "distance": "cosine"})
    with pytest.raises(ValueError, match="'neck' needs the objective neck"):
        evaluate_run(config, run, output=run / "refused")
