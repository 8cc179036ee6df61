"""Every method against a loop over images and classes in float64, and the context they share."""

import functools
import sys

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import distcam_jax
from distcam_jax.methods import (
    METHODS,
    Context,
    contrastive_maps,
    dist_cam_maps,
    grad_cam,
    grad_cam_maps,
    grad_cam_pp,
    grad_cam_pp_maps,
    nearest_samples,
    run_methods,
    similarity_map,
    similarity_score,
)

NAMES = [
    "cam",
    "dist_cam",
    "dist_cam_literal",
    "dist_cam_nearest",
    "contrastive",
    "intersection",
    "mahalanobis",
    "uniform",
    "energy",
    "grad_cam",
    "grad_cam_pp",
    "grad_cam_l1",
    "grad_cam_l2",
    "grad_cam_cosine",
    "grad_cam_pp_cosine",
    "grad_cam_transfer",
    "decomposition_cosine",
    "decomposition_l2",
]
NEEDS = {"cam": "class_weights", "grad_cam": "class_weights", "grad_cam_pp": "class_weights"}
NEEDS |= {"dist_cam_nearest": "neighbors", "grad_cam_transfer": "transferred", "mahalanobis": "whitening"}
IMAGES, CLASSES, ASKED, CHANNELS = 3, 5, 2, 6
MIB = 2**20


def batch(seed=0):
    generator = np.random.default_rng(seed)
    features = np.maximum(generator.normal(0.2, 1, size=(IMAGES, 3, 2, CHANNELS)), 0).astype(np.float32)
    context = Context(
        classes=np.array([[4, 1], [0, 0], [2, 3]]),
        prototypes=generator.uniform(0, 1.5, size=(CLASSES, CHANNELS)).astype(np.float32),
        class_weights=generator.normal(size=(CLASSES, CHANNELS)).astype(np.float32),
        neighbors=generator.uniform(0, 1.5, size=(IMAGES, ASKED, CHANNELS)).astype(np.float32),
        transferred=generator.normal(size=(IMAGES, ASKED, CHANNELS)).astype(np.float32),
        whitening=np.cov(generator.normal(size=(CHANNELS, 2 * CHANNELS))).astype(np.float32),
    )
    return features, context


def loop_channel_distances(x, y, distance):
    if distance == "l1":
        return np.abs(x - y)
    if distance == "l2":
        return (x - y) ** 2
    return (x / np.linalg.norm(x) - y / np.linalg.norm(y)) ** 2 / 2


def loop_dist_cam(image, reference, distance="l1", eps=0.1):
    distances = loop_channel_distances(image.mean(axis=(0, 1)), reference, distance)
    weights = 1 / (distances / distances.mean() + eps)
    return image @ (weights / weights.sum())


def loop_intersection(image, prototypes, asked):
    pooled = image.mean(axis=(0, 1))
    shares = [[min(p[k], x) / x if x > 0 else 0.0 for k, x in enumerate(pooled)] for p in prototypes]
    return image @ (np.array(shares[asked]) - np.mean(shares, axis=0))


def loop_mahalanobis(image, context, asked, temperature=2.0):
    pooled, prototypes = image.mean(axis=(0, 1)), context.prototypes
    distances = np.array([np.abs(p - pooled).sum() for p in prototypes])
    near = np.exp(-distances / (temperature * distances.std()))
    return image @ (context.whitening @ (prototypes[asked] - near @ prototypes / near.sum()))


def loop_contrastive(image, prototypes, asked, distance="l1"):
    distances = [loop_channel_distances(image.mean(axis=(0, 1)), prototype, distance) for prototype in prototypes]
    return image @ (np.mean(distances, axis=0) - distances[asked])


def score_gradient(image, reference, metric):
    """The gradient of a similarity at each place of an image, by the rules of differentiation."""
    x, places = image.mean(axis=(0, 1)), image.shape[0] * image.shape[1]
    if metric == "l1":
        return np.sign(reference - x) / places
    if metric == "l2":
        return 2 * (reference - x) / places
    length, other = np.linalg.norm(x), np.linalg.norm(reference)
    return (reference / (length * other) - (x @ reference) * x / (length**3 * other)) / places


def loop_grad_cam_pp(image, gradient):
    places = image.shape[0] * image.shape[1]
    weights = places * np.maximum(gradient, 0) / (2 + gradient * image.sum(axis=(0, 1)))
    return np.maximum(image @ weights, 0)


