"""Nearest neighbours and the metrics of retrieval, against plain NumPy loops and values by hand."""

import sys

import jax
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


WAYS = {
    "whole": {},
    "blocks": {"_QUERIES_OF_DIFFERENCES": 3, "_GALLERY": 4},  # neither the queries nor the gallery divide into them
    "products": {"_MEASURED": 0, "_QUERIES": 3, "_GALLERY": 4},
    "groups": {"_SORTED": 0, "_GROUP": 2, "SPARE": 2, "_GALLERY": 6, "_QUERIES": 4},
}


@pytest.fixture
def way(request, monkeypatch):
    """One of the ways to search, of which the number of images and neighbours decides."""
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(search_module, name, value)


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))


TWO_AXES = jax.sharding.Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ("a", "b"))


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("metric", DISTANCES)
def test_nearest_neighbors_are_those_of_a_loop(metric, way):
    gallery = GALLERY.astype(np.float64)
    positions, distances = nearest_neighbors(QUERY, GALLERY, count=6, metric=metric)
    wanted = loop_neighbors(QUERY, gallery, metric)
    exact = [
        [DISTANCES[metric](one, gallery[place]) for place in row[:6]]
        for one, row in zip(QUERY.astype(np.float64), wanted, strict=True)
    ]
    np.testing.assert_allclose(distances, exact, atol=1e-6)
    assert positions[:5].tolist() == [row[:6] for row in wanted[:5]]


@pytest.mark.parametrize("way", ["blocks", "groups"], indirect=True)
@pytest.mark.parametrize("metric", DISTANCES)
def test_nearest_neighbors_without_a_gallery_leave_out_the_query_and_not_its_double(metric, way):
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
    ("way", "devices", "metric"),
    [("whole", 2, "l1"), ("whole", 2, "cosine"), ("groups", 2, "l2"), ("groups", 2, "cosine"), ("products", 8, "l2")],
    indirect=["way"],
)
def test_nearest_neighbors_are_the_same_on_every_number_of_devices(metric, devices, way):
    """25 rows do not divide into shards, of which the last is filled up; eight have fewer each than are asked for."""
    wanted = nearest_neighbors(GALLERY, count=6, metric=metric)
    found = nearest_neighbors(GALLERY, count=6, metric=metric, mesh=mesh_of(devices))
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-6)


@pytest.mark.parametrize(("metric", "devices"), [("l1", 2), ("l2", 1), ("cosine", 2)])
def test_nearest_neighbors_of_equal_images_are_the_first(metric, devices, monkeypatch):
    monkeypatch.setattr(search_module, "_SORTED", 0)  # with groups
    gallery = np.tile(GALLERY[:1], (650, 1))
    positions, _ = nearest_neighbors(GALLERY[:2], gallery, count=3, metric=metric, mesh=mesh_of(devices))
    assert positions.tolist() == [[0, 1, 2]] * 2


def test_nearest_neighbors_copy_no_gallery_that_is_on_its_device():
    gallery = jax.device_put(GALLERY)
    placed = search_module.placed_gallery(gallery, mesh_of(1))
    assert placed.unsafe_buffer_pointer() == gallery.unsafe_buffer_pointer()


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("gallery", [None, GALLERY], ids=["alone", "gallery"])
def test_nearest_neighbors_by_faiss_are_those_by_jax(metric, gallery):
    pytest.importorskip("faiss")
    query = GALLERY if gallery is None else QUERY
    wanted = nearest_neighbors(query, gallery, count=4, metric=metric)
    found = nearest_neighbors(query, gallery, count=4, metric=metric, backend="faiss")
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-6)


def test_nearest_neighbors_without_faiss_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"^backend: 'faiss' needs the package faiss-cpu: pip install \S+$"):
        nearest_neighbors(QUERY, GALLERY, count=1, backend="faiss")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "l3"}, "metric: want one of 'l1', 'l2', 'cosine', got 'l3'"),
        ({"backend": "annoy"}, "backend: want one of 'jax', 'faiss', got 'annoy'"),
        (
            {"mesh": mesh_of(2), "backend": "faiss"},
            r"mesh: want a single axis and the back end 'jax', got .* and 'faiss'",
        ),
        ({"mesh": TWO_AXES}, r"mesh: want a single axis and the back end 'jax', got {'a': 1, 'b': 2} and 'jax'"),
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
