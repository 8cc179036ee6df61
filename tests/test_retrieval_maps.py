"""Heatmaps of pairs, through the heads that are searched by, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distcam_jax import training
from distcam_jax.evaluators import choose_methods
from distcam_jax.evaluators.network import make_network
from distcam_jax.evaluators.retrieval_maps import bind_pairs, linear_head, pair_titles, rival_means, search_head
from distcam_jax.models import search_features
from distcam_jax.models.heads import create_head
from tests.tiny_run import tiny_config

CHANNELS = 5
generator = np.random.default_rng(0)
FEATURES = np.maximum(generator.normal(0.3, 0.6, (2, 3, 2, CHANNELS)), 0).astype(np.float32)
REFERENCES = generator.uniform(0, 1, (2, 3, CHANNELS)).astype(np.float32)
GALLERY = generator.uniform(0, 1, (6, CHANNELS)).astype(np.float32)
ROOT = generator.normal(size=(CHANNELS, CHANNELS))
WHITENING = (ROOT @ ROOT.T).astype(np.float32)
HEADS = {"embedding": "none", "projection": "projection", "neck": "batch_norm_neck"}
NAMES = (
    "dist_cam",
    "mahalanobis",
    "grad_cam_cosine",
    "grad_cam_l2",
    "decomposition_cosine",
    "decomposition_l2",
    "uniform",
)


class HeadOnly(nnx.Module):
    def __init__(self, name):
        self.head = create_head(name, CHANNELS, 4, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module", params=HEADS)
def found(request):
    """A network's search space, its model, and the maps of all methods."""
    space, mesh = request.param, training.create_mesh(jax.devices()[:1])
    model = HeadOnly(HEADS[space])
    if space == "neck":
        for values, low in ((model.head.norm.mean, -0.5), (model.head.norm.var, 0.5), (model.head.norm.scale, -1.0)):
            values.set_value(jnp.asarray(generator.uniform(low, low + 1.5, CHANNELS), jnp.float32))
    network = make_network(model, tiny_config(), space, mesh)
    methods = choose_methods(NAMES, network, whitened=True)
    maps = bind_pairs(methods, network, space=space, whitening=WHITENING)
    values = maps(FEATURES, REFERENCES, GALLERY, np.array([1, 4]))
    assert list(values) == list(NAMES)
    return space, model, {name: np.asarray(value) for name, value in values.items()}, network


def searched(model, space, pooled):
    return np.asarray(search_features(model, jnp.asarray(pooled), space), np.float64)


def each_pair():
    for image in range(2):
        for asked in range(3):
            yield image, asked


def cosine(x, y):
    return x @ y / np.sqrt((x @ x) * (y @ y))


def test_decompositions_sum_to_the_similarity_that_is_searched_by(found):
    space, model, maps, _ = found
    queries = searched(model, space, FEATURES.mean((1, 2)))
    for image, asked in each_pair():
        (reference,) = searched(model, space, REFERENCES[image, asked][None])
        of_cosine, of_l2 = (maps[f"decomposition_{metric}"][image, asked].sum() for metric in ("cosine", "l2"))
        assert of_cosine == pytest.approx(cosine(queries[image], reference), abs=1e-5)
        assert of_l2 == pytest.approx(-np.sum((queries[image] - reference) ** 2), rel=1e-4, abs=1e-5)


def test_gradients_are_those_of_the_similarity_that_is_searched_by(found):
    """By central differences of the similarity in every channel of the pooled feature."""
    space, model, maps, _ = found
    measures = {"cosine": cosine, "l2": lambda x, y: -np.sum((x - y) ** 2)}
    step, places = 1e-2, FEATURES.shape[1] * FEATURES.shape[2]
    shifts = step * np.concatenate([np.eye(CHANNELS), -np.eye(CHANNELS)]).astype(np.float32)
    for image, asked in each_pair():
        (reference,) = searched(model, space, REFERENCES[image, asked][None])
        moved = searched(model, space, FEATURES[image].mean((0, 1)) + shifts)
        for metric, measure in measures.items():
            values = np.array([measure(one, reference) for one in moved])
            slopes = (values[:CHANNELS] - values[CHANNELS:]) / (2 * step)
            wanted = np.maximum(FEATURES[image] @ slopes, 0) / places
            np.testing.assert_allclose(maps[f"grad_cam_{metric}"][image, asked], wanted, rtol=1e-2, atol=1e-3)


