"""Nearest neighbours and the metrics of retrieval, against plain NumPy loops and values by hand."""

import numpy as np
import pytest

from distcam_jax.retrieval import map_at_r, nearest_neighbors, r_precision, recall_at_k
from distcam_jax.retrieval import search as search_module
from distcam_jax.retrieval.metrics import relevant_counts, searchable_queries

generator = np.random.default_rng(0)
QUERY = generator.normal(size=(7, 5)).astype(np.float32)
GALLERY = np.concatenate([generator.normal(size=(20, 5)), QUERY[:3], QUERY[:2]]).astype(np.float32)
QUERY[5], GALLERY[4] = 0, 0
QUERY_LABELS = np.array([0, 1, 2, 0, 1, 2, 9])
GALLERY_LABELS = np.tile(np.arange(5), 5)

DISTANCES = {
    "l1": lambda a, b: np.abs(a - b).sum(),
    "l2": lambda a, b: np.sqrt(((a - b) ** 2).sum()),
    "cosine": lambda a, b: 1 - (a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if a.any() and b.any() else 0.0),
}


def loop_neighbors(query, gallery, metric, *, itself=False):
    """All positions of each query by distance, then by position."""
    rows = []
    for number, one in enumerate(query.astype(np.float64)):
        pairs = [(round(float(DISTANCES[metric](one, other)), 9), place) for place, other in enumerate(gallery)]
        rows.append([place for _, place in sorted(pairs) if not (itself and place == number)])
    return rows


@pytest.fixture(params=[(256, 4096), (3, 4)], ids=["whole", "blocks"])
def blocks(request, monkeypatch):
    """Everything at once, and in blocks that neither the queries nor the gallery divide into."""
    monkeypatch.setattr(search_module, "_QUERIES", request.param[0])
    monkeypatch.setattr(search_module, "_GALLERY", request.param[1])


@pytest.mark.parametrize("metric", DISTANCES)
def test_nearest_neighbors_are_those_of_a_loop(metric, blocks):
    gallery = GALLERY.astype(np.float64)
    positions, distances = nearest_neighbors(QUERY, GALLERY, count=6, metric=metric)
    wanted = loop_neighbors(QUERY, gallery, metric)
    exact = [
        [DISTANCES[metric](one, gallery[place]) for place in row[:6]]
        for one, row in zip(QUERY.astype(np.float64), wanted, strict=True)
    ]
    np.testing.assert_allclose(distances, exact, atol=1e-6)
    assert positions[:5].tolist() == [row[:6] for row in wanted[:5]]


@pytest.mark.parametrize("metric", DISTANCES)
def test_nearest_neighbors_without_a_gallery_leave_out_the_query_and_not_its_double(metric, blocks):
    positions, distances = nearest_neighbors(GALLERY, count=24, metric=metric)
    assert all(row not in found for row, found in enumerate(positions.tolist()))
    assert {int(row) for row in positions[20, :2]} == {23} | {int(positions[20, 1])}
    assert positions[20, 0] == 23 and distances[20, 0] < 1e-6  # noqa: PT018
    assert sorted(positions[0].tolist()) == list(range(1, 25))


def test_nearest_neighbors_put_the_lower_of_equally_near_ones_first():
    gallery = np.array([[3.0], [1.0], [-1.0], [1.0]])
    for metric in ("l1", "l2"):
        positions, _ = nearest_neighbors(np.array([[0.0]]), gallery, count=4, metric=metric)
        assert positions.tolist() == [[1, 2, 3, 0]]


