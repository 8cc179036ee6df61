"""The curves of a split against a loop over its images, and networks whose parts become random."""

import functools

import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from configs import explanations as explanations_config
from distcam_jax import training
from distcam_jax.evaluators import explanations, randomization
from distcam_jax.evaluators.faithfulness import Faithfulness, faithfulness
from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.randomization import parameter_groups, randomization_similarity, randomize_parameters
from distcam_jax.evaluators.whitening import sample_whitening
from distcam_jax.faithfulness import area_under_curve, deletion_images, gaussian_blur, insertion_images, random_maps
from distcam_jax.models import create_model
from distcam_jax.models.layers import BatchNorm
from distcam_jax.models.resnet import BasicBlock, ResNet
from distcam_jax.prototypes import Prototypes
from tests.patch_network import make_data
from tests.tiny_run import tiny_config

SIZE, MEAN = 16, (0.4, 0.5, 0.6)
MIX = np.random.default_rng(5).normal(size=(3, 6)).astype(np.float32)


class PatchNetwork(Network):
    """Features are rectified mixtures of the colours of patches of 4 x 4 pixels."""

    def __init__(self):
        config = ml_collections.ConfigDict({"input": {"image_size": SIZE, "mean": MEAN}})
        self.__dict__.update(config=config, mesh=training.create_mesh(), sizes=[])

    def __call__(self, images):
        self.sizes.append(len(images))
        patches = jnp.asarray(images).reshape(len(images), SIZE // 4, 4, SIZE // 4, 4, 3).mean((2, 4))
        maps = jnp.maximum(patches @ MIX, 0)
        return None, {"pre_pool": maps, "embedding": maps.mean((1, 2))}


def embed(images):
    patches = np.asarray(images).reshape(-1, SIZE // 4, 4, SIZE // 4, 4, 3).mean((2, 4))
    return np.maximum(patches @ MIX, 0).mean((1, 2))


def one_channel(features, classes):
    return jnp.moveaxis(features, -1, 1)[:, :1] * (1 + jnp.asarray(classes, jnp.float32))[..., None, None]


def both_signs(features, classes):
    return {"channel": one_channel(features, classes), "minus": -one_channel(features, classes)}


@pytest.fixture(scope="module")
def split():
    """Seven images in batches of three, of which one has a class without samples."""
    images = np.random.default_rng(0).random((9, SIZE, SIZE, 3), np.float32)
    labels = np.array([0, 1, 3, 0, 2, 1, 3, 0, 0])
    whole = {"image": images, "label": labels, "index": np.arange(9) + 40, "mask": np.arange(9) < 7}
    prototypes = Prototypes(
        np.random.default_rng(1).random((4, 6), np.float32), np.array([4, 2, 0, 5]), ("a", "b", "c", "d"), {}, ""
    )
    return images, labels, prototypes, [{k: v[i : i + 3] for k, v in whole.items()} for i in (0, 3, 6)]


def loop_margins(pictures, prototypes, label):
    distances = np.abs(embed(pictures)[:, None] - prototypes.prototypes).sum(axis=-1)
    others = [c for c in (0, 1, 3) if c != label]
    return distances[:, others].min(axis=1) - distances[:, label]


@pytest.mark.parametrize(("baseline", "chunk"), [("mean", 2), ("blur", 9)])
def test_faithfulness_curves_are_those_of_a_loop_over_images(split, baseline, chunk):
    images, labels, prototypes, batches = split
    found = faithfulness(
        PatchNetwork(), prototypes, both_signs, batches, steps=4, baseline=baseline, sigma=1.5, chunk=chunk, seed=3
    )
    kept = [0, 1, 2, 3, 5, 6]
    assert found.index.tolist() == [40 + i for i in kept]
    np.testing.assert_array_equal(found.labels, labels[kept])
    assert [list(found.curves[kind]) for kind in found.curves] == [["random", "center", "channel", "minus"]] * 2
    fractions = [0, 0.25, 0.5, 0.75, 1]
    for row, i in enumerate(kept):
        patches = images[i].reshape(4, 4, 4, 4, 3).mean((1, 3))
        channel = np.maximum(patches @ MIX, 0)[..., 0]
        maps = {"channel": channel, "minus": -channel, "random": random_maps(np.array([40 + i]), (4, 4), seed=3)[0, 0]}
        blurred = np.asarray(gaussian_blur(images[i], 1.5))
        base = blurred if baseline == "blur" else np.array(MEAN, np.float32)
        for name, heatmap in maps.items():
            for kind, make, other in (("deletion", deletion_images, base), ("insertion", insertion_images, blurred)):
                pictures = make(images[i], heatmap.astype(np.float32), fractions, other)
                expected = loop_margins(pictures, prototypes, labels[i])
                np.testing.assert_allclose(found.curves[kind][name][row], expected, atol=1e-5, err_msg=f"{name} {kind}")
        assert found.margin[row] == pytest.approx(loop_margins(images[i][None], prototypes, labels[i])[0], abs=1e-5)


def test_faithfulness_calls_the_network_on_batches_of_few_sizes(split):
    _, _, prototypes, batches = split
    network = PatchNetwork()
    faithfulness(network, prototypes, both_signs, batches[:1], steps=7, chunk=4)
    # Features, three ends of curves, and for each of four maps two curves of six inner steps in chunks of four.
    assert sorted(network.sizes) == [3] * 4 + [12] * 16


def test_faithfulness_of_a_map_that_knows_the_answer_beats_its_opposite():
    # Class 0 is red; the red patch is the object.
    images = np.full((2, SIZE, SIZE, 3), 0.5, np.float32)
    images[0, :4, 4:8], images[1, 8:12, 8:] = (1, 0, 0), (1, 0, 0)
    batch = {"image": images, "label": np.zeros(2, int), "index": np.arange(2), "mask": np.ones(2, bool)}
    embeddings = np.stack([embed(np.full((1, SIZE, SIZE, 3), c, np.float32))[0] for c in ((1, 0, 0), (0.5, 0.5, 0.5))])
    prototypes = Prototypes(embeddings, np.array([1, 1]), ("red", "grey"), {}, "")

    def redness(features, classes):
        del classes
        red = np.abs(np.asarray(features) - embeddings[0]).sum(axis=-1)
        return -red[:, None]

    def maps(features, classes):
        return {"red": redness(features, classes), "grey": -redness(features, classes)}

    areas = faithfulness(PatchNetwork(), prototypes, maps, [batch], steps=16, sigma=8.0).areas()
    assert np.all(areas["deletion"]["red"] < areas["deletion"]["grey"])
    assert np.all(areas["insertion"]["red"] > areas["insertion"]["grey"])
    assert np.all(areas["difference"]["red"] > areas["difference"]["random"])


def test_areas_are_in_units_of_the_mean_absolute_margin():
    curves = {
        "deletion": {"m": np.array([[2.0, 0.0], [-4.0, -2.0]])},
        "insertion": {"m": np.array([[0.0, 2.0], [0, -4.0]])},
    }
    measured = Faithfulness(np.zeros(2), np.arange(2), np.array([2.0, -4.0]), np.array([0.0, 1.0]), curves)
    assert measured.unit == 3
    assert measured.areas(relative=False)["deletion"]["m"].tolist() == [1, -3]
    np.testing.assert_allclose(measured.areas()["deletion"]["m"], [1 / 3, -1])
    np.testing.assert_allclose(measured.areas()["difference"]["m"], [0, 1 / 3], atol=1e-7)
    zero = Faithfulness(np.zeros(2), np.arange(2), np.zeros(2), np.array([0.0, 1.0]), curves)
    with pytest.raises(ValueError, match="relative: the margin of every image is zero"):
        zero.areas()
    assert float(area_under_curve(curves["insertion"]["m"][1], [0, 1])) == -2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "black"}, "baseline: want one of 'mean', 'blur', got 'black'"),
        ({"steps": 0}, "steps, chunk: want at least 1, got 0 and 5"),
        ({"batches": []}, "no image to measure"),
    ],
)
def test_faithfulness_names_the_bad_argument(split, changes, message):
    _, _, prototypes, batches = split
    with pytest.raises(ValueError, match=message):
        faithfulness(
            **(
                {
                    "network": PatchNetwork(),
                    "prototypes": prototypes,
                    "maps": lambda features, classes: {},
                    "batches": batches,
                }
                | changes
            )
        )


