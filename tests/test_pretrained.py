"""Which number goes where: against torch's forward pass and transpositions by hand, and files that do not fit.

The keys come from `torch_layout`, which knows nothing of `weight_names`; hashes of torchvision's own keys check them.
"""

import hashlib

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from distcam_jax.models import MODELS, create_model
from distcam_jax.models.pretrained import load_torch_weights
from distcam_jax.models.resnet import Bottleneck
from distcam_jax.models.resnet12 import ResNet12
from distcam_jax.models.weight_names import known_keys, path_of
from tests.torch_layout import (
    assert_conv,
    assert_linear,
    assert_norm,
    blank,
    densenet_keys,
    numbers,
    refusal,
    resnet12_keys,
    resnet_keys,
    saved,
    small_dense_tensors,
    small_densenet,
    small_resnet,
    small_tensors,
    tensors_of,
)

# ---- names


# Per model: its keys without num_batches_tracked, and the SHA-256 of the sorted lines "key [shape]", of torchvision
# 0.29.1: for key, tensor in torchvision.models.NAME(weights=None).state_dict().items(): f"{key} {list(tensor.shape)}"
TORCHVISION = {
    "resnet18": (102, "fc669aac650ab66f6f786c5b13cfd6a691e18838ab2798d6273f9c7376e98c7b"),
    "resnet34": (182, "efabbe4b2289112be43dfa89fe7af8cfa27714b2c6ccd40c4807e25079c0ac21"),
    "resnet50": (267, "584ee931ad382885ad353fa64c8bf7736b8cd3a2259cc79a8f1e68cb3de2b163"),
    "resnet101": (522, "a85edc6cd135a89dcee889579bacc5142231707846658ae8a3770606a2572f06"),
    "resnet152": (777, "d9e4b3df983b271116d340aa468f2791b8e855e3b128f399d0a3d44a6a66ef4c"),
    "densenet121": (606, "c4a956e878d257a80aa164c2244c868af1e51756baa6f7b1b5679554c01a7c08"),
    "densenet161": (806, "b66bab0e56d41d25f82bac93fc245a2162489b311815240b790fe857638671ae"),
    "densenet169": (846, "fd90e10f1d684dad7a5a05aa426414f8958fe1421899bdb2fdf451eb2469de21"),
    "densenet201": (1006, "0d8c78bf4f9952f398cf4d17721298a2704bcc8fdb37f804b805096fb9a4f967"),
}
KEYS = {
    "resnet18": lambda: resnet_keys((2, 2, 2, 2), expansion=1),
    "resnet34": lambda: resnet_keys((3, 4, 6, 3), expansion=1),
    "resnet50": lambda: resnet_keys((3, 4, 6, 3), expansion=4),
    "resnet101": lambda: resnet_keys((3, 4, 23, 3), expansion=4),
    "resnet152": lambda: resnet_keys((3, 8, 36, 3), expansion=4),
    "densenet121": lambda: densenet_keys((6, 12, 24, 16)),
    "densenet161": lambda: densenet_keys((6, 12, 36, 24), width=96),
    "densenet169": lambda: densenet_keys((6, 12, 32, 32)),
    "densenet201": lambda: densenet_keys((6, 12, 48, 32)),
}


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"resnet12"}))
def test_keys_of_these_tests_are_torchvisions(name):
    shapes = {key: shape for key, shape in KEYS[name]().items() if not key.endswith("num_batches_tracked")}
    lines = "\n".join(sorted(f"{key} {list(shape)}" for key, shape in shapes.items()))
    assert (len(shapes), hashlib.sha256(lines.encode()).hexdigest()) == TORCHVISION[name]


