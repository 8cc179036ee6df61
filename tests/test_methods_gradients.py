"""Grad-CAM and Grad-CAM++ against PyTorch's automatic differentiation and finite differences in float64."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.test_util import check_grads

import distcam_jax
from distcam_jax.methods import grad_cam, grad_cam_pp, similarity_score

# PyTorch 2.14, float64, with the formulas as they stand in the papers: Grad-CAM++ differentiates exp(S), its maps are
# divided by exp(S) here.
IMAGE = [
    [[0.5, 0.8, 0.23, 0.0], [0.05, 0.0, 0.56, 1.84]],
    [[0.01, 0.0, 0.99, 0.86], [0.61, 0.0, 0.47, 1.2]],
    [[0.0, 0.04, 0.0, 0.0], [0.0, 0.26, 0.0, 0.77]],
]
LAYER = [[0.16, -0.19, -2.52], [-0.54, -0.05, 0.11], [-1.53, -0.48, -0.98], [-0.81, 1.06, -0.81]]
LAST = [-0.03, 0.88, -0.58]
TORCH_GRAD_CAM = [[0.0, 0.632763], [0.188142, 0.387055], [0.0, 0.294868]]
TORCH_GRAD_CAM_PP = [[0.060772, 1.075023], [0.514606, 0.768264], [0.0, 0.443116]]
TORCH_GRAD_CAM_COSINE = [[0.012504, 0.00063], [0.0, 0.019322], [0.00028, 0.017062]]


def image():
    return np.array(IMAGE, np.float32)


def rest_of_network(features):
    """A layer, its rectified squares, their mean and a linear score: of another gradient at every place."""
    hidden = jax.nn.relu(jnp.matmul(features, np.array(LAYER, np.float32), precision="highest") + 0.6)
    return jnp.mean(hidden**2, axis=(0, 1)) @ np.array(LAST, np.float32)


def random_image(seed, shape=(3, 4, 5)):
    return np.maximum(np.random.default_rng(seed).normal(0.3, 1, size=shape), 0).astype(np.float32)


def loop_score(features, reference, metric):
    pooled = [features[..., k].sum() / features[..., k].size for k in range(features.shape[-1])]
    pairs = list(zip(pooled, reference, strict=True))
    if metric == "l1":
        return -sum(abs(x - y) for x, y in pairs)
    if metric == "l2":
        return -sum((x - y) ** 2 for x, y in pairs)
    lengths = np.sqrt(sum(x * x for x, _ in pairs)) * np.sqrt(sum(y * y for _, y in pairs))
    return sum(x * y for x, y in pairs) / lengths


def loop_gradient(features, score, step=1e-6):
    features = np.asarray(features, np.float64)
    gradient = np.zeros_like(features)
    for place in np.ndindex(*features.shape):
        above, below = features.copy(), features.copy()
        above[place] += step
        below[place] -= step
        gradient[place] = (score(above) - score(below)) / (2 * step)
    return gradient


def loop_grad_cam(features, score):
    gradient = loop_gradient(features, score)
    height, width, channels = features.shape
    maps = np.zeros((height, width))
    for k in range(channels):
        weight = sum(gradient[y, x, k] for y in range(height) for x in range(width)) / (height * width)
        maps += weight * features[..., k]
    return np.maximum(maps, 0)


def loop_grad_cam_pp(features, score):
    """With α as in the paper, for the derivatives of exp(S) divided by exp(S)."""
    gradient = loop_gradient(features, score)
    maps = np.zeros(features.shape[:2])
    for k in range(features.shape[-1]):
        weight = 0.0
        for g in gradient[..., k].ravel():
            if g > 0:
                weight += g**2 / (2 * g**2 + features[..., k].sum() * g**3) * g
        maps += weight * features[..., k]
    return np.maximum(maps, 0)


def test_grad_cam_matches_torch_through_the_rest_of_a_network():
    np.testing.assert_allclose(grad_cam(image(), rest_of_network), TORCH_GRAD_CAM, atol=2e-6)


def test_grad_cam_pp_matches_torch_through_the_rest_of_a_network():
    np.testing.assert_allclose(grad_cam_pp(image(), rest_of_network), TORCH_GRAD_CAM_PP, atol=2e-6)


def test_grad_cam_of_a_cosine_matches_torch():
    score = similarity_score(np.array([1.0, 0.5, 0.0, 2.0]), "cosine")
    np.testing.assert_allclose(grad_cam(image(), score), TORCH_GRAD_CAM_COSINE, atol=1e-6)


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
@pytest.mark.parametrize(("function", "loop"), [(grad_cam, loop_grad_cam), (grad_cam_pp, loop_grad_cam_pp)])
def test_grad_cam_of_a_similarity_matches_finite_differences(function, loop, metric):
    features, reference = random_image(0), np.random.default_rng(1).uniform(0, 1.5, size=5)
    expected = loop(features, lambda image: loop_score(image, reference, metric))
    assert expected.max() > 1e-3  # a map of zeros would show nothing
    actual = function(features, similarity_score(reference, metric))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_grad_cam_of_a_linear_class_score_is_cam_cut_off_and_divided():
    features, weights = random_image(2), np.random.default_rng(3).normal(size=(1, 5)).astype(np.float32)
    maps = grad_cam(features, lambda image: jnp.mean(image, axis=(0, 1)) @ weights[0])
    expected = np.maximum(distcam_jax.cam(features, weights)[0], 0) / 12
    assert 0 < np.count_nonzero(expected) < 12
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("function", [grad_cam, grad_cam_pp])
def test_grad_cam_of_a_batch_is_that_of_each_image(function, batch_size):
    features = random_image(4, (2, 3, 3, 2, 4))
    maps = function(features, rest_of_network, batch_size=batch_size)
    assert maps.shape == (2, 3, 3, 2)
    for place in np.ndindex(2, 3):
        np.testing.assert_allclose(maps[place], function(features[place], rest_of_network), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [grad_cam, grad_cam_pp])
@pytest.mark.parametrize(
    "score",
    [lambda features: jnp.sum(features) * 0, similarity_score(np.zeros(4), "cosine")],
    ids=["constant", "zero reference"],
)
def test_grad_cam_of_a_zero_gradient_is_zero(function, score):
    assert np.array_equal(function(image(), score), np.zeros((3, 2)))


@pytest.mark.parametrize("metric", ["l1", "cosine"])
@pytest.mark.parametrize("function", [grad_cam, grad_cam_pp])
def test_grad_cam_of_zero_features_is_zero(function, metric):
    assert np.array_equal(function(np.zeros((2, 2, 3)), similarity_score(np.ones(3), metric)), np.zeros((2, 2)))


def test_grad_cam_of_equal_embeddings_is_zero():
    features = np.full((2, 2, 3), 0.5)
    assert np.array_equal(grad_cam(features, similarity_score(np.full(3, 0.5), "l1")), np.zeros((2, 2)))


def test_grad_cam_pp_does_not_vanish_for_a_great_negative_score():
    score = similarity_score(np.full(4, 100.0), "l2")  # about −4e4, whose exponential is 0
    assert score(image()) < -1e4
    assert np.max(grad_cam_pp(image(), score)) > 0.1


@pytest.mark.parametrize(("below", "expected"), [(-2.0, 7 / 9 - 1 / 2), (-2.5, 7 / 9 + 2.5 / 4)])
def test_grad_cam_pp_keeps_its_denominator_from_zero(below, expected):
    features = np.array([[[below, 7.0], [below, 7.0]]])  # 2 + g Σ Q is 2 + below, of magnitude below 4, and 9
    maps = grad_cam_pp(features, lambda image: jnp.sum(jnp.mean(image, axis=(0, 1))), eps=4)
    np.testing.assert_allclose(maps, np.full((1, 2), expected), rtol=1e-6)


@pytest.mark.parametrize("function", [grad_cam, grad_cam_pp])
def test_grad_cam_refuses_a_score_that_is_no_scalar(function):
    with pytest.raises(ValueError, match=r"score: want a function of features .* to a scalar"):
        function(image(), lambda features: jnp.mean(features, axis=(0, 1)))


@pytest.mark.parametrize("eps", [0, -1.0, float("nan")])
def test_grad_cam_pp_refuses_an_epsilon_that_is_not_positive(eps):
    with pytest.raises(ValueError, match="eps: want a positive"):
        grad_cam_pp(image(), rest_of_network, eps=eps)


def test_similarity_score_refuses_an_unknown_metric():
    with pytest.raises(ValueError, match="metric: want one of 'l1', 'l2', 'cosine', got 'dot'"):
        similarity_score(np.ones(2), "dot")


def test_grad_cam_accumulates_bfloat16_in_float32():
    features = jnp.asarray(image(), jnp.bfloat16)
    maps = grad_cam(features, rest_of_network)
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, grad_cam(np.asarray(features, np.float32), rest_of_network), rtol=1e-6)


def test_grad_cam_works_under_jit_and_has_gradients():
    score = similarity_score(np.array([1.0, 0.5, 0.0, 2.0]), "cosine")
    np.testing.assert_allclose(jax.jit(lambda q: grad_cam(q, score))(image()), TORCH_GRAD_CAM_COSINE, atol=1e-6)
    check_grads(lambda q: jnp.sum(grad_cam(q, score) ** 2) * 100, (image(),), 1, ["rev"], atol=0.01, rtol=0.01)
