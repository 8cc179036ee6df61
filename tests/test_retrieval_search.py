"""What is searched for among what, and what it finds, against loops; localisation by the image that is found."""

import dataclasses
import itertools

import cv2
import jax
import ml_collections
import numpy as np
import pytest

from distcam_jax import training
from distcam_jax.evaluators import choose_methods, retrieval_cases, retrieval_localize, retrieval_search
from distcam_jax.evaluators.localize import THRESHOLDS, threshold_index
from distcam_jax.evaluators.retrieval_figures import search_differences
from distcam_jax.evaluators.retrieval_localize import PairLocalization, pair_differences, pair_figures
from distcam_jax.evaluators.retrieval_maps import bind_pairs
from distcam_jax.evaluators.retrieval_options import GAP_L1, Search, searches_of
from distcam_jax.evaluators.retrieval_search import Embedded, Ranking
from distcam_jax.evaluators.retrieval_task import make_task
from distcam_jax.input_pipeline import resize_image
from distcam_jax.localization import box_iou
from tests.patch_network import PatchNetwork, make_data, patch_features, picture
from tests.pictures import NO_BOXES

generator = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 0, 1, 1, 4, 0, 2, 1])  # the kite is alone in its class
PERSONS = np.array([3, 7, 3, 0, 7, 3, 9, 7, 0, 3])
CAMERAS = np.array([1, 2, 1, 1, 2, 2, 1, 3, 3, 3])


def person_queries():
    return make_task(person_data([3, 7, 9, 3], [1, 2, 1, 3]), person_data(PERSONS, CAMERAS))


def person_data(persons, cameras):
    data = make_data(np.zeros(len(persons), int))
    source = [
        {**example, "identity": int(person), "camera": int(camera)}
        for example, person, camera in zip(data.source, persons, cameras, strict=True)
    ]
    return dataclasses.replace(data, source=source)


def tables_of(task):
    """Names of queries and candidates, and which candidate each query may find and whether it is right."""
    found = []
    for q in range(len(task.query.targets)):
        rows = []
        for g in range(len(task.gallery.targets)):
            if task.alone and g == q:
                continue
            right = task.query.targets[q] == task.gallery.targets[g]
            if task.persons and right and task.query.cameras[q] == task.gallery.cameras[g]:
                continue
            rows.append((g, bool(right) and not (task.persons and task.query.targets[q] == 0)))  # 0: no person
        found.append(rows)
    return found


def tasks():
    """Of classes and of persons, among each other and in a gallery."""
    return {
        "alone": make_task(make_data(LABELS), None),
        "gallery": make_task(make_data(LABELS), make_data(LABELS[3:])),
        "persons alone": make_task(person_data(PERSONS, CAMERAS), None),
        "persons": person_queries(),
    }


@pytest.mark.parametrize("kind", ["alone", "gallery", "persons alone", "persons"])
def test_task_counts_what_each_query_is_searched_among_and_can_find(kind):
    task = tasks()[kind]
    rows = tables_of(task)
    assert task.candidates.tolist() == [len(one) for one in rows]
    assert task.relevant.tolist() == [sum(right for _, right in one) for one in rows]
    assert task.valid.tolist() == [q for q, one in enumerate(rows) if any(right for _, right in one)]
    removed = task.is_removed(np.arange(len(rows)))
    assert [np.flatnonzero(~row).tolist() for row in removed] == [[g for g, _ in one] for one in rows]


def test_make_task_matches_classes_by_their_identity_and_not_by_their_label():
    query, gallery = make_data([0, 1]), make_data([0, 0, 1])
    gallery = dataclasses.replace(gallery, class_ids=("n1", "n0"), class_names=("owl", "crane"))
    task = make_task(query, gallery)
    assert task.relevant.tolist() == [1, 2]
    assert [task.gallery.name(row) for row in range(3)] == ["owl", "owl", "crane"]


def test_make_task_names_persons_by_their_numbers_and_distractors():
    task = person_queries()
    assert [task.gallery.name(row) for row in range(4)] == ["0003", "0007", "0003", "distractor"]
    assert task.camera(task.query, 1) == 2


def test_make_task_refuses_images_without_anything_to_find():
    with pytest.raises(
        ValueError, match=r"no image of patches, split validation, has another one of its class to find"
    ):
        make_task(make_data([0, 1, 2]), None)


def embedded(task, query, gallery=None, search=GAP_L1):
    query = query.astype(np.float32)
    return Embedded("a", {}, query, query if gallery is None else gallery.astype(np.float32), search)