def test_faithfulness_wants_two_classes_with_samples(split):
    prototypes = Prototypes(np.ones((2, 6), np.float32), np.array([3, 0]), ("a", "b"), {}, "")
    with pytest.raises(ValueError, match="at least 2 classes with samples"):
        faithfulness(PatchNetwork(), prototypes, lambda features, classes: {}, split[3])


# ---- randomised networks


@pytest.mark.parametrize(
    ("name", "options", "groups"),
    [
        ("resnet50", {"head": "linear"}, ["head", "stage4", "stage3", "stage2", "stage1", "stem"]),
        ("densenet121", {"head": "none"}, ["stage4", "stage3", "stage2", "stage1", "stem"]),
        ("resnet12", {"head": "proxy"}, ["head", "stage4", "stage3", "stage2", "stage1"]),
    ],
)
def test_parameter_groups_hold_every_parameter_once(name, options, groups):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=3, rngs=nnx.Rngs(0), **options))
    found = parameter_groups(model)
    assert list(found) == groups
    count = sum(leaf.size for parts in found.values() for part in parts for leaf in jax.tree.leaves(nnx.state(part)))
    assert count == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.fixture(scope="module")
def small():
    """A small network with a head, as if trained: no scale is zero and statistics are not those of a start."""
    make = functools.partial(ResNet, BasicBlock, (1, 1, 1, 1), num_classes=3, width=4, stem="small")
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))  # nothing is compiled
    generator = np.random.default_rng(0)

    def draw(leaf):
        values = generator.normal(0, 0.2, leaf.shape) if len(leaf.shape) > 1 else generator.uniform(0.5, 1, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    nnx.update(model, jax.tree.map(draw, nnx.state(model)))
    model.eval()
    return model, jnp.asarray(generator.normal(size=(8, 16, 16, 3)), jnp.float32)


def flat(model):
    return {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


@pytest.fixture(scope="module")
def randomized(small):
    return {
        groups: randomize_parameters(small[0], jax.random.key(0), small[1], groups=groups) for groups in (0, 1, 3, 6)
    }


@pytest.mark.parametrize(
    ("groups", "changed"),
    [(0, ()), (1, ("head",)), (3, ("head", "stages/3", "stages/2")), (6, ("head", "stages", "conv1", "bn1"))],
)
def test_randomize_parameters_changes_the_upper_parts_alone(small, randomized, groups, changed):
    before, after = flat(small[0]), flat(randomized[groups])
    for name, values in before.items():
        assert np.array_equal(values, after[name]) != name.startswith(changed), name


def test_randomize_parameters_keeps_the_spread_of_kernels_and_draws_the_same_for_any_number(small, randomized):
    before, three, whole = flat(small[0]), flat(randomized[3]), flat(randomized[6])
    name = "stages/3/0/conv2/kernel"
    np.testing.assert_array_equal(three[name], whole[name])
    assert three[name].std() == pytest.approx(before[name].std(), rel=0.05)
    assert abs(np.corrcoef(three[name].ravel(), before[name].ravel())[0, 1]) < 0.05
    assert set(np.unique(three["stages/3/0/bn2/scale"])) == {1.0}  # a block with scale 0 would be off


def test_randomize_parameters_measures_the_statistics_of_its_parts(small, randomized):
    changed, images = randomized[6], small[1]
    stem = jax.lax.conv_general_dilated(
        images, changed.conv1.kernel[...], (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = np.asarray(stem, np.float64).reshape(-1, stem.shape[-1])
    np.testing.assert_allclose(changed.bn1.mean[...], found.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(changed.bn1.var[...], found.var(axis=0, ddof=1), rtol=1e-4)
    assert all(part.use_running_average for _, part in nnx.iter_modules(changed) if isinstance(part, BatchNorm))


def test_randomize_parameters_names_too_many_groups(small):
    with pytest.raises(ValueError, match=r"groups: want 0 to 6 of head, stage4, .*stem, got 7"):
        randomize_parameters(small[0], jax.random.key(0), small[1], groups=7)


def test_randomization_similarity_falls_where_the_method_looks_at_the_network(small):
    model, images = small
    graph, state = nnx.split(model)
    network = Network("tiny", tiny_config("softmax"), None, None, training.create_mesh(), graph, state, "")
    mask, labels = np.arange(8) < 7, np.array([0, 1, 0, 1, 2, 1, 0, 0])
    batch = {"image": np.asarray(images) * 0.1 + 0.5, "label": labels, "index": np.arange(8), "mask": mask}
    training_batch = {**batch, "mask": mask & (labels != 2)}  # the third class has no sample
    given = []

    def bind(network, prototypes, samples):
        given.append(prototypes.prototypes)
        assert samples.labels.tolist() == [0, 1, 0, 1, 1, 0]
        for label in (0, 1):  # the prototypes are the means of these
            mean = samples.embeddings[samples.labels == label].mean(axis=0)
            np.testing.assert_allclose(prototypes.prototypes[label], mean, rtol=1e-5, atol=1e-6)

        def maps(features, classes):
            return {
                "nothing": jnp.broadcast_to(jnp.arange(4.0).reshape(2, 2), (8, 1, 2, 2)),
                "distance": jnp.abs(features - prototypes.prototypes[0]).sum(-1)[:, None],
                "head": (features @ network.class_weights[0])[:, None],
            }

        return maps

    found = randomization_similarity(network, bind, "abc", [training_batch], [batch])
    assert found.index.tolist() == [0, 1, 2, 3, 5, 6]
    assert list(found.similarity) == list(found.means) == ["head", "stage4", "stage3", "stage2", "stage1", "stem"]
    assert all(means["nothing"] == pytest.approx(1) for means in found.means.values())
    assert found.means["head"]["distance"] == pytest.approx(1)
    assert found.means["head"]["head"] < 0.99
    assert found.means["stage4"]["distance"] < 0.99
    # Each stage's prototypes are those of its own network.
    np.testing.assert_array_equal(given[0], given[1])
    assert all(np.abs(one - given[0]).max() > 1e-3 for one in given[2:])


def test_study_measures_random_parameters_with_prototypes_and_a_covariance_of_each_network(small, monkeypatch):
    splits = {"train": np.array([0, 1, 2] * 8), "eval": np.array([2, 0, 1, 1, 0, 2, 2])}
    monkeypatch.setattr(training, "load_split", lambda config, split: make_data(splits[split]))
    upper = ("head", "stage4")  # the others would cost seconds and show nothing else
    monkeypatch.setattr(
        randomization, "parameter_groups", lambda model: {name: parameter_groups(model)[name] for name in upper}
    )
    config = explanations_config.get_config("sanity")
    config.classes = ("n2", "n0")  # five images of seven
    config.evaluate.update(methods=("cam", "mahalanobis", "uniform"), batch=8)
    config.evaluate.update(randomized_images=4, randomized_samples=5)
    run_config = tiny_config("softmax", **{"input.image_size": 16})
    network = Network("tiny", run_config, None, None, training.create_mesh(), *nnx.split(small[0]), "")
    given = []

    def whitening_of(samples, prototypes, *, ridge):
        given.append((samples, prototypes))
        return sample_whitening(samples, prototypes, ridge=ridge)

    monkeypatch.setattr(explanations, "sample_whitening", whitening_of)
    counts = Prototypes(np.ones((5, 32), np.float32), np.array([8, 8, 8, 0, 0]), tuple("abcde"), {}, "")
    found = explanations._measure_randomized(config, network, counts, make_data(splits["eval"]))
    assert list(found) == ["head", "stage4"]
    assert {len(values) for by_method in found.values() for values in by_method.values()} == {4}
    head, both = ({name: np.mean(values) for name, values in found[part].items()} for part in upper)
    assert {name for name, mean in head.items() if mean > 0.999} == {"mahalanobis", "uniform"}
    assert all(mean < 0.95 for mean in both.values())
    assert len(given) == 3  # the trained network, and both that are random in part
    for samples, prototypes in given:
        assert np.bincount(samples.labels).tolist() == [5, 5, 5]
        mean = samples.embeddings[samples.labels == 1].mean(axis=0)
        np.testing.assert_allclose(prototypes.prototypes[1], mean, rtol=1e-4, atol=1e-6)
