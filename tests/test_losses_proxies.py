"""Proxy-NCA and the centre loss against loops over samples and classes in float64."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.losses import center_loss, proxy_nca, update_centers

LABELS = np.array([0, 3, 0, 2, 3, 3])  # class 1 has no sample


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def proxy_nca_by_loop(embeddings, labels, proxies, metric, scale, normalize):
    embeddings, proxies = embeddings.astype(np.float64), proxies.astype(np.float64)
    if normalize:
        embeddings = [x / math.sqrt(sum(x * x)) for x in embeddings]
        proxies = [p / math.sqrt(sum(p * p)) for p in proxies]
    measure = {
        "l1": lambda d: sum(abs(d)),
        "l2": lambda d: math.sqrt(sum(d * d)),
        "squared_l2": lambda d: sum(d * d),
    }[metric]
    total = 0.0
    for x, y in zip(embeddings, labels, strict=True):
        numerator = math.exp(-scale * measure(x - proxies[y]))
        total -= math.log(numerator / sum(math.exp(-scale * measure(x - p)) for z, p in enumerate(proxies) if z != y))
    return total / len(labels)


# ---- proxy_nca


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("metric", "scale"), [("l1", 0.5), ("l2", 2), ("squared_l2", 1.0)])
def test_proxy_nca_matches_loop(metric, scale, normalize):
    embeddings, proxies = normal(0, 6, 5), 3 * normal(1, 4, 5)
    want = proxy_nca_by_loop(embeddings, LABELS, proxies, metric, scale, normalize)
    found = proxy_nca(embeddings, LABELS, proxies, metric=metric, scale=scale, normalize=normalize)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_proxy_nca_goes_below_zero():
    # With the own proxy in the denominator, the loss could not.
    embeddings, proxies = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert proxy_nca(embeddings, jnp.array([0]), proxies).item() == pytest.approx(-4 + math.log(2))


def test_proxy_nca_of_far_proxies_is_finite():
    embeddings, proxies = jnp.zeros((2, 2)), jnp.array([[1e4, 0.0], [0.0, 2e4], [9e4, 0.0]])  # exp(-1e4) is 0

    def loss(p):
        return proxy_nca(embeddings, jnp.array([2, 2]), p, metric="l1", normalize=False)

    value, gradient = jax.value_and_grad(loss)(proxies)
    assert value == 9e4 - 1e4
    np.testing.assert_array_equal(gradient, [[-1, 0], [0, 0], [1, 0]])


def test_proxy_nca_leaves_out_labels_of_no_class():
    embeddings, proxies = normal(0, 6, 5), normal(1, 4, 5)
    padded, labels = np.concatenate([embeddings, normal(2, 2, 5)]), np.concatenate([LABELS, [-1, 4]])
    want = proxy_nca_by_loop(embeddings, LABELS, proxies, "squared_l2", 1.0, True)
    np.testing.assert_allclose(proxy_nca(padded, labels, proxies), want, rtol=1e-5)


# ---- center_loss


def test_center_loss_matches_loop():
    embeddings, centers = normal(0, 6, 5), normal(1, 4, 5)
    want = 0.0
    for x, y in zip(embeddings.astype(np.float64), LABELS, strict=True):
        want += 0.5 * sum((a - b) ** 2 for a, b in zip(x, centers[y].astype(np.float64), strict=True))
    np.testing.assert_allclose(center_loss(embeddings, LABELS, centers), want / 6, rtol=1e-6)


def test_center_loss_gradients_pull_samples_and_centres_together():
    embeddings, centers = jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([[9.0, 9.0], [1.0, 0.0]])
    to_embeddings, to_centers = jax.grad(lambda x, c: center_loss(x, jnp.array([1, 1]), c), (0, 1))(embeddings, centers)
    assert to_embeddings.tolist() == [[1.0, 0.0], [-0.5, 0.0]]
    assert to_centers.tolist() == [[0.0, 0.0], [-0.5, 0.0]]


def test_center_loss_leaves_out_labels_of_no_class():
    embeddings, centers = jnp.array([[2.0], [50.0], [50.0]]), jnp.array([[0.0], [1.0]])
    assert center_loss(embeddings, jnp.array([0, 2, -1]), centers).item() == 2


# ---- update_centers


@pytest.mark.parametrize("rate", [0.5, 0, 1.0])
def test_update_centers_match_loop(rate):
    centers, embeddings = normal(1, 4, 5), normal(0, 6, 5)
    want = centers.astype(np.float64)
    for c in range(4):
        members = [x.astype(np.float64) for x, y in zip(embeddings, LABELS, strict=True) if y == c]
        change = sum((centers[c].astype(np.float64) - x for x in members), np.zeros(5)) / (1 + len(members))
        want[c] -= rate * change
    np.testing.assert_allclose(update_centers(centers, embeddings, LABELS, rate=rate), want, rtol=1e-5, atol=1e-7)


def test_update_centers_leave_absent_classes_bit_by_bit():
    centers = normal(0, 5, 8)
    found = update_centers(centers, normal(1, 3, 8), np.array([4, 5, -1]))  # 5 and -1 are no class
    np.testing.assert_array_equal(found[:4], centers[:4])
    assert np.abs(found[4] - centers[4]).min() > 0


# ---- errors

ONES, TWO = jnp.ones((2, 3)), jnp.array([0, 1])


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: proxy_nca(ONES, TWO, ONES, metric="cosine"),
            "metric: want one of 'l1', 'l2', 'squared_l2', got 'cosine'",
        ),
        (lambda: proxy_nca(ONES, TWO, ONES, scale=0), "scale: want a positive finite number, got 0"),
        (lambda: proxy_nca(ONES, TWO, ONES[:1]), r"proxies: want axes \[c k\] with c at least 2, got shape \(1, 3\)"),
        (lambda: proxy_nca(ONES, TWO, ONES[:, :2]), r"proxies: want axes \[c k\] with k = 3 as in embeddings"),
        (lambda: proxy_nca(ONES, TWO[:1], ONES), r"labels: want 2 integers.* shape \(1,\)"),
        (lambda: proxy_nca(ONES[:0], TWO[:0], ONES), r"embeddings: want axes \[b k\] with b not empty"),
        (lambda: center_loss(ONES, TWO, ONES[:, :2]), r"centers: want axes \[c k\] with k = 3 as in embeddings"),
        (lambda: center_loss(ONES, jnp.ones(2), ONES), "labels: want 2 integers, one a sample, got float32"),
        (lambda: center_loss(ONES[:0], TWO[:0], ONES), r"embeddings: want axes \[b k\] with b not empty"),
        (lambda: update_centers(ONES, ONES, TWO, rate=-0.1), r"rate: want a number in \[0, 1\], got -0.1"),
        (lambda: update_centers(ONES, ONES, TWO, rate=1.5), r"rate: want a number in \[0, 1\], got 1.5"),
        (lambda: update_centers(ONES, ONES[:, :2], TWO), r"embeddings: want axes \[b k\] with k = 3 as in centers"),
        (lambda: update_centers(ONES, ONES, TWO[:1]), "labels: want 2 integers"),
    ],
)
def test_proxy_losses_name_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
