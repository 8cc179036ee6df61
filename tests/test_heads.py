"""Heads against NumPy loops, and what their first values and gradients must be."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from distcam_jax.models.heads import HEADS, class_weights, create_head


class Model(nnx.Module):
    """Nothing but a head, where `class_weights` looks for it."""

    def __init__(self, head):
        self.head = head


@nnx.jit
def run(head, embedding):
    return head(embedding)


def embeddings_of(*shape, seed=0):
    return np.abs(np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def head_of(name, channels, classes, seed=0):
    return create_head(name, channels, classes, rngs=nnx.Rngs(seed))


def paths(head, kind):
    return {".".join(path) for path, _ in nnx.to_flat_state(nnx.state(head, kind))}


# ---- every head


@pytest.mark.parametrize("name", HEADS)
def test_create_head_works_abstractly_and_inside_jit(name):
    def make():
        return create_head(name, 7, 3, rngs=nnx.Rngs(4))

    abstract, jitted, eager = nnx.eval_shape(make), nnx.jit(make)(), make()
    for one, two, three in zip(*(jax.tree.leaves(nnx.state(h)) for h in (abstract, jitted, eager)), strict=True):
        assert one.shape == two.shape == three.shape
        assert one.dtype == two.dtype == three.dtype == jnp.float32
        np.testing.assert_allclose(two, three, rtol=1e-6, atol=1e-7)
    output = run(jitted, embeddings_of(4, 7))
    assert output.shape == (4, 7 if name == "none" else 3)
    assert output.dtype == jnp.float32
    assert np.isfinite(output).all()


@pytest.mark.parametrize("name", [name for name in HEADS if name != "none"])
def test_create_head_follows_its_key(name):
    first, same, other = (jax.tree.leaves(nnx.state(head_of(name, 6, 4, seed), nnx.Param)) for seed in (0, 0, 1))
    assert all(np.array_equal(one, two) for one, two in zip(first, same, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("softmax", 4, 2),
            "unknown head 'softmax'; choose one of linear, proxy, cosine, batch_norm_neck, projection, none",
        ),
        (("proxy", 0, 2), "embedding_size: want a positive integer, got 0"),
        (("cosine", 4, 0), "num_classes: want a positive integer, got 0"),
    ],
)
def test_create_head_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_head(*arguments, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["proxy", "cosine", "projection", "none"])
def test_class_weights_is_none_where_scores_are_not_linear(name):
    assert class_weights(Model(head_of(name, 4, 2))) is None


# ---- projection


def test_projection_head_matches_loop():
    head, embedding = head_of("projection", 6, 4), embeddings_of(5, 6)
    kernel = np.asarray(head.kernel.get_value())
    want = [[sum(row[k] * kernel[k, d] for k in range(6)) for d in range(4)] for row in embedding]
    np.testing.assert_allclose(run(head, embedding), want, rtol=1e-5, atol=1e-6)


# ---- proxy


def test_proxy_head_gives_negative_l1_distances():
    head, embedding = head_of("proxy", 6, 4), embeddings_of(5, 6)
    prototypes = np.asarray(head.prototypes.get_value())
    want = np.zeros((5, 4))
    for b in range(5):
        for c in range(4):
            want[b, c] = -np.sum(np.abs(embedding[b].astype(np.float64) - prototypes[c]))
    np.testing.assert_allclose(run(head, embedding), want, rtol=1e-6)
    np.testing.assert_array_equal(np.argmax(run(head, prototypes[[2, 0]]), -1), [2, 0])


def test_proxy_head_starts_uniform_between_zero_and_one():
    prototypes = np.asarray(head_of("proxy", 300, 40).prototypes.get_value())
    assert prototypes.shape == (40, 300)
    assert 0 <= prototypes.min() < 0.01
    assert 0.99 < prototypes.max() < 1
    assert prototypes.std() == pytest.approx(1 / np.sqrt(12), rel=0.02)


def test_proxy_head_gradient_needs_no_difference_of_every_pair():
    b, c, k = 32, 2000, 256
    graph, state = nnx.split(nnx.eval_shape(lambda: head_of("proxy", k, c)))

    def loss(state, x):
        return jnp.sum(jax.nn.logsumexp(nnx.merge(graph, state)(x), -1))

    lowered = jax.jit(jax.grad(loss)).lower(state, jax.ShapeDtypeStruct((b, k), jnp.float32))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 4 * b * c * k / 2


# ---- cosine


def cosines_by_loop(embedding, kernel):
    want = np.zeros((len(embedding), kernel.shape[1]))
    for b, x in enumerate(embedding.astype(np.float64)):
        for c, w in enumerate(kernel.T.astype(np.float64)):
            norms = np.sqrt(np.sum(x * x)) * np.sqrt(np.sum(w * w))
            want[b, c] = np.sum(x * w) / norms if norms else 0
    return want


@pytest.mark.parametrize("unit", [1e-10, 1.0, 1e10])
def test_cosine_head_matches_loop_in_any_unit(unit):
    head, embedding = head_of("cosine", 6, 4), embeddings_of(5, 6)
    want = cosines_by_loop(embedding, np.asarray(head.kernel.get_value()))
    assert want.std() > 0.1
    np.testing.assert_allclose(run(head, embedding * np.float32(unit)), want, rtol=1e-5, atol=1e-6)
    head.kernel.set_value(head.kernel.get_value() * 7)
    np.testing.assert_allclose(run(head, embedding), want, rtol=1e-5, atol=1e-6)


def test_cosine_head_stays_within_one():
    head = head_of("cosine", 37, 500)
    directions = np.asarray(head.kernel.get_value()).T
    own = np.diagonal(run(head, directions))
    assert own.max() <= 1
    assert np.diagonal(run(head, -directions)).min() >= -1
    np.testing.assert_allclose(own, 1, atol=1e-6)


def test_cosine_head_takes_zeros_with_finite_gradients():
    head, embedding = head_of("cosine", 6, 3), embeddings_of(4, 6)
    embedding[1] = 0
    head.kernel.set_value(head.kernel.get_value().at[:, 2].set(0))
    graph, state = nnx.split(head)

    def loss(state, x):
        return jnp.sum(jnp.square(nnx.merge(graph, state)(x) - 0.5))

    output = np.asarray(run(head, embedding))
    np.testing.assert_array_equal(output[1], 0)
    np.testing.assert_array_equal(output[:, 2], 0)
    by_kernel, by_embedding = jax.jit(jax.grad(loss, (0, 1)))(state, embedding)
    by_kernel = np.asarray(jax.tree.leaves(by_kernel)[0])
    np.testing.assert_array_equal(by_embedding[1], 0)
    np.testing.assert_array_equal(by_kernel[:, 2], 0)
    assert np.isfinite(by_kernel).all()
    kernel = np.asarray(head.kernel.get_value())
    for b, k in ((0, 1), (3, 5)):
        step = np.zeros((4, 6))
        step[b, k] = 1e-4
        above, below = (np.square(cosines_by_loop(embedding + sign * step, kernel) - 0.5).sum() for sign in (1, -1))
        assert by_embedding[b, k] == pytest.approx((above - below) / 2e-4, rel=1e-3, abs=1e-5)


def test_cosine_head_starts_near_unit_length_in_any_direction():
    kernel = np.asarray(head_of("cosine", 400, 100).kernel.get_value())
    assert kernel.shape == (400, 100)
    assert kernel.std() == pytest.approx(1 / 20, rel=0.02)
    assert abs(kernel.mean()) < 1e-3
    assert np.abs(kernel).max() > 3.5 / 20  # neither uniform nor truncated at two deviations
    assert set(paths(head_of("cosine", 4, 2), nnx.Param)) == {"kernel"}


# ---- batch-norm neck


def neck_of(channels=6, classes=4):
    """A neck whose numbers hide no mistake."""
    head, random = head_of("batch_norm_neck", channels, classes), np.random.default_rng(5)
    for variable in (head.norm.scale, head.norm.var, head.norm.mean):
        variable.set_value(jnp.asarray(random.uniform(0.5, 1.5, channels), jnp.float32))
    head.linear.kernel.set_value(jnp.asarray(random.normal(size=(channels, classes)), jnp.float32))
    return head


def test_batch_norm_neck_trains_no_bias():
    head = head_of("batch_norm_neck", 4, 2)
    assert paths(head, nnx.Param) == {"linear.kernel", "norm.scale"}
    assert paths(head, nnx.BatchStat) == {"norm.bias", "norm.mean", "norm.var"}


def test_batch_norm_neck_in_training_uses_the_batch_and_moves_its_statistics():
    head, embedding = neck_of(), embeddings_of(5, 6)
    mean, var, scale = (np.asarray(v.get_value()) for v in (head.norm.mean, head.norm.var, head.norm.scale))
    feature = (embedding - embedding.mean(0)) / np.sqrt(embedding.var(0) + 1e-5) * scale
    output = run(head, embedding)
    np.testing.assert_allclose(output, feature @ np.asarray(head.linear.kernel.get_value()), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.norm.mean.get_value(), 0.9 * mean + 0.1 * embedding.mean(0), rtol=1e-5)
    np.testing.assert_allclose(head.norm.var.get_value(), 0.9 * var + 0.1 * embedding.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(head.norm.bias.get_value(), 0)


def test_batch_norm_neck_in_evaluation_uses_its_statistics():
    head, embedding = neck_of(), embeddings_of(5, 6)
    mean, var, scale = (np.asarray(v.get_value()) for v in (head.norm.mean, head.norm.var, head.norm.scale))
    head.eval()
    feature = (embedding - mean) / np.sqrt(var + 1e-5) * scale
    np.testing.assert_allclose(head.neck(jnp.asarray(embedding)), feature, rtol=1e-5, atol=1e-6)
    scores = feature @ np.asarray(head.linear.kernel.get_value())
    np.testing.assert_allclose(run(head, embedding), scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(head.norm.mean.get_value(), mean)
    head.train()
    assert not np.allclose(head.neck(jnp.asarray(embedding)), feature, atol=0.1)


def test_class_weights_of_a_neck_give_its_scores_up_to_a_constant_a_class():
    head, embedding = neck_of(), embeddings_of(5, 6)
    weights = np.asarray(class_weights(Model(head)))  # in training mode: the running statistics all the same
    assert weights.shape == (4, 6)
    head.eval()
    left = np.asarray(run(head, embedding)) - embedding @ weights.T
    np.testing.assert_allclose(left, np.broadcast_to(left[0], left.shape), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(left[0], run(head, np.zeros((1, 6), np.float32))[0], rtol=1e-4, atol=1e-5)
    assert np.abs(left[0]).min() > 0.01


def test_batch_norm_neck_classifier_starts_small():
    kernel = np.asarray(head_of("batch_norm_neck", 300, 100).linear.kernel.get_value())
    assert kernel.std() == pytest.approx(0.001, rel=0.02)
    assert np.abs(kernel).max() > 0.0035
