"""Networks in torch's layout, key by key, with none of the library's own tables, and small models to load them into."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from safetensors.numpy import save_file

from distcam_jax.models.densenet import DenseNet
from distcam_jax.models.pretrained import load_torch_weights
from distcam_jax.models.resnet import BasicBlock, ResNet

# ---- torch's keys and shapes


def norm_keys(name, features):
    kinds = {f"{name}.{leaf}": (features,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return kinds | {f"{name}.num_batches_tracked": ()}


def resnet_keys(counts, *, expansion, width=64, classes=1000, stem=7):
    keys = {"conv1.weight": (width, 3, stem, stem), **norm_keys("bn1", width)}
    features_in = width
    for stage, count in enumerate(counts, start=1):
        inner = width * 2 ** (stage - 1)
        for block in range(count):
            name, outer = f"layer{stage}.{block}", inner * expansion
            if expansion == 4:
                convs = [(inner, features_in, 1), (inner, inner, 3), (outer, inner, 1)]
            else:
                convs = [(inner, features_in, 3), (inner, inner, 3)]
            for number, (to, of, size) in enumerate(convs, start=1):
                keys |= {f"{name}.conv{number}.weight": (to, of, size, size), **norm_keys(f"{name}.bn{number}", to)}
            if block == 0 and (stage > 1 or expansion == 4):
                keys[f"{name}.downsample.0.weight"] = (outer, features_in, 1, 1)
                keys |= norm_keys(f"{name}.downsample.1", outer)
            features_in = outer
    return keys | {"fc.weight": (classes, features_in), "fc.bias": (classes,)}


def densenet_keys(counts, *, width=64, classes=1000, stem=7, dot=""):
    keys = {"features.conv0.weight": (width, 3, stem, stem), **norm_keys("features.norm0", width)}
    features, growth = width, width // 2
    for block, count in enumerate(counts, start=1):
        for layer in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            keys |= norm_keys(f"{name}.norm{dot}1", features)
            keys[f"{name}.conv{dot}1.weight"] = (4 * growth, features, 1, 1)
            keys |= norm_keys(f"{name}.norm{dot}2", 4 * growth)
            keys[f"{name}.conv{dot}2.weight"] = (growth, 4 * growth, 3, 3)
            features += growth
        if block < 4:
            keys |= norm_keys(f"features.transition{block}.norm", features)
            keys[f"features.transition{block}.conv.weight"] = (features // 2, features, 1, 1)
            features //= 2
    return (
        keys
        | norm_keys("features.norm5", features)
        | {"classifier.weight": (classes, features), "classifier.bias": (classes,)}
    )


def resnet12_keys(widths):
    keys = {}
    for stage, (of, to) in enumerate(zip((3, *widths[:3]), widths, strict=True), start=1):
        for number in (1, 2, 3):
            keys[f"layer{stage}.0.conv{number}.weight"] = (to, of if number == 1 else to, 3, 3)
            keys |= norm_keys(f"layer{stage}.0.bn{number}", to)
        keys |= {f"layer{stage}.0.downsample.0.weight": (to, of, 1, 1), **norm_keys(f"layer{stage}.0.downsample.1", to)}
    return keys


# ---- files and models


def tensors_of(keys, seed=0):
    """Numbers for every key; no two tensors are alike."""
    random = np.random.default_rng(seed)
    tensors = {}
    for key, shape in keys.items():
        if key.endswith("num_batches_tracked"):
            tensors[key] = np.int64(random.integers(1000)).reshape(())
        elif key.endswith("running_var"):
            tensors[key] = random.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) > 1:
            tensors[key] = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        else:
            tensors[key] = random.normal(0.5, 0.5, shape).astype(np.float32)
    return tensors


def blank(make):
    """A model full of zeros, which costs no compilation."""
    graph, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))


def small_resnet(block=BasicBlock, counts=(1, 1, 1, 1), **options):
    options = {"num_classes": 5, "width": 2, "stem": "small", **options}
    return blank(lambda: ResNet(block, counts, rngs=nnx.Rngs(0), **options))


def small_densenet(**options):
    options = {"num_classes": 5, "width": 4, "stem": "small", **options}
    return blank(lambda: DenseNet((2, 1, 1, 1), rngs=nnx.Rngs(0), **options))


def small_tensors(**changes):
    return tensors_of(resnet_keys((1, 1, 1, 1), **{"expansion": 1, "width": 2, "classes": 5, "stem": 3, **changes}))


def small_dense_tensors(**changes):
    return tensors_of(densenet_keys((2, 1, 1, 1), **{"width": 4, "classes": 5, "stem": 3, **changes}))


def saved(path, tensors):
    save_file({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, path)
    return path


# ---- comparisons


def numbers(variable):
    return np.asarray(variable.get_value())


def assert_norm(layer, tensors, name):
    leaves = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for ours, torchs in leaves.items():
        np.testing.assert_array_equal(numbers(getattr(layer, ours)), tensors[f"{name}.{torchs}"])


def assert_conv(layer, tensors, name):
    np.testing.assert_array_equal(numbers(layer.kernel), np.einsum("oiyx->yxio", tensors[f"{name}.weight"]))


def assert_linear(model, tensors, name):
    np.testing.assert_array_equal(numbers(model.head.linear.kernel), tensors[f"{name}.weight"].T)
    np.testing.assert_array_equal(numbers(model.head.linear.bias), tensors[f"{name}.bias"])


def refusal(model, source, error=ValueError, **options):
    """The message, after making sure that nothing changed."""
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
    with pytest.raises(error) as caught:
        load_torch_weights(model, source, **options)
    for old, new in zip(before, jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(old, new)
    return str(caught.value)
