"""Triplet weights against enumeration of all triplets, and their transfer against loops."""

import jax
import numpy as np
import pytest

from distcam_jax.methods import Context, transfer_maps, transferred_weights, triplet_gradient_weights

LABELS = np.array([2, 0, 1, 0, -1, 1, 0])


def samples(seed=0, shape=(7, 3)):
    return np.random.default_rng(seed).uniform(0, 1, size=shape).astype(np.float32)


def alike(x, y, metric):
    if metric == "cosine":
        return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
    return -np.sum(np.abs(x - y)) if metric == "l1" else -np.sum((x - y) ** 2)


def enumerated_weights(embeddings, labels, margin, metric, step=1e-6):
    """Mean over all triplets of non-zero loss of minus the loss's gradient, by finite differences, and their share."""
    embeddings = np.asarray(embeddings, np.float64)
    weights, shares = np.zeros_like(embeddings), np.zeros(len(labels))
    for a, anchor in enumerate(embeddings):
        positives = [i for i in range(len(labels)) if labels[i] == labels[a] >= 0 and i != a]
        negatives = [i for i in range(len(labels)) if labels[i] != labels[a] and labels[i] >= 0]
        active = []
        for positive in embeddings[positives]:
            for negative in embeddings[negatives]:

                def loss(x, p=positive, n=negative):
                    return max(0.0, alike(x, n, metric) - alike(x, p, metric) + margin)

                if loss(anchor) > 0:
                    steps = np.eye(len(anchor)) * step
                    active.append([(loss(anchor - e) - loss(anchor + e)) / (2 * step) for e in steps])
        if active:
            weights[a], shares[a] = np.mean(active, axis=0), len(active) / (len(positives) * len(negatives))
    return weights, shares


@pytest.mark.parametrize(("metric", "margin"), [("cosine", 0.05), ("l1", 0.2), ("l2", 0.1)])
def test_triplet_gradient_weights_match_the_mean_over_all_triplets(metric, margin):
    expected, shares = enumerated_weights(samples(), LABELS, margin, metric)
    assert shares[0] == shares[4] == 0
    assert np.any((shares > 0) & (shares < 1))
    drawn = 20000
    weights, counts = triplet_gradient_weights(
        jax.random.key(0), samples(), LABELS, triplets=drawn, margin=margin, metric=metric
    )
    np.testing.assert_allclose(counts / drawn, shares, atol=0.02)  # 0.0035 of standard deviation at most
    np.testing.assert_allclose(weights, expected, atol=0.03 * np.abs(expected).max())
    assert np.array_equal(np.asarray(counts) == 0, shares == 0)


def test_triplet_gradient_weights_of_the_only_triplet_by_hand():
    embeddings, labels = np.array([[1.0, 5.0], [3.0, 2.0], [4.0, 1.0]]), np.array([7, 7, 3])
    weights, counts = triplet_gradient_weights(
        jax.random.key(1), embeddings, labels, triplets=5, margin=30.0, metric="l2"
    )
    assert counts.tolist() == [5, 5, 0]
    # 2 (p − n) whatever the anchor: it does not depend on it while the loss is not zero
    np.testing.assert_allclose(weights, [[-2, 2], [-6, 8], [0, 0]], rtol=1e-6)


def test_triplet_gradient_weights_follow_their_key():
    def weights(seed):
        return np.asarray(triplet_gradient_weights(jax.random.key(seed), samples(), LABELS, triplets=3, margin=1.0)[0])

    assert np.array_equal(weights(0), weights(0))
    assert not np.allclose(weights(0), weights(1))


def test_triplet_gradient_weights_do_not_depend_on_blocks():
    options = {"triplets": 4, "margin": 1.0}
    at_once = triplet_gradient_weights(jax.random.key(0), samples(), LABELS, **options, batch_size=7)
    in_blocks = triplet_gradient_weights(jax.random.key(0), samples(), LABELS, **options, batch_size=2)
    np.testing.assert_allclose(in_blocks[0], at_once[0], rtol=1e-5, atol=1e-6)
    assert np.array_equal(in_blocks[1], at_once[1])


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [-1, -1, 4]], ids=["one class", "singles", "one labelled"])
def test_triplet_gradient_weights_are_zero_without_triplets(labels):
    weights, counts = triplet_gradient_weights(
        jax.random.key(0), samples(shape=(3, 2)), np.array(labels), triplets=8, margin=9.0
    )
    assert np.array_equal(weights, np.zeros((3, 2)))
    assert counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"triplets": 0}, "triplets: want a positive integer"),
        ({"margin": -0.1}, "margin: want a finite number of at least 0"),
        ({"metric": "dot"}, "metric: want one of"),
    ],
)
def test_triplet_gradient_weights_refuse_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        triplet_gradient_weights(jax.random.key(0), samples(), LABELS, **options)


@pytest.mark.parametrize(("neighbors", "channels"), [(1, 50), (1, 1), (2, None), (3, 2)])
def test_transferred_weights_match_loops(neighbors, channels):
    queries, classes = samples(1, (4, 3)), np.array([[0, 1], [1, 2], [2, 0], [0, 5]])
    weights = np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32)
    expected = np.zeros((4, 2, 3))
    for b, m in np.ndindex(4, 2):
        of_class = [i for i in range(7) if LABELS[i] == classes[b, m]]
        nearest = sorted(of_class, key=lambda i: -alike(queries[b], samples()[i], "cosine"))[:neighbors]
        if nearest:
            mean = weights[nearest].mean(axis=0)
            kept = np.argsort(-mean)[:channels]
            expected[b, m, kept] = mean[kept]
    actual = transferred_weights(queries, classes, samples(), LABELS, weights, neighbors=neighbors, channels=channels)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_transfer_maps_mark_what_the_positive_has_and_the_negative_lacks():
    """A photograph whose left half shows what its class has in common, the right half what the other class has."""
    embeddings, labels = np.array([[1.0, 0.2], [0.9, 0.1], [0.2, 1.0], [0.1, 0.9]]), np.array([0, 0, 1, 1])
    weights, _ = triplet_gradient_weights(jax.random.key(0), embeddings, labels, triplets=20, margin=2.0)
    features, classes = np.array([[[[1.0, 0.0], [0.0, 1.0]]]]), np.array([[0, 1]])
    transferred = transferred_weights(np.array([[0.5, 0.5]]), classes, embeddings, labels, weights)
    maps = np.asarray(transfer_maps(features, Context(classes, np.eye(2), transferred=transferred)))
    assert maps[0, 0, 0, 0] > maps[0, 0, 0, 1] == 0
    assert maps[0, 1, 0, 1] > maps[0, 1, 0, 0] == 0


def test_transferred_weights_refuse_weights_of_other_samples(without_type_checks):
    with pytest.raises(ValueError, match=r"sample_weights: want axes \[n k\] with n = 7 as in samples"):
        transferred_weights(samples(1, (1, 3)), np.array([[0]]), samples(), LABELS, samples(2, (6, 3)))
