"""Figures of single queries against loops, and what a random order gets against all orders."""

import itertools

import numpy as np
import pytest

from distcam_jax.retrieval import market1501_metrics
from distcam_jax.retrieval.per_query import (
    average_precision_at_r,
    chance_at_k,
    chance_average_precision,
    hits_at_k,
    precision_at_r,
)

generator = np.random.default_rng(0)
HITS = generator.random((20, 9)) < 0.4
RELEVANT = generator.integers(1, 10, 20)


def loop_precision(right, relevant):
    """The mean over the first R places of precision where there is a hit, and the share of hits among them."""
    total, found = 0.0, 0
    for place in range(relevant):
        if right[place]:
            found += 1
            total += found / (place + 1)
    return total / relevant, found / relevant


def test_precisions_of_queries_are_those_of_a_loop():
    wanted = [loop_precision(row, r) for row, r in zip(HITS.tolist(), RELEVANT, strict=True)]
    np.testing.assert_allclose(average_precision_at_r(HITS, RELEVANT), [at_r for at_r, _ in wanted])
    np.testing.assert_allclose(precision_at_r(HITS, RELEVANT), [share for _, share in wanted])


def test_hits_at_k_count_all_neighbours_where_there_are_fewer():
    found = hits_at_k(HITS, (2, 50))
    np.testing.assert_array_equal(found[2], HITS[:, 0] | HITS[:, 1])
    np.testing.assert_array_equal(found[50], [any(row) for row in HITS])


@pytest.mark.parametrize("relevant", [0, 10])
def test_precisions_refuse_more_relevant_images_than_neighbours_or_none(relevant):
    with pytest.raises(ValueError, match="relevant: want 1 to the 9 neighbours of hits, got"):
        precision_at_r(HITS[:1], np.array([relevant]))


@pytest.mark.parametrize(("relevant", "candidates"), [(1, 4), (2, 5), (3, 3)])
def test_chance_is_the_mean_over_all_orders(relevant, candidates):
    orders = np.array(list(set(itertools.permutations([True] * relevant + [False] * (candidates - relevant)))))
    given = np.array([relevant]), np.array([candidates])
    for k, value in chance_at_k(*given, (1, 2, 3, 8)).items():
        assert value[0] == pytest.approx(np.mean([row[:k].any() for row in orders]))
    at_r = [loop_precision(row, relevant)[0] for row in orders]
    whole = [np.mean(np.cumsum(row)[row] / (np.flatnonzero(row) + 1)) for row in orders]
    assert chance_average_precision(*given, at_r=True)[0] == pytest.approx(np.mean(at_r))
    assert chance_average_precision(*given)[0] == pytest.approx(np.mean(whole))


def test_market1501_metrics_tell_the_rank_of_each_first_match():
    """The first query's nearest is left out by the camera rule, the second's person is nowhere else."""
    distances = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    persons, cameras = np.array([5, 7, 5, 5]), np.array([1, 1, 2, 3])
    scores = market1501_metrics(distances, np.array([5, 9]), persons, np.array([1, 1]), cameras, max_rank=3)
    assert scores.first_match.tolist() == [2, 0]
    assert scores.cmc.tolist() == [0.0, 1.0, 1.0]
