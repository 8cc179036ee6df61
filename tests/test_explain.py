import numpy as np
import pytest

from distcam_jax.evaluators import Samples, bind_methods, choose_methods, collect_samples
from distcam_jax.evaluators.explain import check_names, find_rows, present_classes, sample_rows
from distcam_jax.methods import METHODS
from tests.patch_network import CHANNELS, CLASSES, PatchNetwork, make_data, make_prototypes, pooled_features

GENERATOR = np.random.default_rng(1)
FEATURES = np.maximum(GENERATOR.normal(0.2, 0.5, (8, 3, 4, CHANNELS)), 0).astype(np.float32)
ROOT = GENERATOR.normal(size=(CHANNELS, CHANNELS))
WHITENING = (ROOT @ ROOT.T).astype(np.float32)
ASKED = GENERATOR.permuted(np.tile(np.arange(CLASSES), (8, 1)), axis=1)[:, :2]


# ---- loops that share no code with the library


def channel_weights(query, reference, eps, norm):
    distances = [abs(a - b) for a, b in zip(query, reference, strict=True)]
    mean = sum(distances) / len(distances)
    weights = np.array([1 / (one / mean + eps) for one in distances])
    return weights / {"sum": weights.sum(), "max": weights.max()}[norm]


def weighted_sum(features, weights):
    return sum(float(weight) * features[..., k].astype(np.float64) for k, weight in enumerate(weights))


def loop(map_of, asked=ASKED):
    """Maps `[b, m, h, w]` of a function of one image's features and the class that is asked about."""
    return np.array([[map_of(image, c) for c in row] for image, row in zip(FEATURES, asked, strict=True)])


def dist_cam(prototypes, eps=0.1, norm="sum"):
    return lambda image, c: weighted_sum(image, channel_weights(image.mean((0, 1)), prototypes[c], eps, norm))


def mahalanobis(prototypes):
    def map_of(image, c):
        distances = np.abs(prototypes.astype(np.float64) - image.mean((0, 1))).sum(axis=1)
        near = np.exp(-distances / (2 * distances.std()))
        return weighted_sum(image, WHITENING @ (prototypes[c] - near @ prototypes / near.sum()))

    return map_of


# ---- which methods


def test_check_names_lists_the_known_ones():
    check_names(["dist_cam", "cam"])
    with pytest.raises(ValueError, match=r"unknown method 'rays'; choose some of .*dist_cam"):
        check_names(["cam", "rays"])


@pytest.mark.parametrize(
    ("linear", "samples", "left"),
    [
        (True, True, ["uniform", "dist_cam_nearest", "dist_cam", "cam"]),
        (False, True, ["uniform", "dist_cam_nearest", "dist_cam"]),
        (True, False, ["uniform", "dist_cam", "cam"]),
    ],
)
def test_choose_methods_keeps_what_the_network_has_all_for_in_order(linear, samples, left):
    given = Samples(np.zeros((1, CHANNELS), np.float32), np.zeros(1, int)) if samples else None
    names = ["uniform", "dist_cam_nearest", "dist_cam", "cam"]
    assert list(choose_methods(names, PatchNetwork(linear=linear), samples=given)) == left


def test_choose_methods_wants_a_whitening_for_mahalanobis_cam():
    names = ("mahalanobis", "uniform")
    assert list(choose_methods(names, PatchNetwork())) == ["uniform"]
    assert list(choose_methods(names, PatchNetwork(), whitened=True)) == ["mahalanobis", "uniform"]


def test_choose_methods_leaves_out_what_nobody_evaluates():
    transferred = [name for name, method in METHODS.items() if "transferred" in method.needs]
    assert transferred
    assert list(choose_methods([*transferred, "uniform"], PatchNetwork())) == ["uniform"]


# ---- maps


@pytest.fixture(scope="module")
def maps():
    """By every method with options that are not the defaults, of all classes."""
    network, prototypes = PatchNetwork(), make_prototypes()
    names = ("uniform", "dist_cam", "cam", "dist_cam_literal", "mahalanobis")
    methods = choose_methods(names, network, norm="max", eps=0.5, whitened=True)
    bound = bind_methods(methods, network, prototypes, whitening=WHITENING)
    return bound(FEATURES, ASKED)


def test_bind_methods_keeps_the_order_of_the_methods(maps):
    assert list(maps) == ["uniform", "dist_cam", "cam", "dist_cam_literal", "mahalanobis"]


@pytest.mark.parametrize("name", ["uniform", "dist_cam", "cam", "dist_cam_literal", "mahalanobis"])
def test_bind_methods_gives_the_maps_of_a_loop(maps, name):
    prototypes, linear = make_prototypes().prototypes, np.asarray(PatchNetwork().class_weights)
    wanted = {
        "uniform": lambda image, c: image.sum(axis=-1),
        "dist_cam": dist_cam(prototypes, 0.5, "max"),
        "cam": lambda image, c: weighted_sum(image, linear[c]),
        "dist_cam_literal": dist_cam(prototypes, 1e-6, "max"),  # takes the norm, keeps its own eps
        "mahalanobis": mahalanobis(prototypes),
    }[name]
    np.testing.assert_allclose(np.asarray(maps[name]), loop(wanted), rtol=2e-4, atol=2e-4)


