"""The rule of Market-1501 and k-reciprocal re-ranking, against plain loops and cases by hand."""

import numpy as np
import pytest

from distcam_jax.retrieval import k_reciprocal_rerank, market1501_metrics, reranking

generator = np.random.default_rng(0)


def loop_scores(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank):
    hits, precisions = np.zeros(max_rank), []
    for row in range(len(distances)):
        ranked, found, precision = 0, 0, []
        for place in sorted(range(distances.shape[1]), key=lambda place: (distances[row, place], place)):
            same = gallery_ids[place] == query_ids[row]
            if same and gallery_cameras[place] == query_cameras[row]:
                continue
            ranked += 1
            if same:
                found += 1
                precision.append(found / ranked)
                if found == 1:
                    hits[ranked - 1 :] += 1
        precisions.append(np.mean(precision) if precision else np.nan)
    valid = ~np.isnan(precisions)
    return hits / valid.sum(), np.nanmean(precisions), precisions


def test_market1501_metrics_are_those_of_a_loop():
    distances = generator.integers(0, 12, (15, 40)).astype(np.float32)  # with ties
    ids, cameras = [generator.integers(0, high, (2, 40)) for high in (6, 3)]
    given = distances, ids[0, :15], ids[1], cameras[0, :15], cameras[1]
    given[1][0] = 77  # nobody has seen this person
    cmc, average, precisions = loop_scores(*given, 8)
    scores = market1501_metrics(*given, max_rank=8)
    np.testing.assert_allclose(scores.cmc, cmc)
    assert scores.mean_average_precision == pytest.approx(average)
    np.testing.assert_allclose(scores.average_precision, precisions)
    assert scores.valid.tolist() == [False] + [True] * 14


def test_market1501_metrics_leave_out_the_same_person_by_the_same_camera_and_no_other():
    """Ranks without the first image: a distractor, the person, a stranger by the query's camera, the person."""
    distances = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    persons, cameras = np.array([5, 0, 5, 8, 5]), np.array([1, 1, 2, 1, 3])
    scores = market1501_metrics(distances, np.array([5]), persons, np.array([1]), cameras, max_rank=3)
    assert scores.cmc.tolist() == [0.0, 1.0, 1.0]
    assert scores.mean_average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distances": np.array([[np.nan, 1.0]])}, "distances: want numbers, got some NaN"),
        ({"distances": np.ones(2)}, r"distances: want floats \[q, g\], got float64 of shape \(2,\)"),
        ({"gallery_ids": np.array([1, 2, 3])}, r"gallery_ids: want 2 integers, got int64 of shape \(3,\)"),
        ({"query_ids": np.array([9])}, "query_ids: want a query whose person another camera has seen, got none"),
        ({"max_rank": 0}, "max_rank: want a positive integer, got 0"),
    ],
)
def test_market1501_metrics_refuse_what_has_no_value(changes, message, without_type_checks):
    given = {"distances": np.ones((1, 2)), "query_ids": np.array([1]), "gallery_ids": np.array([1, 2])}
    given |= {"query_cameras": np.array([1]), "gallery_cameras": np.array([2, 2])}
    with pytest.raises(ValueError, match=message):
        market1501_metrics(**{**given, **changes})


# ---- re-ranking