DISTANCES = {
    "l1": lambda a, b: np.abs(a - b).sum(),
    "l2": lambda a, b: np.sqrt(((a - b) ** 2).sum()),
    "cosine": lambda a, b: 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b),
}


@pytest.mark.parametrize("persons", [False, True])
@pytest.mark.parametrize("metric", DISTANCES)
def test_rank_gives_the_figures_and_the_nearest_images_of_a_loop(persons, metric):
    task = person_queries() if persons else make_task(make_data(LABELS), None)
    query = generator.normal(size=(len(task.query.targets), 3)) + 0.5
    gallery = generator.normal(size=(len(PERSONS), 3)) + 0.5 if persons else None
    one = embedded(task, query, gallery)
    found = retrieval_search.rank(task, one, Search("embedding", metric), ks=(1, 3), count=2, rerank={})
    wanted = {name: [] for name in found.values}
    for q, rows in enumerate(tables_of(task)):
        others = one.gallery.astype(np.float64)
        ordered = sorted(rows, key=lambda row: DISTANCES[metric](one.query[q].astype(np.float64), others[row[0]]))
        assert found.positions[q].tolist() == [g for g, _ in ordered[:2]]
        for place, (g, _) in enumerate(ordered[:2]):
            assert found.distances[q, place] == pytest.approx(DISTANCES[metric](one.query[q], others[g]), abs=1e-5)
        rights = [right for _, right in ordered]
        if not any(rights):
            continue
        last = len(rights) if persons else sum(rights)
        precisions = [sum(rights[: i + 1]) / (i + 1) for i in range(last) if rights[i]]
        for k in (1, 3):
            wanted[f"rank_{k}" if persons else f"recall_{k}"].append(float(any(rights[:k])))
        wanted["map" if persons else "map_at_r"].append(sum(precisions) / sum(rights))
        if not persons:
            wanted["r_precision"].append(sum(rights[:last]) / last)
    for name, values in wanted.items():
        np.testing.assert_allclose(found.values[name], values, rtol=1e-6)


def test_rank_of_a_query_with_few_candidates_ends_in_infinite_distances():
    task = make_task(person_data([3, 3], [1, 2]), person_data([3, 3, 3], [1, 1, 2]))
    one = embedded(task, generator.normal(size=(2, 2)), generator.normal(size=(3, 2)))
    found = retrieval_search.rank(task, one, GAP_L1, ks=(1,), count=3, rerank={})
    assert np.isfinite(found.distances).sum(axis=1).tolist() == [1, 2]


def test_rank_puts_a_reranked_list_in_the_order_of_its_distances(monkeypatch):
    """Of unit vectors where the search is by cosine, and of the vectors themselves otherwise."""
    task, seen = person_queries(), []

    def rerank(query, gallery, *, k1):
        seen.append((np.asarray(query), k1))
        return np.tile(np.arange(10.0)[::-1], (4, 1)).astype(np.float32)

    monkeypatch.setattr(retrieval_search, "k_reciprocal_rerank", rerank)
    one = embedded(task, generator.normal(size=(4, 3)), generator.normal(size=(10, 3)))
    for distance in ("cosine", "l2"):
        search = Search("embedding", distance, reranked=True)
        found = retrieval_search.rank(task, one, search, ks=(1,), count=3, rerank={"k1": 5})
        assert found.positions.tolist() == [[9, 8, 7], [9, 8, 7], [9, 8, 7], [8, 7, 6]]  # the last by another camera
    unit = one.query / np.linalg.norm(one.query, axis=1, keepdims=True)
    np.testing.assert_allclose(seen[0][0], unit, rtol=1e-6)
    np.testing.assert_array_equal(seen[1][0], one.query)


@pytest.mark.parametrize("persons", [False, True])
def test_chance_is_the_mean_over_all_orders_of_each_query(persons):
    task, wanted = tasks()["persons" if persons else "alone"], {"at_k": [], "precision": [], "average": []}
    for rows in tables_of(task):
        size, relevant = len(rows), sum(right for _, right in rows)
        if not relevant:
            continue
        orders = list(itertools.combinations(range(size), relevant))  # places of the right images
        last = size if persons else relevant
        found = [[place for place in order if place < last] for order in orders]
        wanted["at_k"].append(np.mean([order[0] < 2 for order in orders]))
        wanted["precision"].append(np.mean([len(order) / relevant for order in found]))
        average = [sum((i + 1) / (place + 1) for i, place in enumerate(order)) / relevant for order in found]
        wanted["average"].append(np.mean(average))
    found = retrieval_search.chance(task, (2, 1))
    names = ["rank_2", "rank_1", "map"] if persons else ["recall_2", "recall_1", "r_precision", "map_at_r"]
    assert list(found) == names
    assert found[names[0]] == pytest.approx(np.mean(wanted["at_k"]))
    assert found[names[-1]] == pytest.approx(np.mean(wanted["average"]))
    assert persons or found["r_precision"] == pytest.approx(np.mean(wanted["precision"]))