def test_bind_methods_without_a_class_leaves_it_out_of_the_rivals():
    network, prototypes = PatchNetwork(), make_prototypes(absent=(1,))
    asked = np.where(ASKED == 1, 4, ASKED)
    bound = bind_methods(choose_methods(("cam", "contrastive"), network), network, prototypes)
    found = bound(FEATURES, asked)
    values, linear = prototypes.prototypes, np.asarray(network.class_weights)

    def contrastive(image, c):
        distances = {other: np.abs(values[other] - image.mean((0, 1))) for other in (0, 2, 3, 4)}
        return weighted_sum(image, sum(distances.values()) / 4 - distances[c])

    np.testing.assert_allclose(np.asarray(found["contrastive"]), loop(contrastive, asked), atol=1e-4)
    cam = loop(lambda image, c: weighted_sum(image, linear[c]), asked)
    np.testing.assert_allclose(np.asarray(found["cam"]), cam, atol=1e-4)


def test_bind_methods_finds_neighbors_among_samples_of_the_own_class():
    """A sample of a class without prototype, the nearest of all, is nobody's; the first class has the lowest place."""
    network, prototypes = PatchNetwork(), make_prototypes(absent=(1,))
    near = FEATURES.mean((1, 2))
    far = np.random.default_rng(2).uniform(0, 1, (9, CHANNELS)).astype(np.float32)
    samples = Samples(np.concatenate([near, far]), np.array([1] * len(near) + [0, 2, 3, 4, 0, 2, 3, 4, 4]))
    asked = np.where(ASKED == 1, 0, ASKED)
    methods = choose_methods(("dist_cam_nearest",), network, samples=samples, eps=0.3)
    found = bind_methods(methods, network, prototypes, samples=samples)(FEATURES, asked)

    def nearest(image, c):
        query = image.mean((0, 1))
        own = [sample for sample, label in zip(samples.embeddings, samples.labels, strict=True) if label == c]
        return weighted_sum(image, channel_weights(query, min(own, key=lambda s: np.abs(s - query).sum()), 0.3, "sum"))

    np.testing.assert_allclose(np.asarray(found["dist_cam_nearest"]), loop(nearest, asked), rtol=2e-4, atol=1e-5)


def test_present_classes_count_those_with_samples():
    present, position = present_classes(make_prototypes(absent=(0, 3)))
    assert present.tolist() == [1, 2, 4]
    assert position[[1, 2, 4]].tolist() == [0, 1, 2]


# ---- samples


def test_sample_rows_takes_a_few_of_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [2, 5, 9]))
    rows = sample_rows(labels, 4, seed=1)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert np.bincount(labels[rows]).tolist() == [2, 4, 4]
    assert sample_rows(labels, 9, seed=1).tolist() == list(range(16))
    np.testing.assert_array_equal(sample_rows(labels, 4, seed=1), rows)


def test_sample_rows_draws_every_row_as_often():
    labels = np.array([0, 1] * 6)
    drawn = np.concatenate([sample_rows(labels, 2, seed) for seed in range(600)])
    shares = np.bincount(drawn, minlength=12) / 600
    np.testing.assert_allclose(shares, 1 / 3, atol=0.09)  # 4.7 standard deviations


class CountedSource(list):
    """Counts how many examples are read."""

    read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("seed", range(5))
def test_find_rows_are_those_of_sample_rows_and_not_all_are_read(seed):
    labels = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2, 3], [2, 30, 40, 300]))
    source = CountedSource({"label": label} for label in labels.tolist())
    few = find_rows(source, np.array([0, 5, 5, 5]), seed)  # no sample of the rarest class is wanted
    np.testing.assert_array_equal(few, [row for row in sample_rows(labels, 5, seed) if labels[row]])
    assert source.read < 200
    whole = find_rows(source, np.minimum(np.bincount(labels), 5), seed)
    np.testing.assert_array_equal(whole, sample_rows(labels, 5, seed))
    np.testing.assert_array_equal(find_rows(source, np.array([9, 5, 5, 5]), seed), whole)  # there are but two


@pytest.mark.parametrize("per_class", [None, 2])
def test_collect_samples_pools_each_image_once_in_the_order_of_the_source(per_class):
    labels = np.array([3, 0, 0, 1, 3, 3, 0, 2, 0, 3, 1])
    found = collect_samples(PatchNetwork(), make_data(labels).source, batch=8, per_class=per_class, seed=4)
    rows = np.arange(11) if per_class is None else sample_rows(labels, 2, seed=4)
    assert found.labels.tolist() == labels[rows].tolist()
    wanted = [pooled_features(int(row)) for row in rows]  # without the padding of the last batch
    np.testing.assert_allclose(found.embeddings, wanted, atol=1e-6)
