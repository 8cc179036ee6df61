"""Losses and running class means against NumPy loops in float64 and gradients by hand."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distcam_jax.losses import (
    class_mean_logits,
    distances,
    l1_distances,
    prototype_logits,
    softmax_cross_entropy,
    update_class_means,
)


def l1_by_loop(embeddings, prototypes):
    result = np.zeros((len(embeddings), len(prototypes)))
    for i, embedding in enumerate(embeddings.astype(np.float64)):
        for j, prototype in enumerate(prototypes.astype(np.float64)):
            result[i, j] = sum(abs(a - b) for a, b in zip(embedding, prototype, strict=True))
    return result


def cross_entropy_by_loop(logits, labels, smoothing):
    total = 0.0
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total -= (target * log_p).sum()
    return total / len(logits)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- l1_distances


@pytest.mark.parametrize("block_elements", [1, 60, 2**22])  # one prototype at a time, three with one left over, all
def test_l1_distances_match_loop(block_elements, monkeypatch):
    monkeypatch.setattr(distances, "_MAX_BLOCK_ELEMENTS", block_elements)
    embeddings, prototypes = normal(0, 4, 5), normal(1, 7, 5)
    found = l1_distances(embeddings, prototypes)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, l1_by_loop(embeddings, prototypes), rtol=1e-6)


def test_l1_distances_gradient_is_sums_of_signs():
    embeddings, prototypes, upstream = normal(0, 3, 4), normal(1, 5, 4), normal(2, 3, 5)
    prototypes[2] = embeddings[1]  # distance zero: the gradient there is zero and not NaN

    def weighted(x, p):
        return jnp.sum(l1_distances(x, p) * upstream)

    to_embeddings, to_prototypes = jax.grad(weighted, (0, 1))(jnp.asarray(embeddings), jnp.asarray(prototypes))
    signs = np.sign(embeddings[:, None] - prototypes[None])
    np.testing.assert_allclose(to_embeddings, (upstream[..., None] * signs).sum(1), rtol=1e-5)
    np.testing.assert_allclose(to_prototypes, -(upstream[..., None] * signs).sum(0), rtol=1e-5)


def test_l1_distances_of_bfloat16_accumulate_in_float32():
    embeddings = jnp.full((1, 1001), 1.0, jnp.bfloat16)
    found = l1_distances(embeddings, np.zeros((1, 1001), np.float32))
    assert found.dtype == jnp.float32
    assert found.item() == 1001  # bfloat16 has no 1001


def test_l1_distances_gradient_holds_no_array_of_all_differences():
    embeddings, prototypes = (
        jax.ShapeDtypeStruct((256, 512), jnp.float32),
        jax.ShapeDtypeStruct((1000, 512), jnp.float32),
    )
    gradient = jax.jit(jax.grad(lambda x, p: jnp.sum(l1_distances(x, p) ** 2), (0, 1)))
    used = gradient.lower(embeddings, prototypes).compile().memory_analysis().temp_size_in_bytes
    assert used < 256 * 512 * 1000 * 4 / 5


# ---- softmax_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_softmax_cross_entropy_matches_loop(smoothing):
    logits, labels = 30 * normal(0, 6, 5), np.array([0, 4, 2, 2, 1, 3])
    found = softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, cross_entropy_by_loop(logits, labels, smoothing), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy_of_huge_logits_is_finite(smoothing):
    logits, labels = jnp.array([[1e4, -1e4], [-1e4, 1e4]]), jnp.array([0, 0])
    loss, gradient = jax.value_and_grad(lambda x: softmax_cross_entropy(x, labels, label_smoothing=smoothing))(logits)
    # One row right and one wrong by 2e4; smoothing moves its half of the target to the other class.
    assert loss == pytest.approx(1e4, rel=1e-6)
    assert np.isfinite(gradient).all()


def test_softmax_cross_entropy_smooths_over_classes_with_samples_only():
    embeddings, labels = normal(0, 4, 3), np.array([0, 1, 1, 0])
    present, counts = normal(1, 2, 3), np.array([3.0, 0.0, 2.0], np.float32)
    prototypes = np.stack([present[0], np.zeros(3, np.float32), present[1]])
    logits = prototype_logits(embeddings, prototypes, counts)
    found = softmax_cross_entropy(logits, np.array([0, 2, 2, 0]), label_smoothing=0.2)
    want = cross_entropy_by_loop(-l1_by_loop(embeddings, present), labels, 0.2)
    np.testing.assert_allclose(found, want, rtol=1e-5)


# ---- prototype_logits


def test_prototype_logits_are_scaled_negative_distances():
    embeddings, prototypes = normal(0, 4, 5), normal(1, 3, 5)
    found = prototype_logits(embeddings, prototypes, np.ones(3, np.float32), scale=0.25)
    np.testing.assert_allclose(found, -0.25 * l1_by_loop(embeddings, prototypes), rtol=1e-6)


def test_prototype_logits_let_no_class_without_samples_win():
    embeddings = jnp.zeros((1, 2))  # lies on the zero prototypes of the empty classes
    prototypes = jnp.array([[0.0, 0.0], [500.0, 500.0], [0.0, 0.0]])
    counts = jnp.array([0.0, 1.0, 0.0])
    logits, gradient = jax.value_and_grad(lambda p: prototype_logits(embeddings, p, counts, scale=10.0).max())(
        prototypes
    )
    assert prototype_logits(embeddings, prototypes, counts, scale=10.0).argmax() == 1
    assert logits == -10_000
    assert gradient.tolist() == [[0.0, 0.0], [-10.0, -10.0], [0.0, 0.0]]


# ---- update_class_means


def test_update_class_means_are_exact_until_memory():
    means, counts = jnp.zeros((3, 2)), jnp.zeros(3)
    embeddings, labels = normal(0, 12, 2), np.array([0, 2, 2, 0, 0, 2, 0, 2, 2, 0, 0, 0])
    for start in range(0, 12, 3):
        part = slice(start, start + 3)
        means, counts = update_class_means(means, counts, embeddings[part], labels[part], memory=7)
    assert counts.tolist() == [7, 0, 5]
    want = [embeddings[labels == 0].mean(0), [0, 0], embeddings[labels == 2].mean(0)]
    np.testing.assert_allclose(means, want, rtol=1e-6)


def test_update_class_means_forget_beyond_memory():
    # The class stands for 4 samples of mean 10. A batch of two of value 0 keeps 3 of the 5 remembered.
    means, counts = update_class_means(
        jnp.array([[10.0]]), jnp.array([4.0]), jnp.array([[0.0], [0.0]]), jnp.array([0, 0]), memory=5
    )
    assert (means.item(), counts.item()) == (pytest.approx(6), 5)
    means, counts = update_class_means(means, counts, jnp.array([[1.0]]), jnp.array([0]), memory=5)
    assert (means.item(), counts.item()) == (pytest.approx(6 + (1 - 6) / 5), 5)


def test_update_class_means_of_a_batch_beyond_memory_is_the_batch_mean():
    means, counts = update_class_means(
        jnp.array([[10.0]]), jnp.array([2.0]), jnp.array([[1.0], [2.0], [6.0]]), jnp.array([0, 0, 0]), memory=2
    )
    assert (means.item(), counts.item()) == (3, 2)


def test_update_class_means_leave_absent_classes_bit_by_bit():
    means, counts = normal(0, 50, 8), np.arange(50, dtype=np.float32) % 7
    found, found_counts = update_class_means(means, counts, normal(1, 2, 8), np.array([49, 50]), memory=100)
    np.testing.assert_array_equal(found[:49], means[:49])
    np.testing.assert_array_equal(found_counts, counts + (np.arange(50) == 49))  # label 50 is no class: left out


def test_update_class_means_pass_the_batch_share_of_the_gradient():
    def first_mean(embeddings, means):
        return update_class_means(means, jnp.array([3.0]), embeddings, jnp.array([0, 0]), memory=100)[0][0, 0]

    to_batch, to_means = jax.grad(first_mean, (0, 1))(jnp.ones((2, 1)), jnp.ones((1, 1)))
    np.testing.assert_allclose(to_batch, [[1 / 5], [1 / 5]], rtol=1e-6)
    np.testing.assert_allclose(to_means, [[3 / 5]], rtol=1e-6)


def test_update_class_means_sharded_equals_unsharded():
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    assert mesh.size == 8
    means, counts = normal(0, 3, 4), np.array([2.0, 9.0, 0.0], np.float32)
    embeddings, labels = normal(1, 32, 4), np.random.default_rng(2).integers(0, 3, 32)

    def step(means, counts, embeddings, labels):
        return update_class_means(means, counts, embeddings, labels, memory=20)

    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    arguments = jax.device_put((means, counts), whole) + jax.device_put((embeddings, labels), split)
    found, found_counts = jax.jit(step)(*arguments)
    want, want_counts = step(means, counts, embeddings, labels)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_array_equal(found_counts, want_counts)


def test_prototype_logits_relative_are_in_units_of_the_mean_distance():
    embeddings = np.array([[0.0, 1.0], [2.0, 1.0]], np.float32)
    prototypes = np.array([[0.0, 0.0], [9.0, 9.0], [4.0, 1.0]], np.float32)
    counts = np.array([1.0, 0.0, 3.0], np.float32)  # the second class has no part in the mean
    found = prototype_logits(embeddings, prototypes, counts, scale=2.0, relative=True)
    # Distances 1, 4 / 3, 2 have the mean 2.5.
    np.testing.assert_allclose(found[:, [0, 2]], -2.0 * np.array([[1.0, 4.0], [3.0, 2.0]]) / 2.5, rtol=1e-6)
    rescaled = prototype_logits(1e4 * embeddings, 1e4 * prototypes, counts, scale=2.0, relative=True)
    np.testing.assert_allclose(rescaled, found, rtol=1e-5)


def test_prototype_logits_relative_of_equal_points_are_zero_with_finite_gradients():
    zeros, counts = jnp.zeros((2, 3)), jnp.ones(2)
    value, gradient = jax.value_and_grad(lambda x: prototype_logits(x, zeros, counts, relative=True).sum())(zeros)
    assert value == 0
    assert np.isfinite(gradient).all()


# ---- class_mean_logits


def test_class_mean_logits_have_the_values_of_prototype_logits():
    embeddings, means = normal(0, 4, 5), normal(1, 3, 5)
    labels, counts = np.array([0, 2, 2, 0]), np.array([2.0, 0.0, 4.0], np.float32)
    found = class_mean_logits(embeddings, labels, means, counts, scale=0.5)
    np.testing.assert_allclose(found, prototype_logits(embeddings, means, counts, scale=0.5), rtol=1e-6)


def test_class_mean_logits_gradient_moves_the_means_of_other_classes():
    embeddings, means, upstream = normal(0, 5, 4), normal(1, 3, 4), normal(2, 5, 3)
    labels, scale = np.array([0, 0, 1, 1, 1]), 0.5

    def weighted(x):
        return jnp.sum(class_mean_logits(x, labels, means, np.ones(3, np.float32), scale=scale) * upstream)

    want = np.zeros((5, 4))
    for i in range(5):
        for c in range(3):
            pull = -scale * upstream[i, c] * np.sign(embeddings[i] - means[c])
            want[i] += pull
            if labels[i] != c:
                want[labels == c] -= pull / max(1, (labels == c).sum())
    np.testing.assert_allclose(jax.grad(weighted)(jnp.asarray(embeddings)), want, rtol=1e-5, atol=1e-6)


# ---- errors


ONES, LABELS = jnp.ones((2, 3)), jnp.array([0, 1])


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: l1_distances(ONES, jnp.ones((2, 4))),
            r"prototypes: want axes \[c k\] with k = 3 as in embeddings, got shape \(2, 4\)",
        ),
        (lambda: l1_distances(ONES[0], ONES), r"embeddings: want axes \[b k\], got shape \(3,\)"),
        (lambda: l1_distances(ONES, LABELS[:, None]), "prototypes: want a floating type, got int32"),
        (
            lambda: softmax_cross_entropy(ONES, LABELS, label_smoothing=1.0),
            r"label_smoothing must lie in \[0, 1\), got 1",
        ),
        (lambda: softmax_cross_entropy(ONES, LABELS, label_smoothing=-0.1), "label_smoothing"),
        (lambda: softmax_cross_entropy(ONES, LABELS, label_smoothing=float("nan")), "label_smoothing"),
        (lambda: softmax_cross_entropy(ONES, jnp.ones(2)), "labels: want 2 integers, one a sample, got float32"),
        (lambda: softmax_cross_entropy(ONES, LABELS[:1]), r"labels: want 2 integers.* shape \(1,\)"),
        (lambda: softmax_cross_entropy(LABELS[:, None], LABELS), "logits: want a floating type, got int32"),
        (lambda: prototype_logits(ONES, ONES, jnp.ones(2), scale=-1.0), "scale must be positive and finite, got -1"),
        (lambda: prototype_logits(ONES, ONES, jnp.ones(2), scale=0), "scale must be positive and finite, got 0"),
        (lambda: prototype_logits(ONES, ONES, jnp.ones(3)), r"counts: want axes \[c\] with c = 2.*, got shape \(3,\)"),
        (lambda: class_mean_logits(ONES, LABELS, ONES, jnp.ones(2), scale=-1.0), "scale must be positive"),
        (
            lambda: class_mean_logits(ONES, LABELS, jnp.ones((2, 4)), jnp.ones(2)),
            "means: want .* with k = 3 as in embeddings",
        ),
        (lambda: update_class_means(ONES, jnp.ones(2), ONES, LABELS, memory=0.5), "memory must be at least 1"),
        (lambda: update_class_means(ONES, jnp.ones(2), ONES, LABELS, memory=float("nan")), "memory must be at least 1"),
        (lambda: update_class_means(ONES, jnp.ones(2), ONES, LABELS[:1], memory=9), "labels: want 2 integers"),
        (
            lambda: update_class_means(ONES, jnp.ones(3), ONES, LABELS, memory=9),
            "counts: want axes .* with c = 2 as in means",
        ),
        (
            lambda: update_class_means(jnp.ones((2, 4)), jnp.ones(2), ONES, LABELS, memory=9),
            "embeddings: want .* with k = 4 as in means",
        ),
    ],
)
def test_losses_name_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