def test_agreement_tells_the_same_image_from_one_of_the_same_class():
    task = make_task(make_data(LABELS), None)
    first, other = ([3, 4, 8, 7, 5, 1, 0, 0, 2, 2], [7, 4, 1, 7, 0, 1, 0, 3, 2, 1])
    rankings = [Ranking({}, np.array(rows)[:, None], np.zeros((10, 1))) for rows in (first, other)]
    found = retrieval_search.agreement(task, *rankings)
    assert found["same_image"].tolist() == [
        False,
        True,
        False,
        True,
        False,
        True,
        False,
        True,
        False,
    ]  # the kite is out
    assert found["same_target"].tolist() == [True, True, False, True, False, True, True, True, False]


def test_search_differences_pair_the_first_network_with_others_and_its_own_searches():
    def rankings(*names):
        return {name: Ranking({"map": generator.random(30)}, np.zeros((30, 1)), np.zeros((30, 1))) for name in names}

    found = {
        "neck": rankings("neck_cosine", "embedding_l1", "neck_cosine_reranked"),
        "pixels": rankings("embedding_cosine", "embedding_l1"),
    }
    rows = search_differences(found, seed=0, resamples=50)
    assert [(*row["a"], *row["b"]) for row in rows] == [
        ("neck", "neck_cosine", "pixels", "embedding_cosine"),
        ("neck", "neck_cosine", "neck", "embedding_l1"),
        ("neck", "neck_cosine_reranked", "neck", "neck_cosine"),
    ]
    values = found["neck"]["neck_cosine"].values["map"] - found["neck"]["embedding_l1"].values["map"]
    assert rows[1]["figures"]["map"].value == pytest.approx(values.mean())


def test_searches_of_rerank_each_space_once_for_unit_vectors_and_once_for_others():
    names = [one.name for one in searches_of(Search("embedding", "l1"), rerank=True)]
    assert names[3:] == ["embedding_l1_reranked", "embedding_cosine_reranked"]
    names = [one.name for one in searches_of(Search("projection", "l2"), rerank=True)]
    assert names[0] == "projection_l2"
    assert names[4:] == ["projection_l2_reranked", "embedding_l1_reranked", "embedding_cosine_reranked"]


def test_pixel_size_keeps_the_shape_of_the_input():
    assert retrieval_search.pixel_size((256, 128)) == (32, 16)
    assert retrieval_search.pixel_size(84) == (21, 21)


@pytest.mark.parametrize(("count", "wanted"), [(6, [1, 4, 0, 3, 5, 2]), (4, [1, 4, 0, 2]), (3, [1, 4, 2]), (1, [1])])
def test_shown_queries_are_half_the_worst_and_then_evenly_spaced_to_the_best(count, wanted):
    precisions = np.array([0.3, 0.0, 0.9, 0.4, 0.1, 0.5])
    assert retrieval_cases.shown_queries(precisions, count).tolist() == wanted


# ---- localisation


class WideNetwork(PatchNetwork):
    """Takes images that are twice as high as wide."""

    def __init__(self):
        super().__init__(linear=False)
        config = ml_collections.ConfigDict({"input": {"image_size": (16, 8), "num_workers": 0}})
        self.__dict__.update(config=config, mesh=training.create_mesh(jax.devices()[:1]))


