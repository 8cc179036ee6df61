"""Few-shot functions of one episode against loops in float64, and values by hand."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax import fewshot
from distcam_jax.fewshot import (
    mean_confidence_interval,
    query_scores,
    rectify_prototypes,
    shift_queries,
    transform_features,
)
from tests.fewshot_oracles import SCORES, normal, rectify_by_loop

# ---- transform_features


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_transform_features_take_off_the_centre_before_they_divide(centred, normalize):
    features, center = normal(0, 2, 3, 4), normal(1, 4) if centred else None
    found = transform_features(features, center=center, normalize=normalize)
    want = features.astype(np.float64) - (center if centred else 0)
    if normalize:
        want = np.stack([[x / np.sqrt(np.sum(x**2)) for x in rows] for rows in want])
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_transform_features_of_zeros_stay_zero_with_finite_gradients():
    features = jnp.zeros((2, 3))
    assert transform_features(features, normalize=True).tolist() == features.tolist()
    gradient = jax.jit(jax.grad(lambda x: transform_features(x, normalize=True).sum()))(features)
    assert np.isfinite(gradient).all()


# ---- query_scores


@pytest.mark.parametrize("metric", fewshot.METRICS)
@pytest.mark.parametrize("channels", [37, 300])
def test_query_scores_match_loop(metric, channels):
    query, prototypes = normal(0, 6, channels), normal(1, 3, channels)
    want = [[SCORES[metric](x, y) for y in prototypes.astype(np.float64)] for x in query.astype(np.float64)]
    found = jax.jit(query_scores, static_argnames="metric")(query, prototypes, metric=metric)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_query_scores_by_hand():
    query, prototypes = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [6.0, 8.0]])
    assert query_scores(query, prototypes).tolist() == [[-7.0, -7.0], [0.0, -14.0]]
    assert query_scores(query, prototypes, metric="l2").tolist() == [[-5.0, -5.0], [0.0, -10.0]]
    np.testing.assert_allclose(query_scores(query, prototypes, metric="cosine"), [[0, 1], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("metric", fewshot.METRICS)
def test_query_scores_of_equal_vectors_and_zeros_have_finite_gradients(metric):
    vectors = jnp.array([[0.0, 0.0], [1.0, 2.0]])
    gradients = jax.jit(jax.grad(lambda x, y: query_scores(x, y, metric=metric).sum(), (0, 1)))(vectors, vectors)
    assert np.isfinite(gradients).all()


# ---- shift_queries


def test_shift_queries_give_them_the_mean_of_the_supports():
    support, query = normal(0, 4, 3), normal(1, 7, 3) + 5
    found = shift_queries(support, query)
    np.testing.assert_allclose(np.mean(found, axis=0), support.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(np.diff(found, axis=0), np.diff(query, axis=0), atol=1e-5)


# ---- rectify_prototypes

rectify = jax.jit(rectify_prototypes, static_argnames="ways")
LABELS = np.array([2, 0, 1, 0, 2, 2])  # unbalanced
SUPPORT, QUERY = normal(2, 6, 5) + np.eye(5, dtype=np.float32)[LABELS], normal(3, 12, 5) + 1


@pytest.mark.parametrize("temperature", [0.5, 10.0, 40.0])
def test_rectify_prototypes_match_loop(temperature):
    found = rectify(SUPPORT, LABELS, QUERY, 3, temperature=temperature)
    assert found.dtype == jnp.float32
    want = rectify_by_loop(SUPPORT, LABELS, QUERY, 3, temperature)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("other", [{"shifted": False}, {"temperature": 1.0}, {"over": "classes"}])
def test_rectify_prototypes_are_not_those_of_other_implementations(other):
    found = rectify(SUPPORT, LABELS, QUERY, 3)
    assert np.abs(found - rectify_by_loop(SUPPORT, LABELS, QUERY, 3, **other)).max() > 0.02


def test_rectify_prototypes_by_hand():
    support, labels = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    query = np.array([[2.0, 1.0], [2.0, 1.0], [1.0, 3.0], [1.0, 3.0]])  # their mean is (1.5, 2): moved by (-1, -1.5)
    # Moved: (1, -0.5) twice, (0, 1.5) twice. The first are at cosine 2 / √5 to (1, 0), the others along (0, 1).
    weight = np.exp(10 * (2 / 5**0.5 - 1))
    want = [[1, -weight / (1 + 2 * weight)], [0, (1 + 2 * 1.5) / 3]]
    np.testing.assert_allclose(rectify(support, labels, query, 2), want, atol=1e-6)


def test_rectify_prototypes_give_a_way_without_support_zeros_and_no_query():
    support, labels = np.array([[1.0, 0.1], [0.9, 0.0]]), np.array([0, 2])
    query = np.array([[4.0, -0.1], [2.0, 0.1]])  # moved to (1.95, -0.05) and (-0.05, 0.15): of a cosine below 0
    found = rectify(support, labels, query, 4)
    assert found[jnp.array([1, 3])].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(found, rectify_by_loop(support, labels, query, 4), atol=1e-6)


def test_rectify_prototypes_leave_supports_of_other_labels_out():
    support = np.concatenate([SUPPORT, 100 + normal(4, 2, 5)])
    found = rectify(support, np.append(LABELS, [-1, 3]), QUERY, 3)
    np.testing.assert_allclose(found, rectify(SUPPORT, LABELS, QUERY, 3), rtol=1e-6, atol=1e-6)


def test_rectify_prototypes_without_queries_are_weighted_means_of_the_supports():
    found = rectify(SUPPORT, LABELS, QUERY[:0], 3)
    np.testing.assert_allclose(found, rectify_by_loop(SUPPORT, LABELS, QUERY[:0], 3), rtol=1e-5, atol=1e-6)
    assert np.abs(found[2] - SUPPORT[LABELS == 2].mean(axis=0)).max() > 0.1


def test_rectify_prototypes_of_a_high_temperature_keep_the_nearest_member():
    support, labels = np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([0, 0])  # at cosines 0.95 and 0.32 to their mean
    found = rectify(support, labels, np.zeros((0, 2)), 1, temperature=1e4)
    np.testing.assert_allclose(found, [[3.0, 0.0]], atol=1e-6)


def test_rectify_prototypes_of_zeros_are_zeros():
    found = rectify(np.zeros((3, 2)), np.array([0, 1, 1]), np.zeros((4, 2)), 2)
    assert found.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_rectify_prototypes_have_finite_gradients():
    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients_of(support, query):
        return jnp.sum(jnp.square(rectify_prototypes(support, LABELS, query, 4)))

    support, query = SUPPORT.copy(), QUERY.copy()
    support[0], query[1] = 0, support[2]
    for scale in (0, 1, 1e6):
        gradients = gradients_of(np.float32(scale) * support, np.float32(scale) * query)
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert all(np.any(gradient) for gradient in gradients) == (scale > 0)


def test_rectify_prototypes_gradients_are_those_of_differences():
    direction = normal(5, 12, 5).astype(np.float64)

    def value(step):
        return rectify_by_loop(SUPPORT, LABELS, QUERY + step * direction, 3, 2.0)[0, 0]

    gradient = jax.jit(jax.grad(lambda query: rectify_prototypes(SUPPORT, LABELS, query, 3, temperature=2.0)[0, 0]))
    found = np.sum(np.asarray(gradient(QUERY)) * direction)
    np.testing.assert_allclose(found, (value(1e-5) - value(-1e-5)) / 2e-5, rtol=1e-4)


def test_rectify_prototypes_under_jit_and_vmap():
    supports, queries = normal(6, 3, 6, 5), normal(7, 3, 9, 5)
    labels = np.stack([np.roll(LABELS, shift) for shift in range(3)])
    function = jax.jit(jax.vmap(functools.partial(rectify_prototypes, ways=3, temperature=4)))
    found = function(support=supports, support_labels=labels, query=queries)
    want = [rectify_by_loop(*one, 3, 4.0) for one in zip(supports, labels, queries, strict=True)]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16])
def test_rectify_prototypes_of_other_types_are_float32(dtype):
    support, query = SUPPORT.astype(dtype), QUERY.astype(dtype)
    found = rectify(support, LABELS.astype(np.uint8), query, 3)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, rectify_by_loop(support, LABELS, query, 3), rtol=1e-5, atol=1e-5)


# ---- mean_confidence_interval


def test_mean_confidence_interval_by_hand():
    # Mean 3; squared deviations 4, 0, 0, 4 over n − 1 = 3: σ = √(8 / 3), over √4.
    mean, half_width = mean_confidence_interval(np.array([1, 3, 3, 5], np.float32))
    assert (mean, half_width) == (3, pytest.approx(1.96 * (8 / 3) ** 0.5 / 2, rel=1e-12))


def test_mean_confidence_interval_is_computed_in_float64():
    half_width = mean_confidence_interval(1 + 1e-9 * np.arange(3))[1]
    assert half_width == pytest.approx(1.96e-9 / 3**0.5, rel=1e-5)


def test_mean_confidence_interval_of_one_episode_has_no_width():
    mean, half_width = mean_confidence_interval(jnp.array([0.25]))
    assert mean == 0.25
    assert np.isnan(half_width)


# ---- errors

ONES, TWO = jnp.ones((2, 3)), jnp.array([0, 1])


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transform_features(TWO), "features: want a floating type, got int32"),
        (
            lambda: transform_features(ONES, center=jnp.ones(2)),
            r"center: want axes \[k\] with k = 3 as in features, got shape \(2,\)",
        ),
        (lambda: query_scores(ONES, ONES, metric="L1"), "metric: want one of 'l1', 'l2', 'cosine', got 'L1'"),
        (
            lambda: query_scores(ONES, ONES[:, :2]),
            r"prototypes: want axes \[w k\] with k = 3 as in query, got shape \(2, 2\)",
        ),
        (lambda: query_scores(ONES[0], ONES), r"query: want axes \[m k\], got shape \(3,\)"),
        (lambda: shift_queries(ONES, ONES[:0]), r"query: want axes \[m k\] with m not empty, got shape \(0, 3\)"),
        (
            lambda: rectify_prototypes(ONES, TWO, ONES[:, :2], 2),
            r"query: want axes \[. k\] with k = 3 as in support, got shape \(2, 2\)",
        ),
        (
            lambda: rectify_prototypes(ONES, TWO[:1], ONES, 2),
            r"support_labels: want 2 integers, one a sample, got int32 of shape \(1,\)",
        ),
        (lambda: rectify_prototypes(ONES, jnp.ones(2), ONES, 2), "support_labels: want 2 integers.* got float32"),
        (lambda: rectify_prototypes(ONES[:0], TWO[:0], ONES, 2), r"support: want axes \[. k\] with . not empty"),
        (lambda: rectify_prototypes(ONES, TWO, ONES, 0), "ways: want a positive integer, got 0"),
        (lambda: rectify_prototypes(ONES, TWO, ONES, 2.0), "ways: want a positive integer, got 2.0"),
        (
            lambda: rectify_prototypes(ONES, TWO, ONES, 2, temperature=0),
            "temperature: want a positive finite number, got 0",
        ),
        (lambda: rectify_prototypes(ONES, TWO, ONES, 2, temperature=float("nan")), "temperature: want .* got nan"),
        (lambda: rectify_prototypes(ONES, TWO, ONES, 2, temperature=np.inf), "temperature: want .* got inf"),
        (lambda: mean_confidence_interval(np.ones(0)), r"accuracies: want at least one number \[e\], got shape \(0,\)"),
        (lambda: mean_confidence_interval(np.ones((2, 2))), r"accuracies: want .* got shape \(2, 2\)"),
    ],
)
def test_fewshot_names_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
