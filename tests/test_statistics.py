"""Bootstrap intervals against the normal approximation, an exhaustive resample and a plain loop."""

import itertools

import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax import statistics
from distcam_jax.statistics import bootstrap_interval, paired_bootstrap_interval


def test_bootstrap_interval_is_near_the_normal_approximation():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=900)
    low, high = bootstrap_interval(values, resamples=4000)
    half_width = 1.96 * values.std() / 30
    assert low == pytest.approx(values.mean() - half_width, abs=0.02)
    assert high == pytest.approx(values.mean() + half_width, abs=0.02)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_bootstrap_interval_matches_every_possible_resample(level):
    values = np.array([0.0, 1.0, 3.0, 10.0])
    means = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    expected = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    np.testing.assert_allclose(bootstrap_interval(values, resamples=40_000, level=level), expected, atol=0.26)


def test_bootstrap_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(1).random(50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_bootstrap_interval_in_small_blocks_draws_every_resample(monkeypatch):
    values = np.random.default_rng(2).random(60)
    whole = bootstrap_interval(values, resamples=1001)
    monkeypatch.setattr(statistics, "_BLOCK_ENTRIES", 60 * 7)
    np.testing.assert_allclose(bootstrap_interval(values, resamples=1001), whole, atol=0.01)


def test_bootstrap_interval_is_wider_at_a_higher_level():
    values = np.random.default_rng(3).random(80)
    wide, narrow = bootstrap_interval(values, level=0.99), bootstrap_interval(values, level=0.8)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


@pytest.mark.parametrize("values", [np.array([True]), np.full(7, 1), jnp.ones(3, bool), jnp.ones(3)])
def test_bootstrap_interval_of_equal_values_is_a_point(values):
    assert bootstrap_interval(values) == (1.0, 1.0)


def test_paired_bootstrap_interval_cancels_what_images_share():
    random = np.random.default_rng(4)
    hard = random.normal(0, 10, size=400)
    a, b = hard + random.normal(0.5, 0.1, size=400), hard
    low, high = paired_bootstrap_interval(a, b)
    assert 0.45 < low < 0.5 < high < 0.55
    assert paired_bootstrap_interval(b, a) == pytest.approx((-high, -low), abs=5e-3)


def test_paired_bootstrap_interval_takes_booleans():
    a, b = np.arange(100) < 60, np.arange(100) < 40
    low, high = paired_bootstrap_interval(a, b)
    assert 0.1 < low < 0.2 < high < 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.ones((2, 2))}, r"values must have shape \[n\].*\(2, 2\)"),
        ({"values": np.ones(0)}, "values must have shape"),
        ({"values": np.array([1.0, np.nan])}, "values must be finite, got 1"),
        ({"resamples": 0}, "resamples must be at least 1, got 0"),
        ({"level": 1.0}, r"level must be in \(0, 1\), got 1.0"),
    ],
)
def test_bootstrap_interval_names_the_bad_argument(changes, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**({"values": np.ones(3)} | changes))


def test_paired_bootstrap_interval_names_lengths_that_differ(without_type_checks):
    with pytest.raises(ValueError, match="got 3 and 1 values"):
        paired_bootstrap_interval(np.ones(3), np.ones(1))