def expected_map(name, image, context, b, m):
    asked = context.classes[b, m]
    x, prototype, layer = image.mean(axis=(0, 1)), context.prototypes[asked], context.class_weights[asked]
    neighbor, transferred = context.neighbors[b, m], context.transferred[b, m]
    places = image.shape[0] * image.shape[1]
    lengths = np.linalg.norm(x) * np.linalg.norm(prototype)
    return {
        "cam": lambda: image @ layer,
        "dist_cam": lambda: loop_dist_cam(image, prototype),
        "dist_cam_literal": lambda: loop_dist_cam(image, prototype, eps=1e-6),
        "dist_cam_nearest": lambda: loop_dist_cam(image, neighbor),
        "contrastive": lambda: loop_contrastive(image, context.prototypes, asked),
        "intersection": lambda: loop_intersection(image, context.prototypes, asked),
        "mahalanobis": lambda: loop_mahalanobis(image, context, asked),
        "uniform": lambda: image.sum(axis=-1),
        "energy": lambda: (image * image).sum(axis=-1),
        "grad_cam": lambda: np.maximum(image @ layer, 0) / places,
        "grad_cam_pp": lambda: loop_grad_cam_pp(image, layer / places),
        "grad_cam_l1": lambda: np.maximum(image @ score_gradient(image, prototype, "l1"), 0),
        "grad_cam_l2": lambda: np.maximum(image @ score_gradient(image, prototype, "l2"), 0),
        "grad_cam_cosine": lambda: np.maximum(image @ score_gradient(image, prototype, "cosine"), 0),
        "grad_cam_pp_cosine": lambda: loop_grad_cam_pp(image, score_gradient(image, prototype, "cosine")),
        "grad_cam_transfer": lambda: np.maximum(image @ transferred, 0),
        "decomposition_cosine": lambda: image @ prototype / lengths / places,
        "decomposition_l2": lambda: -(image - prototype) @ (x - prototype) / places,
    }[name]()


def float64(context):
    return jax.tree.map(lambda array: array if array.dtype == np.int64 else array.astype(np.float64), context)


def loop_maps(name, features, context):
    features, context = features.astype(np.float64), float64(context)
    maps = [[expected_map(name, image, context, b, m) for m in range(ASKED)] for b, image in enumerate(features)]
    return np.array(maps)


def assert_close(actual, desired, tolerance=1e-5):
    assert np.isfinite(desired).all()
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance * np.abs(desired).max())