def test_nearest_neighbors_in_l2_tell_apart_what_a_matrix_product_cannot():
    """Far from the origin, |x|² + |y|² - 2 x·y has lost the digits in which these neighbours differ."""
    gallery = (1000 + np.array([[0.003], [0.001], [0.002]])).astype(np.float32)
    positions, distances = nearest_neighbors(np.array([[1000.0]], np.float32), gallery, count=3)
    assert positions.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(distances[0], (gallery[[1, 2, 0], 0] - 1000), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "l3"}, "metric: want one of 'l1', 'l2', 'cosine', got 'l3'"),
        ({"count": 26}, "count: want at most the 25 neighbours that there are, got 26"),
        ({"count": 0}, "count: want a positive integer, got 0"),
        ({"gallery": GALLERY[:, :4]}, r"gallery: want 5 channels as in query, got shape \(25, 4\)"),
        ({"gallery": np.full((3, 5), np.nan, np.float32), "count": 1}, "gallery: want finite values"),
        ({"query": np.full((1, 5), np.inf, np.float32)}, "query: want finite values"),
        ({"query": np.ones((2, 5), np.int32)}, "query: want a floating type, got int32"),
        ({"gallery": np.zeros((0, 5), np.float32)}, "count: want at most the 0 neighbours that there are"),
    ],
)
def test_nearest_neighbors_refuse_what_they_cannot_search(changes, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(**{"query": QUERY, "gallery": GALLERY, "count": 3, "metric": "l2", **changes})


# ---- metrics


def loop_metrics(metric, *, leave_one_out):
    """Recall@1, 2, 4, R-precision and MAP@R, query by query."""
    query, labels = (GALLERY, GALLERY_LABELS) if leave_one_out else (QUERY, QUERY_LABELS)
    rows = loop_neighbors(query, GALLERY.astype(np.float64), metric, itself=leave_one_out)
    recalls, precisions, averages = [], [], []
    for number, found in enumerate(rows):
        right = [GALLERY_LABELS[place] == labels[number] for place in found]
        relevant = sum(right)
        if not relevant:
            continue
        recalls.append([any(right[:k]) for k in (1, 2, 4)])
        precisions.append(sum(right[:relevant]) / relevant)
        averages.append(sum(sum(right[: i + 1]) / (i + 1) for i in range(relevant) if right[i]) / relevant)
    return np.mean(recalls, axis=0), np.mean(precisions), np.mean(averages)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_metrics_are_those_of_a_loop(metric, leave_one_out):
    given = (GALLERY, GALLERY_LABELS) if leave_one_out else (QUERY, QUERY_LABELS, GALLERY, GALLERY_LABELS)
    recalls, precision, average = loop_metrics(metric, leave_one_out=leave_one_out)
    assert list(recall_at_k(*given, ks=(1, 2, 4), metric=metric).values()) == pytest.approx(recalls.tolist())
    assert r_precision(*given, metric=metric) == pytest.approx(precision)
    assert map_at_r(*given, metric=metric) == pytest.approx(average)


def test_map_at_r_weighs_the_precision_at_the_ranks_that_hit():
    query, gallery = np.array([[0.0]]), np.arange(1.0, 7.0)[:, None]
    labels = np.array([3, 7, 7, 3, 7, 3])  # R = 3: ranks 2 and 3 count, with precision 1/2 and 2/3; rank 5 does not
    assert map_at_r(query, np.array([7]), gallery, labels) == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert r_precision(query, np.array([7]), gallery, labels) == pytest.approx(2 / 3)
    assert recall_at_k(query, np.array([7]), gallery, labels, ks=(1, 2, 99)) == {1: 0.0, 2: 1.0, 99: 1.0}


def test_metrics_leave_out_queries_that_have_nothing_to_find():
    assert searchable_queries(QUERY_LABELS, GALLERY_LABELS).tolist() == [True] * 6 + [False]
    assert relevant_counts(np.array([4, 4, 4, 5])).tolist() == [2, 2, 2, 0]
    features = np.array([[0.0], [1.0], [0.4]])
    assert recall_at_k(features, np.array([1, 1, 2]), ks=(1,)) == {1: 0.0}  # the image alone in its class is nearest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((QUERY, QUERY_LABELS[:3]), "query_labels: want 7 integers, one a feature, got int64 of shape"),
        ((QUERY, QUERY_LABELS, GALLERY), "gallery, gallery_labels: want both or none"),
        ((QUERY, np.arange(7)), "query_labels: want a query whose class has another image to find, got none"),
    ],
)
def test_metrics_refuse_what_has_no_value(given, message):
    for function in (map_at_r, r_precision):
        with pytest.raises(ValueError, match=message):
            function(*given)


@pytest.mark.parametrize(("ks", "message"), [((), "ks: want at least one"), ((0,), "ks: want a positive integer")])
def test_recall_at_k_refuses_numbers_that_are_none(ks, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(GALLERY, GALLERY_LABELS, ks=ks)
