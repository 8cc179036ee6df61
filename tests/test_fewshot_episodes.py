"""Many few-shot episodes at once against a loop over episodes, classes and queries in float64."""

import numpy as np
import pytest
from jax import numpy as jnp

from distcam_jax.fewshot import decisions, episode_accuracies, episode_predictions
from tests.fewshot_oracles import cosine, episodes_by_loop, normal, rectify_by_loop

CHANNELS = 133  # a slice that is added up as one vector, and five more
SIGNAL = np.repeat(0.8 * np.eye(5, 7, dtype=np.float32), 19, axis=1)[np.arange(30) % 5]
EMBEDDINGS = np.maximum(normal(8, 30, CHANNELS) + SIGNAL, 0)
CENTER = np.full(CHANNELS, 0.4, np.float32)
FUNCTIONS = (episode_accuracies, episode_predictions)
DECISIONS = {
    "l1": dict(metric="l1", rectified=False),
    "l2": dict(metric="l2", rectified=False),
    "cosine": dict(metric="cosine", rectified=False),
    "l1 centred": dict(metric="l1", rectified=False, center=CENTER, normalize=True),
    "rectified": dict(metric="cosine", rectified=True),
    "rectified centred": dict(metric="cosine", rectified=True, center=CENTER, normalize=True),
}


def draw(episodes, shots, ways=3, queries=3, seed=0):
    """Rows of supports and queries, of classes that are rows modulo five."""
    random, taken = np.random.default_rng(seed), []
    for _ in range(episodes):
        classes = random.choice(5, ways, replace=False)
        taken.append([c + 5 * random.choice(6, shots + queries, replace=False) for c in classes])
    rows = np.array(taken)
    return rows[..., :shots], rows[..., shots:]


def check_by_loop(rows, options, found_accuracies, found_predictions):
    want = episodes_by_loop(EMBEDDINGS, *rows, **options)
    predicted, scores = found_predictions
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(predicted, want.argmax(axis=-1))
    right = [np.mean([one[c].argmax(axis=-1) == c for c in range(len(one))]) for one in want]
    assert 0.4 < np.mean(right) < 1
    assert isinstance(found_accuracies, np.ndarray)
    assert found_accuracies.dtype == np.float32
    np.testing.assert_allclose(found_accuracies, right, rtol=1e-6)


@pytest.mark.parametrize("name", DECISIONS)
def test_episodes_match_loop(name):
    rows, options = draw(9, shots=1), DECISIONS[name]
    accuracies, predictions = (function(EMBEDDINGS, *rows, **options) for function in FUNCTIONS)
    check_by_loop(rows, options, accuracies, predictions)


@pytest.mark.parametrize(
    ("name", "elements"),  # an episode at a time; four, and three in the last block
    [("l1", 1), ("cosine", 4 * 15 * CHANNELS), ("rectified", 4 * 15 * CHANNELS)],
)
def test_episodes_in_blocks_match_loop(name, elements, monkeypatch):
    monkeypatch.setattr(decisions, "_BLOCK_ELEMENTS", elements)
    rows, options = draw(11, shots=2), DECISIONS[name]
    accuracies, predictions = (function(EMBEDDINGS, *rows, **options) for function in FUNCTIONS)
    check_by_loop(rows, options, accuracies, predictions)


def test_episode_predictions_of_equal_scores_are_the_lowest_way():
    predicted, _ = episode_predictions(np.ones((4, 2)), np.array([[[0], [1]]]), np.array([[[2], [3]]]))
    assert predicted.tolist() == [[[0], [0]]]