def test_methods_have_their_names():
    assert list(METHODS) == NAMES
    assert len({method.title for method in METHODS.values()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_method_matches_loops(name):
    features, context = batch()
    expected = loop_maps(name, features, context)
    assert np.count_nonzero(expected) > 5
    tolerance = 1e-4 if name == "dist_cam_literal" else 1e-5  # the smallest difference rules, and loses digits
    assert_close(METHODS[name](features, context), expected, tolerance)


@pytest.mark.parametrize(
    "name", ["dist_cam", "dist_cam_nearest", "contrastive", "grad_cam_pp_cosine", "decomposition_l2"]
)
def test_method_in_blocks_matches_loops(name, monkeypatch):
    monkeypatch.setattr(sys.modules["distcam_jax.cam"], "CPU_BLOCK_BYTES", 1)
    function = METHODS[name].function
    options = getattr(function, "keywords", {})
    unjitted = getattr(function, "func", function).__wrapped__  # past what other tests have compiled
    features, context = batch(1)
    assert_close(unjitted(features, context, **options), loop_maps(name, features, context), 1e-4)


def test_methods_work_under_jit_and_with_bfloat16():
    features, context = batch()
    rounded = jax.tree.map(lambda a: a if a.dtype == np.int64 else jnp.asarray(a, jnp.bfloat16), (features, context))
    maps = jax.jit(functools.partial(run_methods, NAMES))(*rounded)
    widened = jax.tree.map(lambda a: a if a.dtype == np.int64 else np.asarray(a, np.float32), rounded)
    for name in set(NAMES) - {"dist_cam_literal"}:
        assert maps[name].dtype == jnp.float32
        assert_close(maps[name], loop_maps(name, *widened), 1e-4)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_dist_cam_maps_take_other_distances(distance):
    features, context = batch()
    at = functools.partial(getattr, context)
    images = features.astype(np.float64)
    plain = dist_cam_maps(features, context, distance=distance, eps=0.5)
    contrastive = contrastive_maps(features, context, distance=distance)
    for b, m in np.ndindex(IMAGES, ASKED):
        asked = at("classes")[b, m]
        assert_close(plain[b, m], loop_dist_cam(images[b], at("prototypes")[asked], distance, 0.5))
        assert_close(contrastive[b, m], loop_contrastive(images[b], at("prototypes"), asked, distance))


def test_dist_cam_maps_are_those_of_dist_cam():
    features, context = batch()
    of_all = distcam_jax.dist_cam(features, context.prototypes, norm="minmax", eps=0.3)
    expected = np.take_along_axis(np.asarray(of_all), context.classes[..., None, None], axis=1)
    assert_close(dist_cam_maps(features, context, norm="minmax", eps=0.3), expected)


@pytest.mark.parametrize("score", ["l1", "cosine"])
@pytest.mark.parametrize(("maps", "of_one"), [(grad_cam_maps, grad_cam), (grad_cam_pp_maps, grad_cam_pp)])
def test_gradient_maps_are_those_of_the_whole_gradient(maps, of_one, score):
    features, context = batch()
    actual = maps(features, context, score=score)
    reference = context.prototypes[context.classes[2, 1]]
    assert_close(actual[2, 1], np.asarray(of_one(features[2], similarity_score(reference, score))))


def test_methods_ask_for_what_they_need():
    features, context = batch()
    bare = Context(context.classes, context.prototypes)
    for name, method in METHODS.items():
        assert method.needs == ((NEEDS[name],) if name in NEEDS else ())
        if name not in NEEDS:
            continue
        for call in (functools.partial(run_methods, [name]), method):
            with pytest.raises(ValueError, match=rf"({name}|{method.title[:4]}.*): wants context\.{NEEDS[name]}"):
                call(features, bare)
        with pytest.raises(ValueError, match=rf"_maps: wants context\.{NEEDS[name]}"):
            method.function(features, bare)


def test_run_methods_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"names: want some of 'cam', .* got \['score_cam'\]"):
        run_methods(["cam", "score_cam"], *batch())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": np.zeros((2, 2), int)}, r"context\.classes: want integers \[b, m\] with b = 3 as in features"),
        ({"classes": np.zeros((3, 2))}, r"context\.classes: want integers"),
        ({"prototypes": np.zeros((5, 7))}, r"features: want axes \[n h w k\] with k = 7 as in context\.prototypes"),
        (
            {"class_weights": np.zeros((4, 6))},
            r"context\.class_weights: want axes .* with c = 5 as in context\.prototypes",
        ),
        ({"neighbors": np.zeros((3, 6))}, r"context\.neighbors: want axes \[b m k\] with b, m = \(3, 2\)"),
        ({"transferred": np.zeros((3, 3, 6))}, r"context\.transferred: want axes .* got shape \(3, 3, 6\)"),
    ],
)
def test_context_that_does_not_fit_is_refused(change, message):
    features, context = batch()
    fields = {name: getattr(context, name) for name in ("classes", "prototypes")} | change
    with pytest.raises(ValueError, match=message):
        METHODS["uniform"](features, Context(**fields))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dist_cam", {"distance": "l3"}, "distance: want one of 'l1', 'l2', 'cosine', got 'l3'"),
        ("dist_cam", {"reference": "mean"}, "reference: want one of 'prototypes', 'neighbors'"),
        ("dist_cam", {"norm": "l3"}, "norm: want one of"),
        ("grad_cam", {"score": "dot"}, "score: want one of 'class', 'l1'"),
        ("decomposition_l2", {"metric": "l1"}, "metric: want one of 'cosine', 'l2'"),
        ("grad_cam_pp", {"eps": 0.0}, "eps: want a positive"),
    ],
)
def test_methods_refuse_unknown_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](*batch(), **options)


def test_a_class_that_does_not_exist_spoils_its_own_map_alone():
    features, context = batch()
    asked = Context(np.array([[4, 5], [-1, 0], [2, 3]]), context.prototypes, context.class_weights)
    for name in set(NAMES) - set(NEEDS) - {"uniform", "energy"} | {"cam"}:
        maps = np.asarray(METHODS[name](features, asked))
        spoilt = np.isnan(maps).all(axis=(2, 3))
        assert spoilt.tolist() == [[False, True], [True, False], [False, False]], name
        assert np.isfinite(maps[~spoilt]).all()


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"dist_cam_nearest", "grad_cam_l2", "uniform", "energy"}))
def test_methods_are_finite_for_zeros_with_finite_gradients(name):
    context = Context(*(np.zeros(s, t) for s, t in (((2, 1), int), ((3, 4), np.float32), ((3, 4), np.float32))))
    vectors = np.zeros((2, 2, 1, 4), np.float32)
    context = Context(context.classes, context.prototypes, context.class_weights, *vectors, np.eye(4, dtype="f"))
    total, gradient = jax.value_and_grad(lambda q: jnp.sum(METHODS[name](q, context)))(jnp.zeros((2, 3, 3, 4)))
    assert np.isfinite(total)
    assert np.isfinite(gradient).all()


