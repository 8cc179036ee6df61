"""What the ablations measure, against a loop over images, channels and thresholds."""

import dataclasses
import json

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.ablations import get_config
from distcam_jax import training
from distcam_jax.evaluators.ablation_pass import (
    Scores,
    Variant,
    drawn_prototypes,
    drawn_rows,
    random_classes,
    score_split,
)
from distcam_jax.evaluators.ablation_rows import make_variants
from distcam_jax.evaluators.explain import Samples
from distcam_jax.evaluators.localize import THRESHOLDS, wrong_classes
from distcam_jax.evaluators.network import Network
from distcam_jax.localization import PROTOCOLS, best_iou, heatmap_to_box
from distcam_jax.prototypes import Prototypes

SIZE, CHANNELS, CLASSES = 32, 12, 5
MIX = np.random.default_rng(3).normal(size=(3, CHANNELS)).astype(np.float32)
ABSENT = 4


class PatchNetwork(Network):
    """Features are rectified mixtures of the mean colours of patches; scores a linear layer of their mean."""

    def __init__(self):
        config = ml_collections.ConfigDict({"input": {"image_size": SIZE}})
        linear = np.random.default_rng(5).normal(size=(CLASSES, CHANNELS)).astype(np.float32)
        self.__dict__.update(config=config, mesh=training.create_mesh(), class_weights=jnp.asarray(linear))

    def __call__(self, images):
        maps = patch_features(images)
        pooled = maps.mean((1, 2))
        output = pooled @ np.asarray(self.class_weights).T
        return jnp.asarray(output), {"pre_pool": jnp.asarray(maps), "embedding": jnp.asarray(pooled)}