def paths_of(model):
    flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): variable.shape for path, variable in flat}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_path_of_names_every_number_of_every_model_once(name):
    family = "DenseNet" if name.startswith("dense") else "ResNet12" if name == "resnet12" else "ResNet"
    keys = KEYS[name]() if name in KEYS else resnet12_keys((64, 160, 320, 640))
    head = "linear" if name in KEYS else "none"
    model = nnx.eval_shape(lambda: create_model(name, num_classes=1000, head=head, rngs=nnx.Rngs(0)))
    found = {}
    for key, shape in keys.items():
        if not key.endswith("num_batches_tracked"):
            path, axes = path_of(family, key)
            assert path not in found
            found[path] = tuple(shape[axis] for axis in axes)
    assert found == paths_of(model)


@pytest.mark.parametrize(
    "key", ["conv1.bias", "xconv1.weight", "layer1.0.conv4.weight", "layer1.conv1.weight", "fc.weight.weight", "fc", ""]
)
def test_path_of_knows_whole_keys_only(key):
    assert path_of("ResNet", key) is None


def test_known_keys_tells_the_families_apart():
    resnet, densenet = resnet_keys((1, 1, 1, 1), expansion=1), densenet_keys((1, 1, 1, 1))
    assert known_keys(densenet)["ResNet"] == known_keys(resnet)["DenseNet"] == 0
    assert known_keys(resnet)["ResNet"] > known_keys(resnet)["ResNet12"] > 0


# ---- torch's forward pass, from the keys alone


