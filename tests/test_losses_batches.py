"""What all objectives share: sharded batches, batches without pairs, types, gradients against differences."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distcam_jax import losses
from distcam_jax.losses.distances import unit_vectors
from distcam_jax.losses.masking import masked_logsumexp, masked_max, masked_mean, masked_min

CLASSES = 5
SAMPLES = np.array([0, 1, 0, 2, 1, 1, 0, 3, 4, 4, 2, 0, 1, 3, 1, 2])  # a class's samples lie on several devices


def with_margin(logits):
    def loss(embeddings, labels, proxies):
        cosines = unit_vectors(embeddings) @ unit_vectors(proxies).T
        return losses.softmax_cross_entropy(logits(cosines, labels, scale=4.0), labels)

    return loss


# Every objective as a function of embeddings, labels and one vector a class.
OBJECTIVES = {
    "pairwise_l1": lambda x, y, p: jnp.mean(losses.pairwise_distances(x, metric="l1") ** 2),
    "pairwise_l2": lambda x, y, p: jnp.mean(losses.pairwise_distances(x, metric="l2") ** 3),
    "contrastive": lambda x, y, p: losses.contrastive(x, y, margin=3.0),
    "contrastive_l1": lambda x, y, p: losses.contrastive(x, y, metric="l1", margin=3.0),
    "batch_hard_triplet": lambda x, y, p: losses.batch_hard_triplet(x, y),
    "batch_hard_triplet_soft_l1": lambda x, y, p: losses.batch_hard_triplet(x, y, metric="l1", margin=None),
    "semi_hard_triplet": lambda x, y, p: losses.semi_hard_triplet(x, y),
    "semi_hard_triplet_l1": lambda x, y, p: losses.semi_hard_triplet(x, y, metric="l1"),
    "n_pair": lambda x, y, p: losses.n_pair(x, y, regularization=0.1),
    "nt_xent": lambda x, y, p: losses.nt_xent(x, y),
    "multi_similarity": lambda x, y, p: losses.multi_similarity(x, y),
    "proxy_nca": lambda x, y, p: losses.proxy_nca(x, y, p),
    "proxy_nca_l1": lambda x, y, p: losses.proxy_nca(x, y, p, metric="l1", normalize=False),
    "center_loss": lambda x, y, p: losses.center_loss(x, y, p),
    "update_centers": lambda x, y, p: jnp.sum(losses.update_centers(p, x, y) ** 2),
    "sphereface": with_margin(losses.sphereface_logits),
    "cosface": with_margin(losses.cosface_logits),
    "arcface": with_margin(losses.arcface_logits),
}
OF_POSITIVE_PAIRS = [
    name for name in OBJECTIVES if name.startswith(("batch_hard", "semi_hard", "n_pair", "nt_xent", "multi_similarity"))
]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache  # one compilation for all batches of a shape
def value_and_gradients(name):
    return jax.jit(jax.value_and_grad(lambda arrays, labels: OBJECTIVES[name](arrays[0], labels, arrays[1])))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_a_sharded_batch_are_those_of_the_whole(name):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    assert mesh.size == 8
    embeddings, proxies = normal(0, 16, 6), normal(1, CLASSES, 6)
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    arrays = jax.device_put(embeddings, split), jax.device_put(proxies, whole)
    found, gradients = value_and_gradients(name)(arrays, jax.device_put(SAMPLES, split))
    want, want_gradients = value_and_gradients(name)((jnp.asarray(embeddings), jnp.asarray(proxies)), SAMPLES)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    for gradient, want_gradient in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-5 * max(1, np.abs(want_gradient).max()))
    assert gradients[0].sharding.is_equivalent_to(split, 2)  # no device holds the gradient of all embeddings


def test_pairwise_l1_distances_of_a_sharded_batch_keep_their_rows_apart():
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    embeddings = jax.device_put(normal(0, 16, 6), NamedSharding(mesh, PartitionSpec("data")))
    rows = jax.jit(lambda x: losses.pairwise_distances(x, metric="l1"))(embeddings)
    assert [shard.data.shape for shard in rows.addressable_shards] == [(2, 16)] * 8


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_gradient_matches_differences(name):
    with jax.enable_x64(True):
        arrays = tuple(jnp.asarray(normal(seed, size, 3), jnp.float64) for seed, size in ((0, 8), (1, CLASSES)))
        labels = jnp.asarray(SAMPLES[:8])
        loss = jax.jit(lambda arrays: OBJECTIVES[name](arrays[0], labels, arrays[1]))
        gradients = jax.grad(loss)(arrays)
        assert gradients[0].dtype == jnp.float64
        assert np.abs(gradients[0]).max() > 1e-3
        for which, gradient in enumerate(gradients):
            step = np.zeros(gradient.size)
            for place in range(gradient.size):
                step[place] = 1e-6
                ends = []
                for sign in (1, -1):
                    moved = list(arrays)
                    moved[which] = arrays[which] + sign * step.reshape(gradient.shape)
                    ends.append(float(loss(tuple(moved))))
                step[place] = 0
                slope = (ends[0] - ends[1]) / 2e-6
                np.testing.assert_allclose(gradient.ravel()[place], slope, rtol=1e-5, atol=1e-7)


POOR = {"zeros": np.zeros((4, 3)), "equal": np.full((4, 3), 0.7), "distinct": normal(0, 4, 3)}


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]], ids=["pairs", "one_class", "no_pairs"])
@pytest.mark.parametrize("embeddings", POOR.values(), ids=POOR)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_poor_batches_are_finite(name, embeddings, labels):
    arrays = jnp.asarray(embeddings, jnp.float32), jnp.asarray(embeddings[[0, 1, 2, 3, 0]], jnp.float32)
    value, gradients = value_and_gradients(name)(arrays, jnp.array(labels))
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [2]])
@pytest.mark.parametrize("name", OF_POSITIVE_PAIRS)
def test_objectives_of_positive_pairs_are_zero_without_any(name, labels):
    arrays = jnp.asarray(normal(0, len(labels), 3)), jnp.ones((CLASSES, 3))
    value, gradients = value_and_gradients(name)(arrays, jnp.array(labels))
    assert value == 0
    np.testing.assert_array_equal(gradients[0], np.zeros((len(labels), 3)))


@pytest.mark.parametrize("name", [name for name in OF_POSITIVE_PAIRS if name != "n_pair"])
def test_objectives_of_negatives_are_zero_in_a_batch_of_one_class(name):
    arrays = jnp.asarray(normal(0, 5, 3)), jnp.ones((CLASSES, 3))
    value, gradients = value_and_gradients(name)(arrays, jnp.zeros(5, jnp.int32))
    assert value == 0
    np.testing.assert_array_equal(gradients[0], np.zeros((5, 3)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_bfloat16_are_computed_in_float32(name):
    embeddings, proxies = (jnp.asarray(normal(seed, size, 6), jnp.bfloat16) for seed, size in ((0, 16), (1, CLASSES)))
    labels = jnp.asarray(SAMPLES)
    found, gradients = value_and_gradients(name)((embeddings, proxies), labels)
    assert found.dtype == jnp.float32
    want, _ = value_and_gradients(name)((embeddings.astype(jnp.float32), proxies.astype(jnp.float32)), labels)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert all(gradient.dtype == jnp.bfloat16 for gradient in gradients)


@pytest.mark.parametrize(
    ("reduce", "want"),
    [
        (masked_min, [-3, 0]),
        (masked_max, [2, 0]),
        (masked_logsumexp, [np.log(np.exp(2) + np.exp(-3)), -1e30]),
        (lambda x, mask: jnp.stack([masked_mean(x[0], mask[0]), masked_mean(x[1], mask[1])]), [-0.5, 0]),
    ],
)
def test_masked_reductions_of_nothing_are_finite(reduce, want):
    values, mask = jnp.array([[2.0, -9.0, -3.0, 9.0], [1.0, 1.0, 2.0, 3.0]]), jnp.array([[1, 0, 1, 0], [0] * 4], bool)
    found, pullback = jax.vjp(lambda x: reduce(x, mask), values)
    (gradient,) = pullback(jnp.ones(2))
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert gradient[0].sum() == pytest.approx(1)
    np.testing.assert_array_equal(gradient[~mask], np.zeros(6))


def test_losses_list_their_public_names():
    assert losses.__all__ == sorted(losses.__all__, key=lambda name: (not name.isupper(), name))
    assert all(callable(getattr(losses, name)) for name in losses.__all__ if not name.isupper())