def test_dist_cam_stays_in_the_space_of_pooled_features(found):
    _, _, maps, _ = found
    for image, asked in each_pair():
        gaps = np.abs(FEATURES[image].mean((0, 1)).astype(np.float64) - REFERENCES[image, asked])
        weights = 1 / (gaps / gaps.mean() + 0.1)
        np.testing.assert_allclose(
            maps["dist_cam"][image, asked], FEATURES[image] @ (weights / weights.sum()), rtol=1e-4
        )
        np.testing.assert_allclose(maps["uniform"][image, asked], FEATURES[image].sum(axis=-1), rtol=1e-5)


def loop_rivals(pooled, gallery, own=None):
    """The gallery's mean without the image itself; an image d nearer in L1 counts e^(d / 2σ) times as much."""
    others = [one.astype(np.float64) for place, one in enumerate(gallery) if place != own]
    distances = np.array([np.abs(one - pooled).sum() for one in others])
    near = np.exp(-distances / (2 * distances.std()))
    return sum(weight * one for weight, one in zip(near, others, strict=True)) / near.sum()


def test_mahalanobis_sets_the_reference_against_the_rest_of_the_gallery(found):
    _, _, maps, _ = found
    for image, asked in each_pair():
        rivals = loop_rivals(FEATURES[image].mean((0, 1)), GALLERY, own=[1, 4][image])
        wanted = FEATURES[image] @ (WHITENING @ (REFERENCES[image, asked] - rivals))
        np.testing.assert_allclose(maps["mahalanobis"][image, asked], wanted, rtol=1e-3, atol=1e-4)


def test_rival_means_of_images_outside_the_gallery_leave_none_out():
    wanted = [loop_rivals(one, GALLERY) for one in REFERENCES[0]]
    np.testing.assert_allclose(rival_means(REFERENCES[0], GALLERY), wanted, rtol=1e-4)


def test_rival_means_of_equal_images_are_themselves_and_not_nan():
    equal = np.ones((3, CHANNELS), np.float32)
    np.testing.assert_allclose(rival_means(equal[:1], equal, np.array([0])), equal[:1], rtol=1e-6)


def test_search_head_is_what_the_search_does(found):
    space, model, _, network = found
    head = search_head(network, space)
    assert (head is None) == (space == "embedding")
    if head is not None:
        kernel, bias = (np.asarray(one, np.float64) for one in head)
        wanted = searched(model, space, GALLERY)
        np.testing.assert_allclose(GALLERY @ kernel + bias, wanted, rtol=1e-4, atol=1e-5)


def test_linear_head_of_another_head_is_none():
    assert linear_head(create_head("cosine", CHANNELS, 3, rngs=nnx.Rngs(0))) is None


def test_search_head_refuses_a_space_that_the_network_does_not_have(found):
    *_, network = found
    other = "neck" if network.name != "neck" else "projection"
    with pytest.raises(ValueError, match=f"the search space '{other}' needs a "):
        search_head(network, other)


def test_pair_titles_name_the_space_only_where_it_counts(found):
    space, *_, network = found
    titles = pair_titles(choose_methods(NAMES, network, whitened=True), space)
    end = {"embedding": "", "projection": ", projection", "neck": ", after the neck"}[space]
    assert titles["decomposition_l2"] == f"decomposition, L2 distance{end}"
    assert titles["mahalanobis"] == "Mahalanobis CAM"
