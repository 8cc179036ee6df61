"""Losses over distances within a batch against loops over samples, pairs and triplets in float64."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.losses import (
    METRICS,
    batch_hard_triplet,
    contrastive,
    distances,
    pairwise_distances,
    semi_hard_triplet,
)

LABELS = np.array([0, 1, 0, 2, 1, 1, 0, 3])  # unbalanced; classes 2 and 3 have no positive pair


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def distance(x, y, metric):
    if metric == "l1":
        return sum(abs(float(a) - float(b)) for a, b in zip(x, y, strict=True))
    squared = sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
    return squared if metric == "squared_l2" else math.sqrt(squared)


def contrastive_by_loop(embeddings, labels, metric, margin):
    terms = []
    for i in range(len(labels)):
        for j in range(i + 1, len(labels)):
            d = distance(embeddings[i], embeddings[j], metric)
            terms.append(0.5 * d**2 if labels[i] == labels[j] else 0.5 * max(0, margin - d) ** 2)
    return sum(terms) / len(terms)


def batch_hard_by_loop(embeddings, labels, metric, margin):
    terms = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        positives = [distance(embeddings[i], embeddings[j], metric) for j in others if labels[j] == labels[i]]
        negatives = [distance(embeddings[i], embeddings[j], metric) for j in others if labels[j] != labels[i]]
        if positives and negatives:
            gap = max(positives) - min(negatives)
            terms.append(math.log(1 + math.exp(gap)) if margin is None else max(0, margin + gap))
    return sum(terms) / len(terms)


def semi_hard_by_loop(embeddings, labels, metric, margin):
    terms = []
    for i in range(len(labels)):
        negatives = [
            distance(embeddings[i], x, metric) for x, y in zip(embeddings, labels, strict=True) if y != labels[i]
        ]
        for p in range(len(labels)):
            if p == i or labels[p] != labels[i] or not negatives:
                continue
            to_positive = distance(embeddings[i], embeddings[p], metric)
            farther = [d for d in negatives if d > to_positive]
            terms.append(max(0, margin + to_positive - (min(farther) if farther else max(negatives))))
    return sum(terms) / len(terms)


# ---- pairwise_distances


@pytest.mark.parametrize("block_elements", [1, 60, 2**22])  # one vector at a time, three with one left over, all
@pytest.mark.parametrize("metric", METRICS)
def test_pairwise_distances_match_loop(metric, block_elements, monkeypatch):
    monkeypatch.setattr(distances, "_MAX_BLOCK_ELEMENTS", block_elements)
    embeddings, others = normal(0, 4, 5), normal(1, 7, 5)
    found = pairwise_distances(embeddings, others, metric=metric)
    assert found.dtype == jnp.float32
    want = [[distance(x, y, metric) for y in others] for x in embeddings]
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_pairwise_distances_of_a_batch_to_itself_are_symmetric_with_zeros(metric):
    embeddings = normal(0, 6, 40)
    found = pairwise_distances(embeddings, metric=metric)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), np.zeros(6))
    np.testing.assert_array_equal(found, pairwise_distances(embeddings, embeddings, metric=metric))


@pytest.mark.parametrize("metric", ["l2", "squared_l2"])
def test_pairwise_distances_tell_near_neighbours_far_from_the_origin(metric):
    # |x|² + |y|² - 2 x·y has rounding steps of 64 here.
    embeddings = np.array([[2.0**15, 2.0**14], [2.0**15 + 3, 2.0**14 - 4]], np.float32)
    assert pairwise_distances(embeddings, metric=metric)[0, 1].item() == {"l2": 5, "squared_l2": 25}[metric]


@pytest.mark.parametrize(
    ("metric", "want"),
    [
        ("l1", [[2.0, -2.0], [0.0, 0.0], [-2.0, 2.0]]),
        ("l2", [[1.2, -1.6], [0.0, 0.0], [-1.2, 1.6]]),
        ("squared_l2", [[12.0, -16.0], [0.0, 0.0], [-12.0, 16.0]]),
    ],
)
def test_pairwise_distances_gradient_by_hand(metric, want):
    def total(x):  # every distance twice, those of a vector to itself once
        return pairwise_distances(x, metric=metric).sum()

    pair = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    np.testing.assert_allclose(jax.grad(total)(pair), [want[0], want[2]], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(total)(jnp.ones((3, 2))), np.zeros((3, 2)))  # equal vectors: no direction


@pytest.mark.parametrize("metric", METRICS)
def test_pairwise_distances_gradient_holds_no_array_of_all_differences(metric):
    embeddings = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(pairwise_distances(x, metric=metric) ** 2)))
    used = gradient.lower(embeddings).compile().memory_analysis().temp_size_in_bytes
    assert used < 512 * 512 * 512 * 4 / 5


# ---- contrastive


@pytest.mark.parametrize("margin", [0.5, 2.5])
@pytest.mark.parametrize("metric", METRICS)
def test_contrastive_matches_loop(metric, margin):
    embeddings = normal(2, 8, 3)
    want = contrastive_by_loop(embeddings, LABELS, metric, margin)
    np.testing.assert_allclose(contrastive(embeddings, LABELS, metric=metric, margin=margin), want, rtol=1e-6)


def test_contrastive_without_positive_pairs_pushes_apart():
    embeddings = jnp.array([[0.0], [0.25]])
    loss, gradient = jax.value_and_grad(lambda x: contrastive(x, jnp.array([0, 1])))(embeddings)
    assert loss == 0.5 * 0.75**2
    assert gradient.tolist() == [[0.75], [-0.75]]


# ---- batch_hard_triplet


@pytest.mark.parametrize("margin", [0.0, 0.3, 2, None])
@pytest.mark.parametrize("metric", METRICS)
def test_batch_hard_triplet_matches_loop(metric, margin):
    embeddings = normal(3, 8, 3)
    want = batch_hard_by_loop(embeddings, LABELS, metric, margin)
    assert want > 0
    np.testing.assert_allclose(batch_hard_triplet(embeddings, LABELS, metric=metric, margin=margin), want, rtol=1e-6)


def test_batch_hard_triplet_counts_satisfied_anchors_but_not_those_without_a_pair():
    embeddings = jnp.array([[0.0], [1.0], [1.5], [9.0], [9.0]])
    # Anchors 0 to 4 with margin 1: 1 + 1 - 1.5, 1 + 1 - 0.5, (no positive), 1 + 0 - 7.5 twice.
    found = batch_hard_triplet(embeddings, jnp.array([0, 0, 1, 2, 2]), margin=1.0)
    assert found.item() == pytest.approx((0.5 + 1.5 + 0 + 0) / 4)


# ---- semi_hard_triplet


@pytest.mark.parametrize("block_elements", [1, 200, 2**22])
@pytest.mark.parametrize("margin", [0.0, 0.2, 2])
@pytest.mark.parametrize("metric", METRICS)
def test_semi_hard_triplet_matches_loop(metric, margin, block_elements, monkeypatch):
    monkeypatch.setattr(distances, "_MAX_BLOCK_ELEMENTS", block_elements)
    embeddings = normal(3, 8, 3)
    want = semi_hard_by_loop(embeddings, LABELS, metric, margin)
    assert want > 0
    np.testing.assert_allclose(semi_hard_triplet(embeddings, LABELS, metric=metric, margin=margin), want, rtol=1e-6)


def test_semi_hard_triplet_takes_the_nearest_negative_beyond_the_positive():
    # From anchor 0 the positive lies at 2, negatives at 1, 2.5 and 4: hardest, semi-hard, easiest. From anchor 1 at 2,
    # the negatives lie at 1, 4.5 and 2: as far as the positive is not farther.
    embeddings, labels = jnp.array([[0.0], [2.0], [1.0], [-2.5], [4.0]]), jnp.array([0, 0, 1, 2, 3])
    found = semi_hard_triplet(embeddings, labels, margin=3.0)
    assert found.item() == pytest.approx(((3 + 2 - 2.5) + (3 + 2 - 4.5)) / 2)


def test_semi_hard_triplet_without_a_farther_negative_takes_the_farthest():
    embeddings, labels = jnp.array([[0.0], [9.0], [2.0], [4.0]]), jnp.array([0, 0, 1, 2])
    # Anchor 0: negatives 2 and 4, anchor 1: 7 and 5; the positive at 9 lies beyond them.
    found = semi_hard_triplet(embeddings, labels, margin=0.5)
    assert found.item() == pytest.approx(((0.5 + 9 - 4) + (0.5 + 9 - 7)) / 2)


def test_semi_hard_triplet_gradient_holds_no_array_of_all_triplets():
    embeddings, labels = jax.ShapeDtypeStruct((512, 8), jnp.float32), jax.ShapeDtypeStruct((512,), jnp.int32)
    used = jax.jit(jax.grad(semi_hard_triplet)).lower(embeddings, labels).compile().memory_analysis().temp_size_in_bytes
    assert used < 512 * 512 * 512 * 4 / 2


# ---- errors

ONES, TWO = jnp.ones((2, 3)), jnp.array([0, 1])
NO_METRIC = "metric: want one of 'l1', 'l2', 'squared_l2', got 'cosine'"


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairwise_distances(ONES, metric="cosine"), NO_METRIC),
        (
            lambda: pairwise_distances(ONES, jnp.ones((2, 4)), metric="l2"),
            r"others: want axes \[c k\] with k = 3 as in embeddings, got shape \(2, 4\)",
        ),
        (lambda: pairwise_distances(TWO[:, None], metric="l2"), "embeddings: want a floating type, got int32"),
        (lambda: contrastive(ONES, TWO, metric="cosine"), NO_METRIC),
        (lambda: contrastive(ONES, TWO, margin=0), "margin: want a positive finite number, got 0"),
        (lambda: contrastive(ONES, TWO, margin=float("nan")), "margin: want a positive finite number, got nan"),
        (lambda: contrastive(ONES, TWO[:1]), r"labels: want 2 integers.* shape \(1,\)"),
        (lambda: contrastive(ONES[:0], TWO[:0]), r"embeddings: want axes \[b k\] with b not empty, got shape \(0, 3\)"),
        (lambda: batch_hard_triplet(ONES, TWO, metric="cosine"), NO_METRIC),
        (lambda: batch_hard_triplet(ONES, TWO, margin=-1), "margin: want a finite number of at least 0, got -1"),
        (
            lambda: batch_hard_triplet(ONES, TWO, margin="soft"),
            "margin: want a finite number of at least 0, got 'soft'",
        ),
        (lambda: batch_hard_triplet(ONES, jnp.ones(2)), "labels: want 2 integers, one a sample, got float32"),
        (lambda: batch_hard_triplet(ONES[0], TWO), r"embeddings: want axes \[b k\], got shape \(3,\)"),
        (lambda: semi_hard_triplet(ONES, TWO, metric="cosine"), NO_METRIC),
        (lambda: semi_hard_triplet(ONES, TWO, margin=-0.1), "margin: want a finite number of at least 0, got -0.1"),
        (lambda: semi_hard_triplet(ONES, TWO, margin=True), "margin: want a finite number of at least 0, got True"),
        (lambda: semi_hard_triplet(ONES, TWO[:1]), "labels: want 2 integers"),
    ],
)
def test_pair_losses_name_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