def patch_features(images):
    b, h, w, _ = images.shape
    colours = images.reshape(b, h // 4, 4, w // 4, 4, 3).mean((2, 4))
    return np.maximum(colours @ MIX, 0).astype(np.float32)


def batches(count=36, batch=10):
    generator = np.random.default_rng(11)
    images = generator.random((count, SIZE // 4, SIZE // 4, 3)).astype(np.float32) ** 3
    images = images.repeat(4, axis=1).repeat(4, axis=2)
    labels = generator.integers(0, CLASSES, count).astype(np.int32)
    low = generator.integers(0, 12, (count, 2))
    boxes = np.concatenate([low, low + generator.integers(14, 28, (count, 2))], axis=1).astype(np.float32)
    for start in range(0, count, batch):
        rows = np.arange(start, min(start + batch, count))
        padded = np.pad(rows, (0, batch - len(rows)), mode="edge")
        yield {
            "image": images[padded],
            "label": labels[padded],
            "index": padded.astype(np.int32),
            "mask": np.arange(batch) < len(rows),
            "boxes": boxes[padded][:, None],
            "num_boxes": np.ones(batch, np.int32),
            "image_size": np.tile(np.array([40, 40], np.int32), (batch, 1)),
        }


SOME = THRESHOLDS[1::3]
COUNTS = np.array([7, 7, 7, 7, 0])
PROTOTYPES = Prototypes(
    (np.random.default_rng(8).random((CLASSES, CHANNELS)) * (COUNTS > 0)[:, None]).astype(np.float32),
    COUNTS,
    tuple("abcde"),
    {},
    "",
)
DRAWN = {
    f"{samples} samples, draw {draw}": np.random.default_rng((samples, draw)).random((CLASSES, CHANNELS), np.float32)
    for samples in (1, 5)
    for draw in range(5)
}


def channel_distance(query, reference, distance):
    if distance == "cosine":
        query, reference = query / np.linalg.norm(query), reference / np.linalg.norm(reference)
        return (query - reference) ** 2 / 2
    return np.abs(query - reference) if distance == "l1" else (query - reference) ** 2


def loop_heatmap(variant, features, asked, prototypes, linear, label):
    """One map in float64, channel by channel."""
    pooled = features.mean((0, 1))
    if variant.kind == "uniform":
        weights = np.ones(CHANNELS)
    elif variant.kind == "cam":
        weights = linear[label]
    else:
        distances = channel_distance(pooled, prototypes[asked], variant.distance)
        weights = 1 / (distances / distances.mean() + variant.eps)
        if variant.norm == "minmax":
            weights = (weights - weights.min()) / (weights.max() - weights.min())
        elif variant.norm != "sum":
            weights = weights / {"l2": np.sqrt((weights**2).sum()), "max": weights.max()}[variant.norm]
    return sum(weights[channel] * features[:, :, channel] for channel in range(CHANNELS))


def loop(variant, seed=2):
    """Hits at some thresholds, and whether the class is right, image by image."""
    protocol = dataclasses.replace(PROTOCOLS["ilsvrc"], scaling=variant.scaling, input_size=SIZE)
    linear = np.asarray(PatchNetwork().class_weights, np.float64)
    sets = {"all": PROTOTYPES.prototypes, **DRAWN}
    prototypes = sets[variant.prototypes].astype(np.float64)
    hits, right = [], []
    for batch in batches():
        for i in np.flatnonzero(batch["mask"]):
            label, index = int(batch["label"][i]), batch["index"][i : i + 1]
            if label == ABSENT:
                continue
            features = patch_features(batch["image"][i : i + 1])[0].astype(np.float64)
            pooled = features.mean((0, 1))
            sums = [channel_distance(pooled, prototypes[c], variant.distance).sum() for c in range(ABSENT)]
            asked = {
                "true": label,
                "predicted": int(np.argmin(sums)),
                "wrong": int(wrong_classes(np.array([label]), index, ABSENT, seed)[0]),
                "random": int(random_classes(index, ABSENT, seed)[0]),
            }[variant.asked]
            heatmap = loop_heatmap(variant, features, asked, prototypes, linear, label).astype(np.float32)
            boxes = [heatmap_to_box(heatmap, (40, 40), threshold=t, protocol=protocol) for t in SOME]
            hits.append([best_iou(box, batch["boxes"][i]) >= 0.5 for box in boxes])
            decided = int(np.argmax(linear @ pooled)) if variant.kind == "cam" else int(np.argmin(sums))
            right.append(decided == label)
    return np.array(hits), np.array(right)


ALL_VARIANTS = make_variants(get_config(), linear=True, varied=True)


@pytest.fixture(scope="module")
def scores():
    return score_split(PatchNetwork(), PROTOTYPES, batches(batch=16), ALL_VARIANTS, drawn=DRAWN, seed=2)


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_score_split_finds_of_each_variant_what_a_loop_finds(scores, name):
    hits, right = loop(ALL_VARIANTS[name])
    np.testing.assert_array_equal(scores.hits[name][:, 1::3], hits)
    np.testing.assert_array_equal(scores.class_right[name], right)


def test_score_split_tells_variants_apart(scores):
    changed = {name for name in ALL_VARIANTS if (scores.hits[name] != scores.hits["dist_cam"]).any()}
    alike = set(ALL_VARIANTS) - changed
    assert alike <= {"dist_cam", "norm=l2", "norm=max"}  # which give the same picture
    decisions = {scores.class_right[name].tobytes() for name in ALL_VARIANTS}
    assert len(decisions) > 5


def test_score_split_covers_what_is_asked_for():
    variants = set(ALL_VARIANTS.values())
    for field, values in {
        "norm": {"sum", "l2", "max", "minmax"},
        "eps": {1e-6, 1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0},
        "distance": {"l1", "l2", "cosine"},
        "asked": {"true", "predicted", "wrong", "random"},
        "scaling": {"max", "minmax"},
        "prototypes": {"all", *DRAWN},
    }.items():
        assert {dataclasses.replace(Variant(), **{field: value}) for value in values} <= variants


def test_score_split_leaves_out_padding_and_images_of_absent_classes(scores):
    rows = [(i, c) for one in batches() for i, c, m in zip(one["index"], one["label"], one["mask"], strict=True) if m]
    kept = [index for index, label in rows if label != ABSENT]
    assert len(kept) < len(rows) == 36
    np.testing.assert_array_equal(scores.index, kept)


def test_score_split_scores_trivial_boxes_by_their_overlap(scores):
    boxes = [one["boxes"][i, 0] for one in batches() for i in np.flatnonzero(one["mask"] & (one["label"] != ABSENT))]
    areas = np.array([np.prod(box[2:] - box[:2]) for box in boxes])
    expected = areas / 1600 >= 0.5  # every true box lies in the image
    np.testing.assert_array_equal(scores.hits["whole_image"], np.repeat(expected[:, None], len(THRESHOLDS), axis=1))
    inside = [np.prod(np.clip(box[2:], 4, 36) - np.clip(box[:2], 4, 36)) for box in boxes]
    overlap = np.array(inside) / (32 * 32 + areas - inside)
    np.testing.assert_array_equal(scores.hits["center_box"][:, 3], overlap >= 0.5)
    np.testing.assert_array_equal(scores.class_right["center_box"], scores.class_right["dist_cam"])


def test_scores_come_back_from_json(scores):
    back = Scores.from_json(json.loads(json.dumps(scores.to_json())))
    np.testing.assert_array_equal(back.index, scores.index)
    for name in scores.hits:
        np.testing.assert_array_equal(back.hits[name], scores.hits[name])
        np.testing.assert_array_equal(back.class_right[name], scores.class_right[name])


def test_random_classes_may_be_any_and_are_an_images_own():
    chosen = random_classes(np.arange(300), 4, seed=0)
    assert set(chosen.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(random_classes(np.arange(50, 60), 4, seed=0), chosen[50:60])
    assert np.any(random_classes(np.arange(300), 4, seed=1) != chosen)


def test_drawn_rows_take_a_few_of_each_class_and_another_few_each_draw():
    labels = np.array([0, 1, 2] * 10)
    rows = drawn_rows(labels, [1, 4], 3, seed=7)
    for draw in range(3):
        one, four = rows[f"1 samples, draw {draw}"], rows[f"4 samples, draw {draw}"]
        assert np.bincount(labels[one]).tolist() == [1, 1, 1]
        assert np.bincount(labels[four]).tolist() == [4, 4, 4]
        assert set(one) <= set(four)
    assert len({rows[f"4 samples, draw {draw}"].tobytes() for draw in range(3)}) == 3


def test_drawn_prototypes_are_means_of_the_rows_they_name():
    embeddings = np.arange(8, dtype=np.float32).reshape(4, 2)  # of the rows 3, 5, 6, 9
    samples = Samples(embeddings, np.array([1, 0, 1, 0]))
    rows = {"few": np.array([3, 5]), "more": np.array([3, 6, 9])}
    found = drawn_prototypes(samples, np.array([3, 5, 6, 9]), rows, 3)
    assert found["few"].tolist() == [[2, 3], [0, 1], [0, 0]]
    assert found["more"].tolist() == [[6, 7], [2, 3], [0, 0]]