def convolve_by_loop(x, kernel, stride=1):
    """`[b, i, h, w]` with `[o, i, s, s]`, borders of zeros."""
    size = kernel.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    rows, columns = ((side - size) // stride + 1 for side in x.shape[2:])
    result = np.zeros((len(x), len(kernel), rows, columns))
    for row in range(rows):
        for column in range(columns):
            window = x[:, :, row * stride : row * stride + size, column * stride : column * stride + size]
            result[:, :, row, column] = np.einsum("biyx,oiyx->bo", window, kernel.astype(np.float64))
    return result


def normalize(x, tensors, name):
    scale, bias, mean, var = (
        tensors[f"{name}.{leaf}"][:, None, None].astype(np.float64)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def bottlenecks_by_loop(tensors, x, counts):
    x = np.maximum(normalize(convolve_by_loop(x, tensors["conv1.weight"]), tensors, "bn1"), 0)
    for stage, count in enumerate(counts, start=1):
        for block in range(count):
            name, stride, shortcut = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1, x
            if block == 0:
                shortcut = convolve_by_loop(x, tensors[f"{name}.downsample.0.weight"], stride)
                shortcut = normalize(shortcut, tensors, f"{name}.downsample.1")
            for number in (1, 2, 3):
                x = convolve_by_loop(x, tensors[f"{name}.conv{number}.weight"], stride if number == 2 else 1)
                x = normalize(x, tensors, f"{name}.bn{number}") + (shortcut if number == 3 else 0)
                x = np.maximum(x, 0)
    return x.mean((2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]


def densenet_by_loop(tensors, x, counts):
    x = convolve_by_loop(x, tensors["features.conv0.weight"])
    x = np.maximum(normalize(x, tensors, "features.norm0"), 0)
    for block, count in enumerate(counts, start=1):
        for layer in range(1, count + 1):
            name, y = f"features.denseblock{block}.denselayer{layer}", x
            for number in (1, 2):
                y = np.maximum(normalize(y, tensors, f"{name}.norm{number}"), 0)
                y = convolve_by_loop(y, tensors[f"{name}.conv{number}.weight"])
            x = np.concatenate([x, y], 1)
        if block < 4:
            name = f"features.transition{block}"
            x = np.maximum(normalize(x, tensors, f"{name}.norm"), 0)
            x = convolve_by_loop(x, tensors[f"{name}.conv.weight"])
            x = sum(x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)) / 4
    x = np.maximum(normalize(x, tensors, "features.norm5"), 0)
    return x.mean((2, 3)) @ tensors["classifier.weight"].T + tensors["classifier.bias"]


@nnx.jit
def run(model, images):
    return model(images)[0]


@pytest.mark.parametrize("family", ["bottlenecks", "densenet"])
def test_load_torch_weights_gives_torchs_scores(family, tmp_path):
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    if family == "densenet":
        tensors, model = small_dense_tensors(), small_densenet()
        want = densenet_by_loop(tensors, images.transpose(0, 3, 1, 2), (2, 1, 1, 1))
    else:
        tensors = tensors_of(resnet_keys((2, 1, 1, 1), expansion=4, width=2, classes=5, stem=3))
        model = small_resnet(Bottleneck, (2, 1, 1, 1))
        want = bottlenecks_by_loop(tensors, images.transpose(0, 3, 1, 2), (2, 1, 1, 1))
    load_torch_weights(model, saved(tmp_path / "w.safetensors", tensors))
    model.eval()
    assert want.std() > 0.1
    np.testing.assert_allclose(run(model, images), want, rtol=1e-4, atol=1e-4)


# ---- what is filled


@pytest.mark.parametrize("prefix", ["", "module."])
def test_load_torch_weights_fills_a_resnet(prefix, tmp_path):
    tensors = tensors_of(resnet_keys((2, 1, 1, 1), expansion=1, width=2, classes=5, stem=3))
    model = small_resnet(counts=(2, 1, 1, 1))
    load_torch_weights(model, saved(tmp_path / "w.safetensors", {prefix + key: t for key, t in tensors.items()}))
    assert_conv(model.conv1, tensors, "conv1")
    assert_norm(model.bn1, tensors, "bn1")
    assert_conv(model.stages[0][1].conv2, tensors, "layer1.1.conv2")
    assert_norm(model.stages[0][1].bn2, tensors, "layer1.1.bn2")
    assert_conv(model.stages[3][0].downsample[0], tensors, "layer4.0.downsample.0")
    assert_norm(model.stages[3][0].downsample[1], tensors, "layer4.0.downsample.1")
    assert_linear(model, tensors, "fc")


@pytest.mark.parametrize("dot", ["", "."])
def test_load_torch_weights_fills_a_densenet_by_both_namings(dot, tmp_path):
    tensors, model = small_dense_tensors(dot=dot), small_densenet()
    load_torch_weights(model, str(saved(tmp_path / "w.safetensors", tensors)))
    assert_conv(model.conv0, tensors, "features.conv0")
    assert_norm(model.norm0, tensors, "features.norm0")
    layer, name = model.blocks[0][1], "features.denseblock1.denselayer2"
    assert_norm(layer.norm1, tensors, f"{name}.norm{dot}1")
    assert_conv(layer.conv1, tensors, f"{name}.conv{dot}1")
    assert_norm(layer.norm2, tensors, f"{name}.norm{dot}2")
    assert_conv(layer.conv2, tensors, f"{name}.conv{dot}2")
    assert_norm(model.transitions[2].norm, tensors, "features.transition3.norm")
    assert_conv(model.transitions[2].conv, tensors, "features.transition3.conv")
    assert_norm(model.norm5, tensors, "features.norm5")
    assert_linear(model, tensors, "classifier")


def test_load_torch_weights_fills_a_resnet12_without_classifier(tmp_path):
    tensors = tensors_of(resnet12_keys((2, 3, 4, 5)))
    model = blank(lambda: ResNet12(num_classes=4, widths=(2, 3, 4, 5), rngs=nnx.Rngs(0)))
    load_torch_weights(model, saved(tmp_path / "w.safetensors", tensors), head="drop")
    for index, name in enumerate(["layer1.0", "layer2.0", "layer3.0", "layer4.0"]):
        for number in (1, 2, 3):
            assert_conv(getattr(model.stages[index], f"conv{number}"), tensors, f"{name}.conv{number}")
            assert_norm(getattr(model.stages[index], f"bn{number}"), tensors, f"{name}.bn{number}")
        assert_conv(model.stages[index].downsample[0], tensors, f"{name}.downsample.0")
        assert_norm(model.stages[index].downsample[1], tensors, f"{name}.downsample.1")
    assert not numbers(model.head.linear.kernel).any()


@pytest.mark.parametrize("head", ["linear", "proxy", "batch_norm_neck", "none"])
def test_load_torch_weights_drop_leaves_any_head_alone(head, tmp_path):
    tensors, model = small_tensors(classes=1000), small_resnet(head=head)
    head_before = jax.tree.leaves(nnx.state(model.head))
    tensors["fc.bias"][3] = np.nan  # nobody reads it
    load_torch_weights(model, saved(tmp_path / "w.safetensors", tensors), head="drop")
    assert_conv(model.stages[3][0].conv2, tensors, "layer4.0.conv2")
    for before, after in zip(head_before, jax.tree.leaves(nnx.state(model.head)), strict=True):
        np.testing.assert_array_equal(before, after)


def test_load_torch_weights_drop_takes_a_file_without_classifier(tmp_path):
    tensors, model = small_tensors(), small_resnet()
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("fc")}
    load_torch_weights(model, saved(tmp_path / "w.safetensors", kept), head="drop")
    assert_norm(model.bn1, tensors, "bn1")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_load_torch_weights_turns_every_float_into_the_models(dtype, tmp_path):
    tensors = {key: t.astype(dtype) if t.dtype == np.float32 else t for key, t in small_tensors().items()}
    model = small_resnet(dtype="bfloat16")
    load_torch_weights(model, saved(tmp_path / "w.safetensors", tensors))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    want = np.einsum("oiyx->yxio", tensors["conv1.weight"].astype(np.float32))
    np.testing.assert_array_equal(numbers(model.conv1.kernel), want)
    np.testing.assert_array_equal(numbers(model.bn1.var), tensors["bn1.running_var"].astype(np.float32))


def test_load_torch_weights_fills_an_abstract_model(tmp_path):
    graph, state = nnx.split(small_resnet())
    model, tensors = nnx.merge(graph, jax.eval_shape(lambda: state)), small_tensors()
    load_torch_weights(model, saved(tmp_path / "w.safetensors", tensors))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model)))
    assert_norm(model.stages[1][0].bn1, tensors, "layer2.0.bn1")


