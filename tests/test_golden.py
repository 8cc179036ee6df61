"""Networks against torchvision's, by the golden values that tools/make_golden.py writes.

torch computed them in float64. An error is measured against the size of the whole tensor, so that entries which happen
to be near zero count like all others, and may be 1e-4. The size is the root mean square, where rounding makes 5e-6; for
gradients, sums of many terms that nearly cancel, it is the largest entry, where rounding makes 4e-5 (5e-5 in float32
torch). An epsilon of 1e-3 makes 1e-2; a border as of "SAME", a stride on the other convolution or colours in the other
order make 0.1 and more; a biased running variance makes 1e-4 in the first layers and 3e-2 in the last.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import save_file

from distcam_jax.models import create_model
from distcam_jax.models.convolution import compiler_options
from distcam_jax.models.pretrained import load_torch_weights
from distcam_jax.models.weight_names import path_of
from tests import golden_weights as golden

TOLERANCE = 1e-4
FOLDER = Path(__file__).parent / "golden"
# Each network runs once or twice: compiling is what takes time, save for a ResNet's step.
COMPILER = {**compiler_options(), "xla_backend_optimization_level": 0}
RESNET_STEP = {**compiler_options(), "xla_backend_optimization_level": 1}


def golden_values(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        values = dict(file)
    return json.loads(str(values.pop("meta"))), values


def filled_model(name, folder, *, apart=False, **options):
    """Our network with the shared weights, through a file as a user would load them, and these weights."""
    weights = golden.torch_weights(golden_values(name)[0]["shapes"], apart=apart)
    path = folder / f"{name}.safetensors"
    save_file(weights, path)
    model = nnx.eval_shape(lambda: create_model(name, num_classes=1000, rngs=nnx.Rngs(0), **options))
    load_torch_weights(model, path)
    path.unlink()
    return model, weights


def same_images(name, case, images_name, shape, weights):
    """The shared images, once it is sure that they and the weights are what torch was given."""
    images = golden.images(images_name, shape)
    assert golden.fingerprint(weights | {"images": images}) == golden_values(name)[0]["fingerprint"][case], (
        f"NumPy {np.__version__} draws other numbers than it did for tests/golden: run tools/make_golden.py"
    )
    return images


def assert_same(got, want, scale, label):
    assert got.shape == want.shape, f"{label}: shape {got.shape}, torch has {want.shape}"
    error = np.max(np.abs(got - want) / scale)
    assert error <= TOLERANCE, f"{label}: off by {error:.1e} of its size, at most {TOLERANCE} is rounding"


def assert_same_output(array, golden_part, label):
    """Compares the `summary` of an output."""
    mean, deviation = golden_part("moments")
    root_mean_square = np.hypot(mean, deviation)
    for part, got in golden.summary(array).items():
        scale = golden_part("norm") if part == "norm" else root_mean_square
        assert_same(got, golden_part(part), scale, f"{label} ({part})")


# ---- evaluation mode


def run(model, images):
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, images: nnx.merge(graph, state)(images), compiler_options=COMPILER)
    return compiled(state, images)


@pytest.fixture(scope="module", params=golden.MODELS)
def evaluated(request, tmp_path_factory):
    """A model's name, the model in evaluation mode, and its weights by torch's names."""
    model, weights = filled_model(request.param, tmp_path_factory.mktemp("weights"))
    model.eval()
    return request.param, model, weights


@pytest.mark.parametrize("case", golden.EVALUATION)
def test_model_in_evaluation_equals_torchvision(evaluated, case):
    name, model, weights = evaluated
    images = same_images(name, case, case, golden.EVALUATION[case], weights)
    output, features = run(model, images)
    values = golden_values(name)[1]
    for label, array in {"logits": output, **features}.items():
        assert_same_output(array, lambda part, label=label: values[f"{case}.{label}.{part}"], label)


def test_densenet_norm_maps_equal_torchvision_before_its_last_relu(tmp_path):
    model, weights = filled_model("densenet121", tmp_path, pre_pool="norm")
    model.eval()
    images = same_images("densenet121", "odd", "odd", golden.EVALUATION["odd"], weights)
    output, features = run(model, images)
    values = golden_values("densenet121")[1]
    assert_same_output(features["pre_pool"], lambda part: values[f"odd.before_relu.{part}"], "before_relu")
    assert_same_output(output, lambda part: values[f"odd.logits.{part}"], "logits")
    np.testing.assert_allclose(features["embedding"], np.mean(features["pre_pool"], (1, 2)), rtol=1e-4, atol=1e-5)


# ---- training mode


def sgd_step(model, images, labels, compiler):
    """Losses before and after one step; gradients, parameters and statistics after it, as dicts by our dotted path."""
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    optimizer = optax.sgd(golden.LEARNING_RATE, momentum=0.9)

    def loss_fn(params, statistics, images):
        network = nnx.merge(graph, params, statistics, copy=True)
        output, _ = network(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(output, labels).mean()
        return loss, nnx.state(network, nnx.BatchStat)

    @functools.partial(jax.jit, compiler_options=compiler)
    def step(params, statistics, images):
        (loss, statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, statistics, images)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return loss, gradients, optax.apply_updates(params, updates), statistics

    loss, gradients, moved, measured = step(params, statistics, images)
    after, *_ = step(moved, measured, images)
    named = [
        {".".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)}
        for state in (gradients, moved, measured)
    ]
    return np.array([loss, after]), *named


def in_torch_order(name, keys, ours):
    """Arrays under torch's keys, with torch's axes."""
    family = "ResNet" if name.startswith("resnet") else "DenseNet"
    places = {key: path_of(family, key) for key in keys}
    return {key: np.transpose(ours[path], np.argsort(axes)) for key, (path, axes) in places.items()}


def larger_of_layer(sizes, tensors):
    """The size of each gradient by key; of a layer's scale and bias, both get the larger one's.

    A bias in front of a linear layer and another normalisation has the gradient zero, and its rounding error is that of
    the scale's.
    """
    by_key = dict(zip(tensors, sizes, strict=True))
    scales = {key: key.replace(".bias", ".weight") for key in tensors}
    return {
        key: max(size, by_key[scales[key]]) if tensors[scales[key]].shape == tensors[key].shape else size
        for key, size in by_key.items()
    }


@pytest.fixture(scope="module", params=golden.TRAINING)
def trained(request, tmp_path_factory):
    """A model's name, its golden values, and what one step of SGD makes of it, under torch's keys."""
    name = request.param
    meta, values = golden_values(name)
    model, weights = filled_model(name, tmp_path_factory.mktemp("weights"), apart=True)
    images = same_images(name, "training", golden.TRAINING[name], golden.TRAINING_SHAPE, weights)
    labels, compiler = np.array(golden.LABELS, np.int32), RESNET_STEP if name.startswith("resnet") else COMPILER
    losses, gradients, parameters, statistics = sgd_step(model, images, labels, compiler)
    counted = [key for key in meta["shapes"] if not key.endswith("num_batches_tracked")]
    keys = [key for key in counted if "running" not in key]
    results = {
        "losses": losses,
        "gradient": in_torch_order(name, keys, gradients),
        "parameter": in_torch_order(name, keys, parameters),
        "statistic": in_torch_order(name, [key for key in counted if "running" in key], statistics),
    }
    return {key.removeprefix("training."): value for key, value in values.items()}, results


def test_model_in_training_loses_what_torchvision_loses(trained):
    values, results = trained
    assert_same(results["losses"], values["losses"], values["losses"], "losses before and after the step")


def test_model_in_training_has_the_gradients_of_torchvision(trained):
    values, results = trained
    norms = larger_of_layer(values["gradient_norm"], results["gradient"])
    largest = larger_of_layer(values["gradient_largest"], results["gradient"])
    for index, (key, gradient) in enumerate(results["gradient"].items()):
        norm = np.linalg.norm(gradient.astype(np.float64))
        assert_same(norm, values["gradient_norm"][index], norms[key], f"gradient norm of {key}")
        assert_same(golden.sample(gradient, 4), values["gradient_sample"][index], largest[key], f"gradient of {key}")
        if f"full.gradient.{key}" in values:
            assert_same(gradient, values[f"full.gradient.{key}"], largest[key], f"gradient of {key}")


def test_model_in_training_measures_the_statistics_of_torchvision(trained):
    values, results = trained
    for index, (key, statistic) in enumerate(results["statistic"].items()):
        norm = np.linalg.norm(statistic.astype(np.float64))
        size = values["statistic_norm"][index] / np.sqrt(statistic.size)
        assert_same(norm, values["statistic_norm"][index], values["statistic_norm"][index], f"norm of {key}")
        assert_same(golden.sample(statistic, 4), values["statistic_sample"][index], size, key)
        if f"full.statistic.{key}" in values:
            assert_same(statistic, values[f"full.statistic.{key}"], size, key)


def test_model_in_training_moves_its_parameters_as_torchs_sgd(trained):
    values, results = trained
    largest = larger_of_layer(values["gradient_largest"], results["gradient"])
    for index, (key, parameter) in enumerate(results["parameter"].items()):
        want = values["parameter_sample"][index]
        # The parameter itself is rounded to float32, on both sides: that much is allowed beside the step's tolerance.
        scale = golden.LEARNING_RATE * largest[key] + 2 * np.spacing(np.abs(want)) / TOLERANCE
        assert_same(golden.sample(parameter, 4), want, scale, f"{key} after the step")
