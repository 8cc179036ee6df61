"""Losses over inner products within a batch against loops over pairs in float64, and against optax."""

import math

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from distcam_jax.losses import multi_similarity, n_pair, nt_xent

LABELS = np.array([0, 1, 0, 2, 1, 1, 0, 3, 1])  # unbalanced; classes 2 and 3 have no positive pair


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dot(x, y):
    return sum(float(a) * float(b) for a, b in zip(x, y, strict=True))


def cosine(x, y):
    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


def n_pair_by_loop(embeddings, labels, regularization):
    pairs, waiting = [], {}
    for i, label in enumerate(labels):
        if label in waiting:
            pairs.append((waiting.pop(label), i))
        else:
            waiting[label] = i
    total = 0.0
    for anchor, positive in pairs:
        to_own = dot(embeddings[anchor], embeddings[positive])
        others = [p for _, p in pairs if labels[p] != labels[anchor]]
        total += math.log(1 + sum(math.exp(dot(embeddings[anchor], embeddings[p]) - to_own) for p in others))
    lengths = [dot(embeddings[i], embeddings[i]) for pair in pairs for i in pair]
    return total / len(pairs) + regularization * sum(lengths) / len(lengths)


def nt_xent_by_loop(embeddings, labels, temperature):
    terms = []
    for i in range(len(labels)):
        negatives = [cosine(embeddings[i], x) for x, y in zip(embeddings, labels, strict=True) if y != labels[i]]
        for p in range(len(labels)):
            if p != i and labels[p] == labels[i]:
                own = math.exp(cosine(embeddings[i], embeddings[p]) / temperature)
                terms.append(-math.log(own / (own + sum(math.exp(s / temperature) for s in negatives))))
    return sum(terms) / len(terms)


def multi_similarity_by_loop(embeddings, labels, alpha, beta, base, epsilon):
    total = 0.0
    for i in range(len(labels)):
        positives, negatives = [], []
        for j in range(len(labels)):
            if j != i:
                (positives if labels[j] == labels[i] else negatives).append(cosine(embeddings[i], embeddings[j]))
        if not positives or not negatives:
            continue
        kept_positives = [s for s in positives if s < max(negatives) + epsilon]
        kept_negatives = [s for s in negatives if s > min(positives) - epsilon]
        total += math.log(1 + sum(math.exp(-alpha * (s - base)) for s in kept_positives)) / alpha
        total += math.log(1 + sum(math.exp(beta * (s - base)) for s in kept_negatives)) / beta
    return total / len(labels)


# ---- n_pair


@pytest.mark.parametrize("regularization", [0.0, 0.25])
def test_n_pair_matches_loop(regularization):
    embeddings = normal(0, 9, 4)
    want = n_pair_by_loop(embeddings, LABELS, regularization)
    np.testing.assert_allclose(n_pair(embeddings, LABELS, regularization=regularization), want, rtol=1e-6)


def test_n_pair_of_two_samples_a_class_is_cross_entropy_of_anchors_against_positives():
    anchors, positives = normal(1, 5, 3), normal(2, 5, 3)
    found = n_pair(np.concatenate([anchors, positives]), np.tile(np.arange(5), 2))
    want = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(anchors @ positives.T), jnp.arange(5)).mean()
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_n_pair_leaves_samples_without_a_partner_alone():
    labels = jnp.array([0, 1, 0, 1, 0, 2])  # the third sample of class 0 and class 2 have none
    gradient = jax.grad(lambda x: n_pair(x, labels, regularization=0.1))(jnp.asarray(normal(3, 6, 3)))
    assert np.abs(gradient[:4]).min() > 0
    np.testing.assert_array_equal(gradient[4:], np.zeros((2, 3)))


def test_n_pair_of_large_embeddings_is_finite():
    embeddings, labels = 1e3 * normal(0, 8, 4), np.arange(8) // 2
    loss, gradient = jax.value_and_grad(lambda x: n_pair(x, labels))(jnp.asarray(embeddings))
    assert loss > 1e5
    assert np.isfinite(gradient).all()


