"""Prototypes of samples and the nearest one against loops."""

import numpy as np
import pytest
from jax import numpy as jnp

import distcam_jax
from tests.cam_oracles import PROTOTYPES, assert_close, random_vectors


def test_class_prototypes_match_loop():
    embeddings, labels = random_vectors(9, (40, 6)), np.random.default_rng(9).integers(0, 4, 40)
    prototypes, counts = distcam_jax.class_prototypes(embeddings, labels, 4)
    assert_close(prototypes, [embeddings[labels == c].astype(np.float64).mean(0) for c in range(4)])
    np.testing.assert_array_equal(counts, [(labels == c).sum() for c in range(4)])


def test_class_prototypes_leave_classes_without_samples_at_zero():
    prototypes, counts = distcam_jax.class_prototypes(PROTOTYPES, np.array([4, 4, 0, 0, 4]), 6)
    np.testing.assert_array_equal(counts, [2, 0, 0, 0, 3, 0])
    np.testing.assert_array_equal(prototypes[np.array([1, 2, 3, 5])], np.zeros((4, 6)))


@pytest.mark.parametrize("dropped", [-1, -2, 3, 100, -(2**31)])
def test_class_prototypes_drop_labels_out_of_range(dropped):
    prototypes, counts = distcam_jax.class_prototypes(PROTOTYPES, np.array([0, dropped, 2, dropped, 2], np.int32), 3)
    np.testing.assert_array_equal(counts, [1, 0, 2])
    assert_close(prototypes, [PROTOTYPES[0], np.zeros(6), (PROTOTYPES[2] + PROTOTYPES[4]) / 2])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_class_prototypes_take_narrow_labels(dtype):
    labels = np.array([0, 100, 1, 100, 1], dtype)
    counts = distcam_jax.class_prototypes(PROTOTYPES, labels, 300)[1]
    np.testing.assert_array_equal(counts, np.bincount(labels, minlength=300))


def test_class_prototypes_of_bfloat16_count_past_256():
    # In bfloat16 a sum of ones stops at 256.
    prototypes, counts = distcam_jax.class_prototypes(jnp.ones((1000, 2), jnp.bfloat16), np.zeros(1000, np.int32), 1)
    assert (prototypes.tolist(), counts.tolist()) == ([[1.0, 1.0]], [1000])


def test_class_prototypes_take_no_samples():
    prototypes, counts = distcam_jax.class_prototypes(PROTOTYPES[:0], np.zeros(0, np.int32), 3)
    assert (prototypes.tolist(), counts.tolist()) == ([[0.0] * 6] * 3, [0] * 3)


@pytest.mark.parametrize(
    ("embeddings", "labels", "num_classes", "message"),
    [
        (PROTOTYPES, np.zeros(4, np.int32), 3, "labels: want 5 integers, one a sample"),
        (PROTOTYPES, np.zeros((5, 1), np.int32), 3, "labels: want 5 integers, one a sample"),
        (PROTOTYPES, np.zeros(5, np.float32), 3, "labels: want 5 integers.*, got float32"),
        (PROTOTYPES, np.zeros(5, np.bool_), 3, "labels: want 5 integers.*, got bool"),
        (PROTOTYPES, np.zeros(5, np.int32), 0, "num_classes: want a positive integer, got 0"),
        (PROTOTYPES, np.zeros(5, np.int32), 3.0, "num_classes: want a positive integer, got 3.0"),
        (PROTOTYPES[0], np.zeros(6, np.int32), 3, "embeddings: want axes \\[n k\\]"),
        (PROTOTYPES[None], np.zeros(1, np.int32), 3, "embeddings: want axes \\[n k\\]"),
        (PROTOTYPES[:, :0], np.zeros(5, np.int32), 3, "embeddings: want axes \\[n k\\] with k not empty"),
    ],
)
def test_class_prototypes_reject_bad_input(embeddings, labels, num_classes, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        distcam_jax.class_prototypes(embeddings, labels, num_classes)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 8])
def test_nearest_prototype_matches_loop(batch_size):
    embeddings = random_vectors(10, (4, 2, 6))
    labels, distances = distcam_jax.nearest_prototype(embeddings, PROTOTYPES, batch_size=batch_size)
    desired = [[[sum(abs(np.float64(e) - p)) for p in PROTOTYPES] for e in row] for row in embeddings]
    assert_close(distances, desired)
    np.testing.assert_array_equal(labels, np.argmin(desired, axis=-1))
    squared = ((embeddings[..., None, :] - PROTOTYPES) ** 2).sum(-1)
    assert (np.argmin(desired, axis=-1) != squared.argmin(-1)).any()  # L1 and L2 differ on these


def test_nearest_prototype_takes_the_lowest_of_equal_classes():
    labels, _ = distcam_jax.nearest_prototype(
        np.array([1.0, 1.0]), np.array([[5.0, 5.0], [2.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    )
    assert labels == 1


def test_nearest_prototype_leaves_out_classes_without_samples():
    embeddings, prototypes = np.array([[0.1, 0.1]]), np.array([[0.0, 0.0], [3.0, 3.0]])
    assert distcam_jax.nearest_prototype(embeddings, prototypes)[0].tolist() == [0]
    labels, distances = distcam_jax.nearest_prototype(embeddings, prototypes, counts=np.array([0, 7]))
    assert labels.tolist() == [1]
    assert distances[0, 0] == np.inf


def test_nearest_prototype_rejects_counts_of_another_length(without_type_checks):
    with pytest.raises(ValueError, match=r"counts: want shape \(5,\), one a prototype, got \(4,\)"):
        distcam_jax.nearest_prototype(PROTOTYPES, PROTOTYPES, counts=np.ones(4, np.int32))