def test_load_torch_weights_keeps_the_sharding(tmp_path):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    tensors, model = small_tensors(classes=6), small_resnet(num_classes=6)
    model.bn1.scale.set_value(jax.device_put(model.bn1.scale.get_value(), replicated))
    model.head.linear.kernel.set_value(jax.device_put(model.head.linear.kernel.get_value(), split))
    load_torch_weights(model, saved(tmp_path / "w.safetensors", tensors))
    assert model.bn1.scale.get_value().sharding == replicated
    assert model.head.linear.kernel.get_value().sharding == split
    assert not model.conv1.kernel.get_value().committed  # a mesh may still take it
    assert_linear(model, tensors, "fc")
    assert_norm(model.bn1, tensors, "bn1")


# ---- what is refused


def without(tensors, *keys):
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


def test_load_torch_weights_lists_all_that_differs_at_once(tmp_path):
    tensors = without(small_tensors(), "bn1.bias", "layer2.0.conv1.weight")
    tensors |= {"extra.weight": np.ones(2, np.float32), "layer1.0.bn1.weight": np.ones(3, np.float32)}
    tensors["layer3.0.bn1.running_var"] = -tensors["layer3.0.bn1.running_var"]
    tensors["layer4.0.bn1.bias"] = np.ones(16, np.int32)
    tensors["layer4.0.conv2.weight"][1, 2, 0, 1] = np.inf
    path = saved(tmp_path / "w.safetensors", tensors)
    assert refusal(small_resnet(), path).splitlines() == [
        f"{path} does not fit the ResNet; it holds another one, of another depth, stem or kind of block:",
        "  only in the file (1): extra.weight",
        "  only in the model (2): bn1.bias, stages.1.0.conv1.kernel",
        "  of another shape than the model's (1): layer1.0.bn1.weight [3], not [2]",
        "  not of a floating type (1): layer4.0.bn1.bias (int32)",
        "  NaN, infinite or a negative variance (2): layer3.0.bn1.running_var, layer4.0.conv2.weight",
    ]