@pytest.mark.parametrize("name", ["l1", "l1 centred", "cosine", "rectified"])
@pytest.mark.parametrize("place", ["support", "query"])
def test_a_nan_spoils_only_the_episodes_that_use_it(name, place):
    supports, queries = draw(9, shots=1)
    row = (supports if place == "support" else queries)[3, 0, 0]
    uses = np.array([row in one for one in np.concatenate([supports, queries], axis=-1)])
    assert 1 <= uses.sum() < 9
    spoilt = EMBEDDINGS.copy()
    spoilt[row, 2] = np.nan
    options = DECISIONS[name]
    want, want_scores = episode_predictions(EMBEDDINGS, supports, queries, **options)
    predicted, scores = episode_predictions(spoilt, supports, queries, **options)
    np.testing.assert_array_equal(predicted[~uses], want[~uses])
    np.testing.assert_allclose(scores[~uses], want_scores[~uses], rtol=1e-6)
    assert predicted[3, 0, 0] == -1
    accuracies = episode_accuracies(spoilt, supports, queries, **options)
    np.testing.assert_allclose(accuracies, np.mean(predicted == np.arange(3)[:, None], axis=(1, 2)), rtol=1e-6)
    if place == "support" or options["rectified"]:  # it is in every score of the episode
        assert accuracies[3] == 0
        assert np.isnan(scores[3]).any(axis=-1).all()


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16])
@pytest.mark.parametrize("name", ["l1", "rectified"])
def test_episode_predictions_of_other_types_are_float32(name, dtype):
    embeddings, rows = EMBEDDINGS.astype(dtype), draw(9, shots=1)
    _, scores = episode_predictions(embeddings, *rows, **DECISIONS[name])
    assert scores.dtype == np.float32
    want = episodes_by_loop(embeddings, *rows, **DECISIONS[name])
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)


def test_temperature_of_episodes_is_that_of_the_rectification():
    supports, queries = draw(1, shots=2)
    _, scores = episode_predictions(EMBEDDINGS, supports, queries, metric="cosine", rectified=True, temperature=2)
    support, query = EMBEDDINGS[supports.ravel()], EMBEDDINGS[queries.ravel()]
    prototypes = rectify_by_loop(support, np.repeat(np.arange(3), 2), query, 3, 2.0)
    moved = query + support.mean(axis=0) - query.mean(axis=0)
    want = [[cosine(x, prototype) for prototype in prototypes] for x in moved.astype(np.float64)]
    np.testing.assert_allclose(scores.reshape(9, 3), want, rtol=1e-5, atol=1e-5)


# ---- errors

ONES, ROWS = jnp.ones((2, 3)), np.array([[[0], [1]]])


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: episode_accuracies(ONES, ROWS, ROWS, metric="l3"), "metric: want one of .* got 'l3'"),
        (
            lambda: episode_accuracies(ONES, ROWS, ROWS, rectified=True),
            "metric: rectified prototypes are told by 'cosine', got 'l1'",
        ),
        (
            lambda: episode_accuracies(ONES, ROWS, ROWS, metric="cosine", rectified=True, temperature=-1),
            "temperature: want a positive finite number, got -1",
        ),
        (lambda: episode_accuracies(ONES, ROWS + 1, ROWS), "support_rows: want rows of the 2 embeddings, got 1 to 2"),
        (lambda: episode_accuracies(ONES, ROWS, ROWS - 1), "query_rows: want rows of the 2 embeddings, got -1 to 0"),
        (
            lambda: episode_accuracies(ONES, ROWS[0], ROWS),
            r"support_rows: want integers \[e, ways, images\] with no axis empty, got int64 of shape \(2, 1\)",
        ),
        (
            lambda: episode_accuracies(ONES, ROWS, ROWS[:, :, :0]),
            r"query_rows: want integers .* got int64 of shape \(1, 2, 0\)",
        ),
        (lambda: episode_accuracies(ONES, ROWS, ROWS.astype(np.float32)), "query_rows: want integers .* got float32"),
        (
            lambda: episode_accuracies(ONES, ROWS, ROWS[:, :1]),
            r"support_rows, query_rows: want the same \[e, ways\], got \(1, 2, 1\) and \(1, 1, 1\)",
        ),
        (lambda: episode_accuracies(ONES[0], ROWS, ROWS), r"embeddings: want axes \[n k\], got shape \(3,\)"),
        (
            lambda: episode_predictions(ONES, ROWS, ROWS, center=jnp.ones(2)),
            r"center: want axes \[k\] with k = 3 as in embeddings, got shape \(2,\)",
        ),
    ],
)
def test_episodes_name_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