def test_localize_pairs_scores_the_map_of_each_reference():
    """Pictures of 16 x 16 pixels seen as 16 x 8; the boxes are those of a map on a square grid of 16 pixels."""
    network, task = WideNetwork(), make_task(make_data(LABELS), None)
    pooled = retrieval_search.embed_source(network, task.query.data.source, batch=4)
    one = embedded(task, pooled)
    ranking = retrieval_search.rank(task, one, GAP_L1, ks=(1,), count=1, rerank={})
    maps = bind_pairs(choose_methods(("dist_cam", "uniform"), network), network)
    measured = retrieval_localize.localize_pairs(network, task, one, ranking, maps, title="", batch=4, seed=3)
    assert measured.rows.tolist() == task.valid.tolist()
    assert list(measured.ious["wrong"]) == ["dist_cam", "dist_cam, scaling=minmax"]  # uniform weights ask about nothing
    references = retrieval_localize.choose_references(task, one, ranking, measured.rows, seed=3)
    for place, row in enumerate(measured.rows):
        gaps = {g: np.abs(pooled[row] - pooled[g]).sum() for g in range(len(LABELS)) if g != row}
        same = {g: gap for g, gap in gaps.items() if LABELS[g] == LABELS[row]}
        assert references["nearest"][place] == min(gaps, key=gaps.get)
        assert references["same"][place] == min(same, key=same.get)
        assert LABELS[references["wrong"][place]] != LABELS[row]
        true = task.query.data.source[row]["boxes"]
        small, _ = resize_image(picture(row), NO_BOXES, (16, 8))
        features = patch_features(small[None] / np.float32(255))[0]
        for name, chosen in references.items():
            gap = np.abs(features.mean((0, 1)) - pooled[chosen[place]])
            weights = 1 / (gap / gap.mean() + 0.1)
            heatmap = features @ (weights / weights.sum())
            wanted = box_iou(largest_box(cv2.resize(heatmap, (16, 16)), 0.2), true).max()
            threshold = threshold_index(0.2)
            assert measured.ious[name]["dist_cam"][place, threshold] == pytest.approx(wanted, abs=1e-3)


def largest_box(heatmap, threshold):
    """The box of the largest region of pixels that touch at sides or corners, by flooding."""
    left = {tuple(place) for place in np.argwhere(heatmap >= threshold * heatmap.max())}
    regions = []
    while left:
        region, border = set(), [min(left)]
        while border:
            y, x = border.pop()
            if (y, x) in left:
                left.remove((y, x))
                region.add((y, x))
                border += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        regions.append(region)
    rows, columns = zip(*max(regions, key=len), strict=True)
    return np.array([min(columns), min(rows), max(columns) + 1, max(rows) + 1])


def test_choose_references_refuses_a_gallery_of_one_class():
    task = make_task(make_data([1, 1]), None)
    one = embedded(task, generator.random((2, 3)))
    ranking = retrieval_search.rank(task, one, GAP_L1, ks=(1,), count=1, rerank={})
    with pytest.raises(ValueError, match="the gallery holds only one class"):
        retrieval_localize.choose_references(task, one, ranking, np.array([0, 1]), seed=0)


def pair_ious(default, tuned):
    values = np.zeros((4, len(THRESHOLDS)))
    for threshold, hits in ((0.2, default), (0.5, tuned)):
        values[:, threshold_index(threshold)] = 0.6 * np.array(hits)
    return values


def test_pair_figures_and_differences_are_those_counted_by_hand():
    ious = {
        "nearest": {
            "dist_cam": pair_ious([1, 1, 0, 0], [1, 1, 1, 0]),
            "uniform": pair_ious([1, 0, 0, 0], [1, 0, 0, 0]),
        },
        "same": {"dist_cam": pair_ious([1, 1, 1, 1], [0, 0, 0, 0])},
        "wrong": {"dist_cam": pair_ious([0, 0, 0, 0], [0, 0, 0, 1])},
    }
    ious = {name: rows | {f"{one}, scaling=minmax": rows[one] for one in rows} for name, rows in ious.items()}
    measured = PairLocalization(np.arange(4), ious, {"center_box": np.array([0.5, 0.49, 0.9, 0.0])})
    tuned = dict.fromkeys(ious["nearest"], 0.5)
    found = pair_figures(measured, tuned, seed=0, resamples=20)
    values = {(m, r, kind): found[m][r][kind].value for m in found for r in found[m] for kind in ("default", "tuned")}
    assert values["dist_cam", "nearest", "tuned"] == 0.75
    assert values["dist_cam", "same", "default"] == 1.0
    assert values["dist_cam", "wrong", "tuned"] == 0.25
    assert values["center_box", "nearest", "tuned"] == 0.5
    assert list(found["uniform"]) == ["nearest"]
    pairs = {(*row["a"], *row["b"]): row["figures"] for row in pair_differences(measured, tuned, seed=0, resamples=20)}
    assert pairs["dist_cam", "nearest", "dist_cam", "wrong"]["tuned"].value == 0.5
    assert pairs["uniform", "nearest", "dist_cam", "nearest"]["default"].value == -0.25
    assert pairs["dist_cam", "nearest", "center_box", "nearest"]["from_minimum"].value == 0.25
    assert list(pair_figures(measured, None, seed=0, resamples=20)["center_box"]["nearest"]) == ["default"]