def loop_rerank(query, gallery, k1, k2, lambda_value):
    """The published steps, one image at a time, in float64 and with whole matrices."""
    features = np.concatenate([query, gallery]).astype(np.float64)
    distances = np.square(features[:, None] - features[None]).sum(axis=2)
    distances = (distances / distances.max(axis=0)).T
    ranked = np.argsort(distances, axis=1, kind="stable")

    def reciprocal(image, k):
        return [other for other in ranked[image, : k + 1] if image in ranked[other, : k + 1]]

    encoding = np.zeros_like(distances)
    for image in range(len(features)):
        own = reciprocal(image, k1)
        joined = set(own)
        for member in own:
            theirs = reciprocal(member, int(np.around(k1 / 2)))
            if len(set(theirs) & set(own)) > 2 / 3 * len(theirs):
                joined |= set(theirs)
        members = sorted(joined)
        weights = np.exp(-distances[image, members])
        encoding[image, members] = weights / weights.sum()
    if k2 > 1:
        encoding = np.stack([encoding[ranked[image, :k2]].mean(axis=0) for image in range(len(features))])
    q = len(query)
    shared = np.array([[np.minimum(a, b).sum() for b in encoding[q:]] for a in encoding[:q]])
    return (1 - lambda_value) * (1 - shared / (2 - shared)) + lambda_value * distances[:q, q:]


@pytest.mark.parametrize(
    ("queries", "images", "k1", "k2", "lambda_value"), [(10, 60, 8, 4, 0.3), (6, 40, 7, 1, 0.0), (9, 50, 25, 3, 0.5)]
)
@pytest.mark.parametrize("block", [2**24, 700])
def test_k_reciprocal_rerank_is_the_published_algorithm(queries, images, k1, k2, lambda_value, block, monkeypatch):
    monkeypatch.setattr(reranking, "_BLOCK_ELEMENTS", block)
    monkeypatch.setattr(reranking, "_PART_ELEMENTS", block // 2)
    centres = generator.normal(size=(8, 6))
    features = centres[generator.integers(0, 8, images)] + 0.5 * generator.normal(size=(images, 6))
    features = features.astype(np.float32)
    query, gallery = features[:queries], features[queries:]
    got = k_reciprocal_rerank(query, gallery, k1=k1, k2=k2, lambda_value=lambda_value)
    wanted = loop_rerank(query, gallery, k1, k2, lambda_value)
    np.testing.assert_allclose(got, wanted, atol=2e-6)
    np.testing.assert_array_equal(
        got.argsort(axis=1, kind="stable")[:, :10], wanted.argsort(axis=1, kind="stable")[:, :10]
    )


def test_k_reciprocal_rerank_brings_a_mutual_neighbour_before_a_nearer_stranger():
    """The stranger lies nearest to the query, and in the middle of a group of its own, which the query is far from."""
    query = np.array([[0.0, 0.0]])
    friends = np.array([[0.0, 1.05], [0.1, 1.1], [-0.1, 1.1]])
    strangers = np.array([[1.0, 0.0], [1.05, 0.05], [1.05, -0.05], [1.08, 0.0]])
    distances = k_reciprocal_rerank(query, np.concatenate([friends, strangers]), k1=3, k2=1, lambda_value=0.0)
    assert distances[0, 0] < distances[0, 3]


def test_k_reciprocal_rerank_of_equal_images_is_finite():
    assert np.isfinite(k_reciprocal_rerank(np.ones((2, 3)), np.ones((5, 3)), k1=2, k2=2)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k1": 6}, "k1: want less than the 6 images of query and gallery, got 6"),
        ({"k2": 0}, "k2: want a positive integer, got 0"),
        ({"lambda_value": 1.5}, r"lambda_value: want a number in \[0, 1\], got 1.5"),
        ({"gallery": np.ones((4, 2))}, r"gallery: want 3 channels as in query, got shape \(4, 2\)"),
        ({"query": np.full((2, 3), np.nan)}, "query: want finite values, got some that are NaN or infinite"),
        ({"gallery": np.ones((0, 3))}, r"gallery: want floats \[n, k\], none of them 0, got float64 of shape \(0, 3\)"),
    ],
)
def test_k_reciprocal_rerank_refuses_what_it_cannot_rank(changes, message, without_type_checks):
    given = {"query": np.ones((2, 3)), "gallery": np.ones((4, 3)), "k1": 2, "k2": 2, "lambda_value": 0.3}
    with pytest.raises(ValueError, match=message):
        k_reciprocal_rerank(**{**given, **changes})
