"""Margins on cosines against angles computed one at a time in float64."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.losses import arcface_logits, cosface_logits, softmax_cross_entropy, sphereface_logits

ANGLES = np.linspace(0.01, math.pi - 0.01, 60).reshape(20, 3)
COSINES, LABELS = np.cos(ANGLES).astype(np.float32), np.arange(20) % 3


def sphereface(theta, margin):
    j = max(j for j in range(math.ceil(margin) + 1) if theta >= j * math.pi / margin)
    return (-1) ** j * math.cos(margin * theta) - 2 * j


def cosface(theta, margin):
    return math.cos(theta) - margin


def arcface(theta, margin):
    return math.cos(theta + margin) if theta < math.pi - margin else math.cos(theta) - margin * math.sin(margin)


MARGINS = [
    (sphereface_logits, sphereface, 1.35),
    (sphereface_logits, sphereface, 4),
    (cosface_logits, cosface, 0.35),
    (arcface_logits, arcface, 0.5),
    (arcface_logits, arcface, 1.2),
]


@pytest.mark.parametrize("scale", [64.0, 2])
@pytest.mark.parametrize(("function", "by_angle", "margin"), MARGINS)
def test_margin_logits_match_loop(function, by_angle, margin, scale):
    want = [
        [scale * (by_angle(math.acos(cos), margin) if label == c else float(cos)) for c, cos in enumerate(row)]
        for row, label in zip(COSINES.astype(np.float64), LABELS, strict=True)
    ]
    found = function(COSINES, LABELS, margin=margin, scale=scale)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.parametrize(
    ("function", "margin"), [(sphereface_logits, 1.35), (cosface_logits, 0.35), (arcface_logits, 0.5)]
)
def test_margin_logits_have_published_defaults(function, margin):
    np.testing.assert_array_equal(function(COSINES, LABELS), function(COSINES, LABELS, margin=margin, scale=64))


@pytest.mark.parametrize(("function", "margin"), [(sphereface_logits, 1), (cosface_logits, 0), (arcface_logits, 0)])
def test_margin_logits_without_margin_are_scaled_cosines(function, margin):
    found = function(COSINES, LABELS, margin=margin, scale=8.0)
    np.testing.assert_allclose(found, 8 * COSINES, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("function", "by_angle", "margin"), [*MARGINS, (arcface_logits, None, math.pi / 2)])
def test_margin_logits_fall_with_the_angle_and_lie_below_the_cosine(function, by_angle, margin):
    cosines = np.cos(np.linspace(0, math.pi, 1000)).astype(np.float32)[:, None]
    logits = np.asarray(function(cosines, np.zeros(1000, int), margin=margin, scale=1.0))
    assert (np.diff(logits[:, 0]) <= 1e-5).all()
    assert (logits <= cosines + 1e-5).all()


@pytest.mark.parametrize(("function", "by_angle", "margin"), MARGINS)
def test_margin_logits_at_and_beyond_one_have_finite_gradients(function, by_angle, margin):
    ends = jnp.array([[1.0], [-1.0], [1.0000001], [-1.0000001]])
    labels = jnp.zeros(4, jnp.int32)
    logits, pullback = jax.vjp(lambda x: function(x, labels, margin=margin), ends)
    (gradient,) = pullback(jnp.ones_like(logits))
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient) > 0).all()  # a sample at the wrong end is still drawn to its class
    want = [64 * by_angle(theta, margin) for theta in (0.0, math.pi, 0.0, math.pi)]
    np.testing.assert_allclose(logits[:, 0], want, atol=64 * max(1, margin) * 5e-4)  # a rounding step is 5e-4 rad


@pytest.mark.parametrize(("function", "by_angle", "margin"), MARGINS)
def test_margin_logits_gradient_matches_differences(function, by_angle, margin):
    angles = np.array([[0.3, 1.1, 2.0], [0.8, 2.9, 0.4], [1.0, 0.7, 2.3]])
    labels, step = jnp.array([0, 1, 2]), 1e-6
    with jax.enable_x64(True):
        cosines = jnp.cos(jnp.asarray(angles))

        @jax.jit
        def loss(x):
            return softmax_cross_entropy(function(x, labels, margin=margin, scale=4.0), labels)

        gradient = jax.grad(loss)(cosines)
        assert gradient.dtype == jnp.float64
        for place in np.ndindex(3, 3):
            change = loss(cosines.at[place].add(step)) - loss(cosines.at[place].add(-step))
            np.testing.assert_allclose(gradient[place], change / (2 * step), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("function", [sphereface_logits, cosface_logits, arcface_logits])
def test_margin_logits_leave_labels_of_no_class_without_margin(function):
    np.testing.assert_array_equal(function(COSINES[:2], np.array([3, -1]), scale=2.0), 2 * COSINES[:2])


COSINE, LABEL = jnp.zeros((2, 3)), jnp.array([0, 1])


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sphereface_logits(COSINE, LABEL, margin=0.5), "margin: want at least 1, which is no margin, got 0.5"),
        (lambda: sphereface_logits(COSINE, LABEL, margin=-4), "margin: want a finite number of at least 0, got -4"),
        (lambda: sphereface_logits(COSINE, LABEL, scale=0), "scale: want a positive finite number, got 0"),
        (lambda: cosface_logits(COSINE, LABEL, margin=-0.1), "margin: want a finite number of at least 0, got -0.1"),
        (lambda: cosface_logits(COSINE, LABEL, scale=-64), "scale: want a positive finite number, got -64"),
        (lambda: cosface_logits(COSINE, LABEL[:1]), r"labels: want 2 integers.* shape \(1,\)"),
        (lambda: cosface_logits(COSINE[:0], LABEL[:0]), r"cosines: want axes \[b c\] with b not empty"),
        (lambda: arcface_logits(COSINE, LABEL, margin=-0.1), r"margin: want a number in \[0, 1.5708\], got -0.1"),
        (lambda: arcface_logits(COSINE, LABEL, margin=2), r"margin: want a number in \[0, 1.5708\], got 2"),
        (lambda: arcface_logits(COSINE, LABEL, scale=float("nan")), "scale: want a positive finite number, got nan"),
        (lambda: arcface_logits(COSINE, jnp.zeros(2)), "labels: want 2 integers, one a sample, got float32"),
        (lambda: arcface_logits(COSINE[0], LABEL), r"cosines: want axes \[b c\], got shape \(3,\)"),
    ],
)
def test_margin_logits_name_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
