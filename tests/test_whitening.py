"""The covariance behind Mahalanobis CAM, measured on samples of a network that needs no training."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from distcam_jax import training
from distcam_jax.evaluators import Samples, choose_methods
from distcam_jax.evaluators.explain import sample_rows
from distcam_jax.evaluators.whitening import measure_whitening, sample_whitening, whitening_options
from tests.patch_network import CHANNELS, PatchNetwork, make_data, make_prototypes, pooled_features

OPTIONS = ml_collections.ConfigDict(
    {"methods": ("mahalanobis", "uniform"), "whitening_samples": 3, "whitening_ridge": 0.5, "batch": 8}
)
LABELS = np.array([2, 0, 4, 1, 3, 3, 0, 2, 1, 4, 2, 0, 1, 2, 2])


def loop_precision(embeddings, labels, prototypes, ridge):
    covariance = np.zeros((CHANNELS, CHANNELS))
    for embedding, label in zip(embeddings, labels, strict=True):
        away = embedding.astype(np.float64) - prototypes[label]
        covariance += np.outer(away, away) / len(labels)
    return np.linalg.inv(covariance + ridge * np.trace(covariance) / CHANNELS * np.eye(CHANNELS))


@pytest.fixture
def loads(monkeypatch):
    """Splits that were asked for; each is one picture a label."""
    asked = []

    def load_split(config, split):
        asked.append(split)
        return make_data(LABELS)

    monkeypatch.setattr(training, "load_split", load_split)
    return asked


def test_measure_whitening_is_a_loop_over_drawn_training_images(loads):
    network = PatchNetwork()
    counts = np.bincount(LABELS)
    counts[1] = 0  # no prototype, no part in the covariance
    prototypes = dataclasses.replace(make_prototypes(absent=(1,)), counts=counts)
    methods = choose_methods(OPTIONS.methods, network, whitened=True)
    found = measure_whitening(network, prototypes, methods, OPTIONS, seed=4)
    rows = [row for row in sample_rows(LABELS, 3, seed=4) if LABELS[row] != 1]
    assert len(rows) == 3 + 3 + 2 + 2  # of five, three, two and two
    embeddings = [pooled_features(row) for row in rows]
    expected = loop_precision(embeddings, LABELS[rows], prototypes.prototypes, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert loads == ["train"]


def test_measure_whitening_computes_nothing_where_no_method_needs_it(loads):
    network = PatchNetwork()
    methods = choose_methods(("uniform", "dist_cam"), network, whitened=True)
    assert measure_whitening(network, make_prototypes(), methods, OPTIONS, seed=0) is None
    assert not loads


def test_sample_whitening_leaves_samples_without_a_prototype_out():
    generator, prototypes = np.random.default_rng(0), make_prototypes(absent=(1, 3))
    samples = Samples(generator.uniform(size=(20, CHANNELS)).astype(np.float32), np.arange(20) % 5)
    kept = [row for row in range(20) if row % 5 not in (1, 3)]
    expected = loop_precision(samples.embeddings[kept], samples.labels[kept], prototypes.prototypes, 1.0)
    np.testing.assert_allclose(sample_whitening(samples, prototypes, ridge=1.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"whitening_samples": 0}, "config.evaluate.whitening_samples must be at least 1, got 0"),
        ({"whitening_ridge": 0.0}, r"config.evaluate.whitening_ridge must be positive, got 0\.0"),
        ({"whitening_ridge": None}, "the configuration has no key evaluate.whitening_ridge; it was made for another"),
        ({"whitening_samples": None}, "the configuration has no key evaluate.whitening_samples; it was made"),
    ],
    ids=str,
)
def test_whitening_options_refuse_what_is_missing_or_out_of_range(changes, message):
    values = {name: value for name, value in (OPTIONS.to_dict() | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        whitening_options(ml_collections.ConfigDict(values))


def test_whitening_options_say_nothing_where_no_method_needs_them():
    values = OPTIONS.to_dict() | {"methods": ("uniform",), "whitening_samples": 0}
    assert whitening_options(ml_collections.ConfigDict(values)) == {}