def loop_nearest(embeddings, classes, samples, labels, metric):
    indices = np.full(classes.shape, -1)
    for b, m in np.ndindex(*classes.shape):
        best = np.inf
        for i, sample in enumerate(samples.astype(np.float64)):
            if labels[i] != classes[b, m] or classes[b, m] < 0:
                continue
            x = embeddings[b].astype(np.float64)
            distance = {
                "l1": np.abs(x - sample).sum(),
                "l2": ((x - sample) ** 2).sum(),
                "cosine": -x @ sample / np.linalg.norm(x) / np.linalg.norm(sample),
            }[metric]
            if distance < best:
                best, indices[b, m] = distance, i
    return indices


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_nearest_samples_match_loops(metric, monkeypatch):
    monkeypatch.setattr("distcam_jax.methods.context._CPU_BLOCK_ELEMENTS", 4 * 3 * 5 * 2)  # two samples at a time
    generator = np.random.default_rng(0)
    samples, labels = generator.uniform(0, 1, size=(40, 5)).astype(np.float32), generator.integers(-1, 5, size=40)
    embeddings = generator.uniform(0, 1, size=(4, 5)).astype(np.float32)
    classes = np.array([[0, 1, 2], [3, 4, 0], [9, -1, 1], [2, 2, 4]])
    indices, nearest = nearest_samples.__wrapped__(embeddings, classes, samples, labels, metric=metric)
    expected = loop_nearest(embeddings, classes, samples, labels, metric)
    assert np.count_nonzero(expected < 0) == 2
    assert len(set(expected.ravel())) > 6
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(nearest, np.where(expected[..., None] < 0, 0, samples[expected]))


def test_nearest_samples_take_the_first_of_equally_near_ones():
    samples, labels = np.array([[9.0], [3.0], [1.0], [3.0], [2.0]]), np.array([0, 0, 0, 0, 1])
    indices, _ = nearest_samples(np.array([[2.0], [3.5]]), np.array([[0], [0]]), samples, labels)
    assert indices.tolist() == [[1], [1]]


def test_nearest_samples_pass_over_one_that_is_nan():
    samples, labels = np.array([[np.nan], [50.0], [np.nan]]), np.array([0, 0, 1])
    indices, _ = nearest_samples(np.array([[2.0]]), np.array([[0, 1]]), samples, labels)
    assert indices.tolist() == [[1, 2]]  # the last has no other


def test_nearest_samples_of_no_samples_are_none():
    indices, nearest = nearest_samples(np.ones((2, 3)), np.zeros((2, 1), int), np.ones((0, 3)), np.zeros(0, int))
    assert indices.tolist() == [[-1], [-1]]
    assert np.array_equal(nearest, np.zeros((2, 1, 3)))


def test_nearest_samples_refuse_what_does_not_fit(without_type_checks):
    with pytest.raises(ValueError, match=r"classes: want integers \[b, m\] with b = 2"):
        nearest_samples(np.ones((2, 3)), np.zeros(2, int), np.ones((4, 3)), np.zeros(4, int))
    with pytest.raises(ValueError, match="labels: want 4 integers"):
        nearest_samples(np.ones((2, 3)), np.zeros((2, 1), int), np.ones((4, 3)), np.zeros(3, int))
    with pytest.raises(ValueError, match="metric: want one of"):
        nearest_samples(np.ones((2, 3)), np.zeros((2, 1), int), np.ones((4, 3)), np.zeros(4, int), metric="dot")


def temporary_bytes(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["contrastive", "grad_cam_pp_cosine", "decomposition_l2"])
def test_methods_hold_no_array_of_images_classes_and_channels(name):
    features, prototypes = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((128, 7, 7, 2048), (500, 2048)))
    context = Context(jax.ShapeDtypeStruct((128, 500), "int32"), prototypes)
    maps = 128 * 500 * 49 * 4
    # All weights at once would fill 500 MiB; features may be copied once into the order of the loop.
    assert temporary_bytes(METHODS[name].function, features, context) <= 96 * MIB + maps


def test_nearest_samples_hold_no_array_of_images_samples_and_channels():
    embeddings, samples = (jax.ShapeDtypeStruct((n, 2048), "float32") for n in (64, 100_000))
    classes, labels = (jax.ShapeDtypeStruct(shape, "int32") for shape in ((64, 3), (100_000,)))
    size = temporary_bytes(nearest_samples, embeddings, classes, samples, labels)
    assert size <= 64 * MIB  # all differences would fill 49 GiB


def test_similarity_maps_of_the_context_are_exact():
    features, context = batch()
    maps = METHODS["decomposition_cosine"](features, context)
    x, p = features[0].mean(axis=(0, 1)), context.prototypes[4]
    np.testing.assert_allclose(np.sum(maps[0, 0]), x @ p / np.linalg.norm(x) / np.linalg.norm(p), rtol=1e-5)
    np.testing.assert_allclose(maps[0, 0], similarity_map(features[0], p), rtol=1e-5)
