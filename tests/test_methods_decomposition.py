"""Decompositions against loops over pairs of places in float64, and their sums against the scores."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.test_util import check_grads

from distcam_jax.methods import similarity, similarity_decomposition, similarity_map

METRICS = ["cosine", "l2"]


def features(seed, shape, channels=6):
    return np.maximum(np.random.default_rng(seed).normal(0.2, 1, size=(*shape, channels)), 0).astype(np.float32)


def head(seed, channels=6, outputs=4):
    generator = np.random.default_rng(seed)
    kernel, bias = generator.normal(size=(channels, outputs)), generator.normal(size=outputs)
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def embed(pooled, kernel=None, bias=None):
    pooled = np.asarray(pooled, np.float64)
    pooled = pooled if kernel is None else pooled @ np.asarray(kernel, np.float64)
    return pooled if bias is None else pooled + np.asarray(bias, np.float64)


def pool(image):
    return np.asarray(image, np.float64).mean(axis=(-3, -2))


def score(x, y, metric):
    if metric == "l2":
        return -np.sum((x - y) ** 2, axis=-1)
    return np.sum(x * y, axis=-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))


def loop_decomposition(query, reference, metric, **linear):
    x, y = embed(pool(query), **linear), embed(pool(reference), **linear)
    (height, width, _), (height2, width2, _) = query.shape, reference.shape
    pairs = height * width * height2 * width2
    out = np.zeros((height, width, height2, width2))
    for i, j, u, v in np.ndindex(*out.shape):
        place, other = embed(query[i, j], **linear), embed(reference[u, v], **linear)
        if metric == "cosine":
            out[i, j, u, v] = place @ other / (np.linalg.norm(x) * np.linalg.norm(y)) / pairs
        else:
            out[i, j, u, v] = -(place - other) @ (x - y) / pairs
    return out


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("linear", [{}, head(2)], ids=["pooled", "head"])
def test_similarity_decomposition_matches_loops_over_pairs(metric, linear):
    query, reference = features(0, (3, 2)), features(1, (2, 4))
    expected = loop_decomposition(query, reference, metric, **linear)
    actual = similarity_decomposition(query, reference, metric=metric, **linear)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def adversarial(name):
    """Pairs of feature maps that lose digits, overflow or vanish in a careless sum."""
    query, reference = features(3, (5, 4)), features(4, (3, 3))
    return {
        "random": (query, reference),
        "tiny": (query * np.float32(1e-25), reference * np.float32(1e-28)),
        "huge": (query * np.float32(1e25), reference * np.float32(1e17)),
        "one place": (query * (np.arange(20).reshape(5, 4, 1) == 7), reference),
        "either sign": (query - query.mean(axis=(0, 1)) + np.float32(0.01), reference - 0.3),
        "almost equal": (1000 + query[:3, :3] * np.float32(0.1), 1000 + query[:3, :3] * np.float32(0.1) + 0.01),
    }[name]


@pytest.mark.parametrize("name", ["random", "tiny", "huge", "one place", "either sign"])
def test_cosine_contributions_sum_to_the_cosine(name):
    query, reference = adversarial(name)
    contributions = np.asarray(similarity_decomposition(query, reference), np.float64)
    expected = score(pool(query), pool(reference), "cosine")
    np.testing.assert_allclose(contributions.sum(), expected, atol=2e-6 * np.abs(contributions).sum(), rtol=0)
    places = np.asarray(similarity_map(query, pool(reference)), np.float64)
    np.testing.assert_allclose(places.sum(), expected, atol=2e-6 * np.abs(places).sum(), rtol=0)


@pytest.mark.parametrize("name", ["random", "one place", "either sign", "almost equal"])
def test_l2_contributions_sum_to_the_negative_squared_distance(name):
    query, reference = adversarial(name)
    expected = score(pool(query), pool(reference), "l2")
    contributions = np.asarray(similarity_decomposition(query, reference, metric="l2"), np.float64)
    # The pooled features themselves are rounded: by up to 1e-4 of 1000, of a difference of 0.01.
    tolerance = 0.05 * abs(expected) if name == "almost equal" else 2e-6 * np.abs(contributions).sum()
    np.testing.assert_allclose(contributions.sum(), expected, atol=tolerance, rtol=0)
    places = np.asarray(similarity_map(query, pool(reference), metric="l2"), np.float64)
    np.testing.assert_allclose(places.sum(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_contributions_through_a_head_sum_to_the_score(metric):
    linear = head(5)
    linear["bias"] *= 20  # leaving the bias out, or giving it to one side, misses the score by far
    query, reference = features(6, (3, 3)), features(7, (2, 2))
    expected = score(embed(pool(query), **linear), embed(pool(reference), **linear), metric)
    total = np.sum(similarity_decomposition(query, reference, metric=metric, **linear))
    np.testing.assert_allclose(total, expected, rtol=2e-5)
    np.testing.assert_allclose(
        np.sum(similarity_map(query, pool(reference), metric=metric, **linear)), expected, rtol=2e-5
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("linear", [{}, head(2)], ids=["pooled", "head"])
def test_similarity_map_is_the_sum_over_the_places_of_any_reference(metric, linear):
    query, reference = features(8, (3, 2)), features(9, (2, 4))
    expected = loop_decomposition(query, reference, metric, **linear).sum(axis=(2, 3))
    actual = similarity_map(query, pool(reference), metric=metric, **linear)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_l2_contributions_do_not_depend_on_the_bias():
    query, reference, linear = features(0, (3, 2)), features(1, (2, 2)), head(2)
    with_bias = similarity_decomposition(query, reference, metric="l2", **linear)
    without = similarity_decomposition(query, reference, metric="l2", kernel=linear["kernel"])
    np.testing.assert_array_equal(with_bias, without)


@pytest.mark.parametrize("metric", METRICS)
def test_leading_axes_broadcast(metric):
    query, references = features(0, (5, 1, 3, 2)), features(1, (4, 2, 2))
    pairs = similarity_decomposition(query, references, metric=metric)
    maps = similarity_map(query, pool(references), metric=metric)
    assert pairs.shape == (5, 4, 3, 2, 2, 2)
    assert maps.shape == (5, 4, 3, 2)
    expected = loop_decomposition(query[3, 0], references[2], metric)
    np.testing.assert_allclose(pairs[3, 2], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(maps[3, 2], expected.sum(axis=(2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("zero", ["query", "reference"])
def test_cosine_contributions_to_zeros_are_zero_with_finite_gradients(zero):
    query, reference = features(0, (3, 2)), pool(features(1, (2, 2)))
    if zero == "query":  # places of either sign whose mean is zero
        query = np.array([[[1.0, -2.0], [-1.0, 2.0]]])
        reference = np.ones(2)
    else:
        reference = np.zeros(6)
    assert np.array_equal(similarity_map(query, reference), np.zeros(query.shape[:2]))
    gradients = jax.grad(lambda q, r: jnp.sum(similarity_map(q, r) ** 2), (0, 1))(
        jnp.float32(query), jnp.float32(reference)
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_match_finite_differences(metric):
    query, reference, linear = features(0, (2, 2)), features(1, (2, 1)), head(2)

    def total(query, reference, kernel, bias):
        return jnp.sum(similarity_decomposition(query, reference, metric=metric, kernel=kernel, bias=bias) ** 2)

    check_grads(total, (query, reference, linear["kernel"], linear["bias"]), 1, ["rev"], atol=0.02, rtol=0.02)


def test_similarity_matches_its_formulas_and_guards_zeros():
    x, y = np.array([3.0, -4.0]), np.array([[0.0, 5.0], [0.0, 0.0]])
    assert similarity(x, y, metric="l1").tolist() == [-12.0, -7.0]
    assert similarity(x, y, metric="l2").tolist() == [-90.0, -25.0]
    np.testing.assert_allclose(similarity(x, y, metric="cosine"), [-0.8, 0], rtol=1e-6)
    for metric in ("l1", "l2", "cosine"):
        gradient = jax.grad(lambda v: similarity(v, jnp.zeros(2), metric=metric))(jnp.zeros(2))  # noqa: B023
        assert np.array_equal(gradient, np.zeros(2))


def test_a_bias_without_a_kernel_is_refused():
    with pytest.raises(ValueError, match="bias: want none without a kernel"):
        similarity_map(np.ones((2, 2, 3)), np.ones(3), bias=np.ones(3))


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric: want one of 'cosine', 'l2', got 'l1'"):
        similarity_map(np.ones((2, 2, 3)), np.ones(3), metric="l1")


def test_channels_that_differ_are_refused(without_type_checks):
    with pytest.raises(ValueError, match=r"reference: want axes .* with k = 3 as in query"):
        similarity_map(np.ones((2, 2, 3)), np.ones(4))
    with pytest.raises(ValueError, match=r"kernel: want axes .* with k = 3 as in query"):
        similarity_map(np.ones((2, 2, 3)), np.ones(3), kernel=np.ones((4, 2)))
