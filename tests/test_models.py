"""Networks against NumPy convolutions tap by tap, published parameter counts, and statistics by hand."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from distcam_jax.models import MODELS, class_weights, create_model
from distcam_jax.models.heads import create_head
from distcam_jax.models.resnet import BasicBlock, ResNet
from tests.network_oracles import (
    assert_keeps_float32_where_it_counts,
    convolve_by_loop,
    filled,
    images_of,
    max_pool_by_loop,
    normalize_by_hand,
    run,
    size_of,
)

# ---- oracles


def resnet_by_loop(model, images, stem_stride, pooled, last_stride):
    """Feature maps in evaluation mode, from the model's own numbers."""

    def conv(layer, x, stride):
        kernel = np.asarray(layer.kernel.get_value())
        return convolve_by_loop(x, kernel, stride, kernel.shape[0] // 2)

    x = np.maximum(normalize_by_hand(model.bn1, conv(model.conv1, images, stem_stride)), 0)
    if pooled:
        x = max_pool_by_loop(x)
    for number, stage in enumerate(model.stages):
        for index, block in enumerate(stage):
            stride = (1, 2, 2, last_stride)[number] if index == 0 else 1
            shortcut = x
            if number > 0 and index == 0:
                shortcut = normalize_by_hand(block.downsample[1], conv(block.downsample[0], x, stride))
            x = np.maximum(normalize_by_hand(block.bn1, conv(block.conv1, x, stride)), 0)
            x = np.maximum(normalize_by_hand(block.bn2, conv(block.conv2, x, 1)) + shortcut, 0)
    return x


# ---- models


def small_model(**options):
    """One block a stage."""
    options = {"num_classes": 5, "width": 2, "stem": "small", **options}
    return filled(lambda: ResNet(BasicBlock, (1, 1, 1, 1), rngs=nnx.Rngs(0), **options))


def abstract_model(name="resnet18", **options):
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))


# Parameters as torchvision's documentation gives them, and channels of the last maps.
@pytest.mark.parametrize(
    ("name", "parameters", "channels"),
    [
        ("resnet18", 11_689_512, 512),
        ("resnet34", 21_797_672, 512),
        ("resnet50", 25_557_032, 2048),
        ("resnet101", 44_549_160, 2048),
        ("resnet152", 60_192_808, 2048),
        ("densenet121", 7_978_856, 1024),
        ("densenet161", 28_681_000, 2208),
        ("densenet169", 14_149_480, 1664),
        ("densenet201", 20_013_928, 1920),
    ],
)
def test_create_model_has_the_published_parameters(name, parameters, channels):
    model = abstract_model(name, num_classes=1000)
    assert size_of(model, nnx.Param) == parameters
    assert model.embedding_size == channels
    bare = abstract_model(name, num_classes=1000, head="none")
    assert size_of(bare, nnx.Param) == parameters - 1000 * (channels + 1)


@pytest.mark.parametrize(
    ("stem", "last_stride", "side", "maps"),
    [
        ("imagenet", 2, (224, 224), (7, 7)),
        ("imagenet", 1, (224, 224), (14, 14)),
        ("imagenet", 1, (256, 128), (16, 8)),
        ("imagenet", 2, (225, 255), (8, 8)),
        ("imagenet", 2, (32, 33), (1, 2)),
        ("stride2", 1, (64, 64), (8, 8)),
        ("stride2", 2, (65, 64), (5, 4)),
        ("small", 2, (32, 33), (4, 5)),
        ("small", 1, (4, 7), (1, 2)),
    ],
)
def test_resnet18_maps_shrink_as_torchvisions(stem, last_stride, side, maps):
    graph, state = nnx.split(abstract_model(num_classes=3, stem=stem, last_stride=last_stride, width=4))
    images = jax.ShapeDtypeStruct((2, *side, 3), jnp.float32)
    output, features = jax.eval_shape(lambda state, images: nnx.merge(graph, state)(images), state, images)
    assert features["pre_pool"].shape == (2, *maps, 32)
    assert features["embedding"].shape == (2, 32)
    assert output.shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "shape", "stem_stride"),
    [
        ({"stem": "imagenet"}, (2, 64, 65, 3), 2),
        ({"stem": "stride2", "last_stride": 1, "head": "none"}, (2, 16, 18, 3), 2),
    ],
)
def test_resnet_in_evaluation_matches_loop(options, shape, stem_stride):
    model = small_model(**options)
    model.eval()
    images = images_of(*shape)
    output, features = run(model, images)
    want = resnet_by_loop(model, images, stem_stride, options["stem"] == "imagenet", options.get("last_stride", 2))
    assert want.std() > 0.1
    np.testing.assert_allclose(features["pre_pool"], want, rtol=1e-4, atol=1e-4)
    assert features["pre_pool"].min() >= 0
    pooled = want.mean((1, 2))
    np.testing.assert_allclose(features["embedding"], pooled, rtol=1e-4, atol=1e-4)
    if options.get("head") == "none":
        assert class_weights(model) is None
        np.testing.assert_array_equal(output, features["embedding"])
        return
    weights, bias = np.asarray(class_weights(model)), np.asarray(model.head.linear.bias.get_value())
    assert weights.shape == (5, 16)
    for c in range(5):
        np.testing.assert_allclose(output[:, c], pooled @ weights[c] + bias[c], rtol=1e-4, atol=1e-4)