# ---- nt_xent


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2])
def test_nt_xent_matches_loop(temperature):
    embeddings = 10 * normal(0, 9, 4)
    want = nt_xent_by_loop(embeddings, LABELS, temperature)
    np.testing.assert_allclose(nt_xent(embeddings, LABELS, temperature=temperature), want, rtol=1e-5)


def test_nt_xent_matches_optax():
    embeddings, labels = jnp.asarray(normal(0, 9, 4)), jnp.asarray(LABELS)
    with jax.numpy_dtype_promotion("standard"):  # optax adds numbers and truth values
        want, want_gradient = jax.value_and_grad(lambda x: optax.losses.ntxent(x, labels, 0.2))(embeddings)
    found, gradient = jax.value_and_grad(lambda x: nt_xent(x, labels, temperature=0.2))(embeddings)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-5)


def test_nt_xent_of_one_class_is_zero():
    loss, gradient = jax.value_and_grad(lambda x: nt_xent(x, jnp.zeros(5, jnp.int32)))(jnp.asarray(normal(0, 5, 3)))
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros((5, 3)))


# ---- multi_similarity


@pytest.mark.parametrize(
    "options",
    [
        dict(alpha=2.0, beta=50.0, base=0.5, epsilon=0.1),
        dict(alpha=2, beta=40, base=1, epsilon=0),
        dict(alpha=3.0, beta=5.0, base=-0.2, epsilon=0.4),
    ],
)
def test_multi_similarity_matches_loop(options):
    embeddings = 4 * normal(4, 9, 4)
    want = multi_similarity_by_loop(embeddings, LABELS, **options)
    np.testing.assert_allclose(multi_similarity(embeddings, LABELS, **options), want, rtol=1e-5)
    unmined = multi_similarity_by_loop(embeddings, LABELS, **(options | dict(epsilon=9.0)))
    assert abs(unmined - want) > 1e-3  # mining matters here


def test_multi_similarity_keeps_no_pair_of_separated_classes():
    angles = np.array([0.0, 0.1, 1.5, 1.6])  # in radians: cosines above 0.99 within a class, below 0.17 across
    embeddings, labels = (
        jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32),
        jnp.array([0, 0, 1, 1]),
    )
    loss, gradient = jax.value_and_grad(lambda x: multi_similarity(x, labels))(embeddings)
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros((4, 2)))


# ---- errors

ONES, TWO = jnp.ones((2, 3)), jnp.array([0, 1])


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: n_pair(ONES, TWO, regularization=-1.0),
            "regularization: want a finite number of at least 0, got -1.0",
        ),
        (lambda: n_pair(ONES, TWO[:1]), r"labels: want 2 integers.* shape \(1,\)"),
        (lambda: n_pair(ONES[:0], TWO[:0]), r"embeddings: want axes \[b k\] with b not empty"),
        (lambda: nt_xent(ONES, TWO, temperature=0), "temperature: want a positive finite number, got 0"),
        (lambda: nt_xent(ONES, TWO, temperature=-0.1), "temperature: want a positive finite number, got -0.1"),
        (lambda: nt_xent(ONES, jnp.ones(2)), "labels: want 2 integers, one a sample, got float32"),
        (lambda: nt_xent(TWO[:, None], TWO), "embeddings: want a floating type, got int32"),
        (lambda: nt_xent(ONES[0], TWO), r"embeddings: want axes \[b k\], got shape \(3,\)"),
        (lambda: multi_similarity(ONES, TWO, alpha=0), "alpha: want a positive finite number, got 0"),
        (lambda: multi_similarity(ONES, TWO, beta=float("inf")), "beta: want a positive finite number, got inf"),
        (lambda: multi_similarity(ONES, TWO, epsilon=-0.1), "epsilon: want a finite number of at least 0, got -0.1"),
        (lambda: multi_similarity(ONES, TWO, base=float("nan")), "base: want a finite number, got nan"),
        (lambda: multi_similarity(ONES, TWO[None]), r"labels: want 2 integers.* shape \(1, 2\)"),
    ],
)
def test_similarity_losses_name_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
