"""The prototypical loss against a loop over queries and classes in float64, and values by hand."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.losses import EPISODE_METRICS, prototypical, prototypical_logits


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def squared(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(squared(x, 0 * x) * squared(y, 0 * y))


SCORES = {
    "l1": lambda x, y: -sum(abs(a - b) for a, b in zip(x, y, strict=True)),
    "l2": lambda x, y: -math.sqrt(squared(x, y)),
    "squared_l2": lambda x, y: -squared(x, y),
    "cosine": cosine,
}
OPTIONS = [
    *(dict(metric=metric, scale=0.7) for metric in EPISODE_METRICS),
    *(dict(metric=metric, scale=3.0, relative=True) for metric in ("l1", "cosine")),
]
STATIC = ("metric", "relative")
compiled = jax.jit(prototypical, static_argnames=STATIC)
compiled_logits = jax.jit(prototypical_logits, static_argnames=STATIC)
compiled_gradients = jax.jit(jax.value_and_grad(prototypical, (0, 1)), static_argnames=STATIC)
SUPPORT, QUERY = normal(0, 4, 3, 5), normal(1, 4, 2, 5)  # the means of the supports are far from any of them


def logits_by_loop(support, query, metric, scale, relative=False):
    means = [class_supports.astype(np.float64).mean(axis=0) for class_supports in support]
    scores = np.array([[SCORES[metric](x, mean) for mean in means] for x in query.astype(np.float64)])
    return scale * scores / (-scores.mean() if relative and metric != "cosine" else 1)


def loss_by_loop(support, query, **options):
    terms = []
    for place, logits in enumerate(logits_by_loop(support, query.reshape(-1, query.shape[-1]), **options)):
        own = place // query.shape[1]
        terms.append(math.log(sum(math.exp(value) for value in logits)) - logits[own])
    return sum(terms) / len(terms)


# ---- prototypical_logits


@pytest.mark.parametrize("options", OPTIONS)
def test_prototypical_logits_match_loop(options):
    query = normal(2, 7, 5)
    found = compiled_logits(SUPPORT, query, **options)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, logits_by_loop(SUPPORT, query, **options), rtol=1e-5, atol=1e-6)


def test_prototypical_logits_by_hand():
    support, query = np.array([[[0.0, 2.0], [2.0, 2.0]], [[4.0, 6.0], [4.0, 6.0]]]), np.array([[1.0, 2.0], [4.0, 2.0]])
    # The means are (1, 2) and (4, 6).
    assert compiled_logits(support, query).tolist() == [[0.0, -25.0], [-9.0, -16.0]]
    assert compiled_logits(support, query, metric="l2", scale=2.0).tolist() == [[0.0, -10.0], [-6.0, -8.0]]
    relative = compiled_logits(support, query, metric="l1", scale=2.0, relative=True)
    np.testing.assert_allclose(relative, -2 * np.array([[0, 7], [3, 4]]) / 3.5, rtol=1e-6)


@pytest.mark.parametrize("metric", ["l1", "l2", "squared_l2"])
def test_prototypical_logits_relative_do_not_depend_on_the_unit(metric):
    want = compiled_logits(SUPPORT, QUERY[0], metric=metric, relative=True)
    unit = np.float32(1e4)
    found = compiled_logits(unit * SUPPORT, unit * QUERY[0], metric=metric, relative=True)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


# ---- prototypical


@pytest.mark.parametrize("options", OPTIONS)
def test_prototypical_matches_loop(options):
    found = compiled(SUPPORT, QUERY, **options)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loss_by_loop(SUPPORT, QUERY, **options), rtol=1e-5)


def test_prototypical_knows_the_class_of_each_query():
    support = np.array([[[0.0]], [[10.0]]])
    query = np.array([[[0.0], [0.0], [10.0]], [[10.0], [10.0], [10.0]]])  # one of six is with the other class
    np.testing.assert_allclose(compiled(support, query, metric="l1"), 10 / 6, rtol=1e-4)


def test_prototypical_gradient_by_hand():
    # Two ways, one channel, squared L2: with p the probability of the wrong way, the loss of the query is
    # log(1 + exp((x − a)² − (x − b)²)), whose derivative by x is p (2 (x − a) − 2 (x − b)) = 2 p (b − a).
    support, query = jnp.array([[[0.0]], [[1.0]]]), jnp.array([[[0.25]], [[1.0]]])
    _, (to_support, to_query) = compiled_gradients(support, query)
    wrong = 1 / (1 + math.exp(0.75**2 - 0.25**2)), 1 / (1 + math.exp(1))
    np.testing.assert_allclose(to_query.ravel(), [wrong[0], -wrong[1]], rtol=1e-5)  # 2 p / 2 queries
    want = [-0.25 * wrong[0] + wrong[1], -0.75 * wrong[0]]  # ∓2 p (x − prototype) / 2; the second query is on its own
    np.testing.assert_allclose(to_support.ravel(), want, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_prototypical_of_equal_embeddings_is_log_ways_with_finite_gradients(options):
    for value in (0, 1.5, 1e6):
        support, query = np.full((4, 3, 5), value, np.float32), np.full((4, 2, 5), value, np.float32)
        loss, gradients = compiled_gradients(support, query, **options)
        np.testing.assert_allclose(loss, math.log(4), rtol=1e-5)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("relative", [True, False])
def test_prototypical_under_jit_and_vmap(relative):
    supports, queries = normal(3, 3, 4, 2, 5), normal(4, 3, 4, 2, 5)

    def loss(support, query, scale):
        return prototypical(support, query, metric="l1", scale=scale, relative=relative)

    found = jax.jit(jax.vmap(loss, (0, 0, None)))(supports, queries, jnp.float32(2.0))
    pairs = zip(supports, queries, strict=True)
    want = [loss_by_loop(*pair, metric="l1", scale=2.0, relative=relative) for pair in pairs]
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16])
def test_prototypical_of_other_types_is_float32(dtype):
    support, query = SUPPORT.astype(dtype), QUERY.astype(dtype)
    found = compiled(support, query, metric="l1", scale=2.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loss_by_loop(support, query, metric="l1", scale=2.0), rtol=1e-5)


# ---- errors

FOUR, THREE = jnp.ones((2, 1, 3)), jnp.ones((2, 3))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: prototypical_logits(FOUR, THREE, metric="euclidean"),
            "metric: want one of 'l1', 'l2', 'squared_l2', 'cosine', got 'euclidean'",
        ),
        (lambda: prototypical_logits(FOUR, THREE, scale=0), "scale must be positive and finite, got 0"),
        (lambda: prototypical(FOUR, FOUR, scale=float("nan")), "scale must be positive and finite, got nan"),
        (lambda: prototypical_logits(THREE, THREE), r"support: want axes \[w s k\], got shape \(2, 3\)"),
        (
            lambda: prototypical_logits(FOUR, THREE[:, :2]),
            r"query: want axes \[m k\] with k = 3 as in support, got shape \(2, 2\)",
        ),
        (lambda: prototypical_logits(FOUR, THREE[:0]), r"query: want axes \[m k\] with m not empty"),
        (lambda: prototypical_logits(FOUR[:, :0], THREE), r"support: want axes \[w s k\] with s not empty"),
        (lambda: prototypical_logits(FOUR, THREE.astype(jnp.int32)), "query: want a floating type, got int32"),
        (
            lambda: prototypical(FOUR, FOUR[:1]),
            r"query: want axes \[w q k\] with w = 2 as in support, got shape \(1, 1, 3\)",
        ),
        (lambda: prototypical(FOUR, THREE), r"query: want axes \[w q k\], got shape \(2, 3\)"),
    ],
)
def test_episode_losses_name_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