def test_resnet_statistics_move_in_training_only():
    model, images = small_model(), images_of(3, 8, 9, 3)
    mean, var = np.asarray(model.bn1.mean.get_value()), np.asarray(model.bn1.var.get_value())
    seen = convolve_by_loop(images, np.asarray(model.conv1.kernel.get_value()), 1, 1).reshape(-1, 2)
    run(model, images)
    np.testing.assert_allclose(model.bn1.mean.get_value(), 0.9 * mean + 0.1 * seen.mean(0), rtol=1e-4, atol=1e-6)
    # torch keeps the unbiased variance
    np.testing.assert_allclose(model.bn1.var.get_value(), 0.9 * var + 0.1 * seen.var(0, ddof=1), rtol=1e-5)
    model.eval()
    before = jax.tree.leaves(nnx.state(model))
    first, _ = run(model, images)
    for one, two in zip(before, jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(one, two)
    images[1:] = 0
    again, _ = run(model, images)
    np.testing.assert_allclose(again[0], first[0], rtol=1e-5, atol=1e-6)  # no image sees its batch
    assert not np.allclose(again[1], first[1])


def test_resnet_in_bfloat16_keeps_float32_where_it_counts():
    features = assert_keeps_float32_where_it_counts(small_model(dtype="bfloat16"), images_of(2, 8, 16, 3))
    pooled = np.asarray(features["pre_pool"], np.float32).mean((1, 2))
    np.testing.assert_allclose(features["embedding"], pooled, rtol=1e-6)


@nnx.jit(static_argnums=(0, 1, 2))
def new_block(features_in, width, stride, key):
    return BasicBlock(features_in, width, stride, dtype=jnp.float32, rngs=nnx.Rngs(key))


def test_basic_block_without_downsampling_starts_as_the_identity():
    x = np.abs(images_of(1, 4, 4, 8))
    applied = nnx.jit(BasicBlock.__call__)(new_block(8, 8, 1, jax.random.key(0)), x)
    np.testing.assert_array_equal(applied, x)


def test_basic_block_kernels_start_with_fan_out():
    block = new_block(16, 128, 2, jax.random.key(0))
    kernel = np.asarray(block.conv1.kernel.get_value())
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)  # fan-in would give 2.8 times as much
    assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated at two deviations


def test_create_head_linear_starts_uniform_within_its_bound():
    head = create_head("linear", 400, 50, rngs=nnx.Rngs(0))
    kernel = np.asarray(head.linear.kernel.get_value())
    assert kernel.shape == (400, 50)
    assert 0.99 / 20 < np.abs(kernel).max() <= 1 / 20
    assert kernel.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)
    assert abs(kernel.mean()) < 1e-3


def test_basic_block_follows_its_key():
    blocks = [new_block(16, 128, 2, jax.random.key(seed)) for seed in (0, 0, 1)]
    kernels = [block.conv2.kernel.get_value() for block in blocks]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


# ---- errors


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, f"unknown model 'resnet19'; choose one of {', '.join(sorted(MODELS))}"),
        (
            {"head": "softmax"},
            "unknown head 'softmax'; choose one of linear, proxy, cosine, batch_norm_neck, projection, none",
        ),
        ({"depth": 3}, "resnet18 has no option 'depth'; choose one of stem, width, last_stride, dtype, remat"),
        ({"blocks": (1, 1, 1, 1)}, "resnet18 has no option 'blocks'; choose one of stem"),
        ({"stem": "big"}, "unknown stem 'big'; choose one of imagenet, stride2, small"),
        ({"last_stride": 3}, "last_stride must be 1 or 2, got 3"),
        ({"width": 0}, "width: want a positive integer, got 0"),
        ({"num_classes": 0}, "num_classes: want a positive integer, got 0"),
        ({"width": 8.0}, "width: want a positive integer, got 8.0"),
        ({"dtype": "int8"}, "dtype must be float32, bfloat16 or float16, got int8"),
        ({"dtype": "float64"}, "dtype must be float32, bfloat16 or float16, got float64"),
        ({"dtype": None}, "dtype must be float32, bfloat16 or float16, got None"),
    ],
)
def test_create_model_lists_what_may_be_chosen(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": "resnet18", "num_classes": 2, "rngs": nnx.Rngs(0), **arguments})


@pytest.mark.usefixtures("without_type_checks")
def test_create_head_lists_the_heads():
    with pytest.raises(ValueError, match="unknown head 'softmax'; choose one of linear, proxy, cosine"):
        create_head("softmax", 4, 2, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.ones((2, 8, 8, 1), np.float32), r"images must have the shape \[b, h, w, 3\], got \[2, 8, 8, 1\]"),
        (np.ones((8, 8, 3), np.float32), r"images must have the shape \[b, h, w, 3\], got \[8, 8, 3\]"),
        (np.ones((2, 8, 8, 3), np.uint8), "images must be normalised floats, got uint8"),
        (np.ones((2, 16, 7, 3), np.float32), "images of 16 x 7 pixels are smaller than the network's stride of 8"),
    ],
)
def test_resnet_names_what_is_wrong_with_images(images, message):
    with pytest.raises(ValueError, match=message):
        small_model()(images)