def test_load_torch_weights_shortens_long_lists(tmp_path):
    deeper = tensors_of(resnet_keys((2, 1, 1, 1), expansion=1, width=2, classes=5, stem=3))
    extra = sorted(set(deeper) - set(small_tensors()))
    path = saved(tmp_path / "w.safetensors", deeper)
    message = refusal(small_resnet(), path)
    assert "only in the file (10): " in message
    assert message.endswith(", ... and 2 more")
    assert sum(key in message for key in extra) == 8


CLASSIFIER = 'the file\'s classifier has 1000 classes, the model 5: pass head="drop" to leave it out'


@pytest.mark.parametrize(
    ("tensors", "model", "cause"),
    [
        (small_tensors(classes=1000), small_resnet, CLASSIFIER),
        (small_dense_tensors(classes=1000), small_densenet, CLASSIFIER),
        (without(small_tensors(), "fc.weight", "fc.bias"), small_resnet, 'it holds no classifier: pass head="drop"'),
        (small_tensors(), small_densenet, "it holds a ResNet:"),
        (small_dense_tensors(), small_resnet, "it holds a DenseNet:"),
        (small_tensors(expansion=4), small_resnet, "it holds another one, of another depth, stem or kind of block:"),
        (small_tensors(width=4), small_resnet, "it holds a wider or narrower one:"),
        (
            small_tensors(stem=7),
            small_resnet,
            "only the stem's kernel differs, so create the model with another `stem`:",
        ),
        (small_dense_tensors(stem=7, classes=1000), small_densenet, "another `stem`; " + CLASSIFIER),
        ({"encoder.weight": np.ones(3, np.float32)}, small_resnet, "none of its names is torchvision's or timm's"),
        ({}, small_resnet, "none of its names is torchvision's or timm's"),
    ],
)
def test_load_torch_weights_says_what_is_likely_wrong(tensors, model, cause, tmp_path):
    first = refusal(model(), saved(tmp_path / "w.safetensors", tensors)).splitlines()[0]
    assert f"w.safetensors does not fit the {'DenseNet' if model is small_densenet else 'ResNet'}; " in first
    assert cause in first


def test_load_torch_weights_gives_both_shapes_in_torchs_order(tmp_path):
    message = refusal(small_resnet(), saved(tmp_path / "w.safetensors", small_tensors(stem=7, classes=6)))
    assert "conv1.weight [2, 3, 7, 7], not [2, 3, 3, 3]" in message
    assert "fc.weight [6, 16], not [5, 16]" in message


def test_load_torch_weights_refuses_what_float32_cannot_hold(tmp_path):
    tensors = small_tensors()
    tensors["bn1.bias"] = np.array([1e39, 0])
    assert "negative variance (1): bn1.bias" in refusal(small_resnet(), saved(tmp_path / "w.safetensors", tensors))


def test_load_torch_weights_refuses_a_key_given_twice(tmp_path):
    tensors, dense = small_tensors(), small_dense_tensors()
    tensors["module.fc.bias"] = tensors["fc.bias"]
    dense["features.denseblock1.denselayer1.norm.1.bias"] = dense["features.denseblock1.denselayer1.norm1.bias"]
    message = refusal(small_resnet(), saved(tmp_path / "w.safetensors", tensors))
    assert message.endswith(
        "w.safetensors holds fc.bias twice, with and without the prefix module.; leave one of both out"
    )
    message = refusal(small_densenet(), saved(tmp_path / "d.safetensors", dense))
    assert "only in the file (1): features.denseblock1.denselayer1.norm" in message


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (small_resnet, {"head": "keep"}, "unknown head 'keep'; choose one of load, drop"),
        (
            lambda: small_resnet(head="none"),
            {},
            'head="load" fills a linear head, the model has a NoHead; pass head="drop"',
        ),
        (
            lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)),
            {"head": "drop"},
            "no torch names are known for a Linear; model must be a ResNet or DenseNet or ResNet12",
        ),
    ],
)
def test_load_torch_weights_names_wrong_arguments(make, options, message):
    assert refusal(make(), "nowhere.safetensors", **options) == message
