"""ResNet-12 against NumPy tap by tap, and DropBlock's squares, shares and scale by counting."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from distcam_jax.models import class_weights, resnet12
from distcam_jax.models.resnet12 import Block, ResNet12, drop_block
from tests.network_oracles import (
    assert_keeps_float32_where_it_counts,
    convolve_by_loop,
    filled,
    images_of,
    normalize_by_hand,
    run,
    size_of,
)

WIDTHS = (2, 3, 4, 5)

# ---- oracles


def convolve(layer, x):
    kernel = np.asarray(layer.kernel.get_value())
    return convolve_by_loop(x, kernel, 1, kernel.shape[0] // 2)


def leaky_relu(x):
    return np.where(x > 0, x, 0.1 * x)


def max_pool(x):
    b, h, w, k = x.shape
    result = np.zeros((b, h // 2, w // 2, k))
    for row in range(h // 2):
        for column in range(w // 2):
            result[:, row, column] = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].max((1, 2))
    return result


def resnet12_by_loop(model, images, last_stride):
    x = images.astype(np.float64)
    for index, block in enumerate(model.stages):
        shortcut = normalize_by_hand(block.downsample[1], convolve(block.downsample[0], x))
        x = leaky_relu(normalize_by_hand(block.bn1, convolve(block.conv1, x)))
        x = leaky_relu(normalize_by_hand(block.bn2, convolve(block.conv2, x)))
        x = leaky_relu(normalize_by_hand(block.bn3, convolve(block.conv3, x)) + shortcut)
        if index < 3 or last_stride == 2:
            x = max_pool(x)
    return x


# ---- models


def small_model(**options):
    options = {"num_classes": 3, "widths": WIDTHS, **options}
    return filled(lambda: ResNet12(rngs=nnx.Rngs(0), **options))


@pytest.mark.parametrize(
    ("widths", "parameters"), [((64, 160, 320, 640), 12_424_320), ((64, 128, 256, 512), 7_996_800)]
)
def test_resnet12_has_the_published_parameters(widths, parameters):
    by_hand = 0
    for features_in, features in zip((3, *widths), widths, strict=False):
        kernels = 9 * features_in * features + 2 * 9 * features * features + features_in * features
        by_hand += kernels + 4 * 2 * features  # four scales and four biases
    assert by_hand == parameters
    model = nnx.eval_shape(lambda: ResNet12(num_classes=64, widths=widths, head="none", rngs=nnx.Rngs(0)))
    assert size_of(model, nnx.Param) == parameters
    assert size_of(model, nnx.BatchStat) == 4 * 2 * sum(widths)
    assert model.embedding_size == widths[-1]


@pytest.mark.parametrize(
    ("last_stride", "side", "maps"),
    [(2, (84, 84), (5, 5)), (1, (84, 84), (10, 10)), (2, (80, 95), (5, 5)), (2, (16, 31), (1, 1)), (1, (8, 8), (1, 1))],
)
def test_resnet12_maps_shrink_by_halves(last_stride, side, maps):
    options = {"num_classes": 7, "widths": WIDTHS, "last_stride": last_stride}
    model = nnx.eval_shape(lambda: ResNet12(rngs=nnx.Rngs(0), **options))
    images = jax.ShapeDtypeStruct((2, *side, 3), jnp.float32)
    output, features = nnx.eval_shape(lambda model, images: model(images, key=jax.random.key(0)), model, images)
    assert features["pre_pool"].shape == (2, *maps, 5)
    assert features["embedding"].shape == (2, 5)
    assert output.shape == (2, 7)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((2, 21, 22, 3), {}), ((2, 38, 29, 3), {"last_stride": 1, "head": "batch_norm_neck"})],
)
def test_resnet12_in_evaluation_matches_loop(shape, options):
    model = small_model(**options)
    model.eval()
    output, features = run(model, images_of(*shape))
    want = resnet12_by_loop(model, images_of(*shape), options.get("last_stride", 2))
    assert want.std() > 0.1
    assert want.min() < -0.01  # LeakyReLU's
    np.testing.assert_allclose(features["pre_pool"], want, rtol=1e-4, atol=1e-4)
    pooled = want.mean((1, 2))
    np.testing.assert_allclose(features["embedding"], pooled, rtol=1e-4, atol=1e-4)
    # Eq. 2: the class scores are linear in the embedding, whichever the head.
    scores = pooled @ np.asarray(class_weights(model)).T
    np.testing.assert_allclose(output - output[0], scores - scores[0], rtol=1e-3, atol=1e-4)


def test_resnet12_kernels_start_with_fan_out_and_scales_with_one():
    block = nnx.jit(lambda: Block(16, 128, pooled=True, dtype=jnp.float32, rngs=nnx.Rngs(0)))()
    for conv, taps in ((block.conv1, 9), (block.conv3, 9), (block.downsample[0], 1)):
        kernel = np.asarray(conv.kernel.get_value())
        assert kernel.std() == pytest.approx(np.sqrt(2 / (taps * 128)), rel=0.04)
    for norm in (block.bn1, block.bn2, block.bn3, block.downsample[1]):
        np.testing.assert_array_equal(norm.scale.get_value(), 1)


def test_resnet12_in_bfloat16_keeps_float32_where_it_counts():
    model = small_model(dtype="bfloat16")
    assert_keeps_float32_where_it_counts(model, images_of(2, 16, 32, 3), jax.random.key(0))


def gradients_of(model, images, key):
    """The gradients and the statistics after a training step, and the program that computes them."""
    graph, params, statistics = nnx.split(model, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, statistics, copy=True)
        output, _ = model(images, key=key)
        return jnp.sum(jnp.square(output)), nnx.state(model, nnx.BatchStat)

    lowered = jax.jit(jax.grad(loss, has_aux=True)).lower(params)
    return lowered.compile({"xla_backend_optimization_level": 0})(params), lowered.as_text()


def test_resnet12_with_remat_computes_the_same_twice():
    images, key = jnp.asarray(images_of(3, 32, 32, 3)), jax.random.key(1)
    results, programs = zip(
        *(gradients_of(small_model(drop_rate=0.3, remat=remat), images, key) for remat in (False, True)), strict=True
    )
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.isfinite(one).all()
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3 * np.abs(one).max())
    assert programs[0].count("optimization_barrier") < programs[1].count("optimization_barrier")


# ---- DropBlock in the network


def test_resnet12_drops_after_its_last_two_blocks_with_keys_of_their_own(monkeypatch):
    calls, graph_and_state = [], nnx.split(small_model(drop_rate=0.2))

    def record(key, x, **options):
        calls.append((x.shape, options))
        keys.append(jax.random.key_data(key))
        return x

    @jax.jit
    def keys_of(key):
        keys.clear()
        nnx.merge(*graph_and_state, copy=True)(jnp.asarray(images_of(1, 40, 32, 3)), key=key)
        return tuple(keys)

    keys = []
    monkeypatch.setattr(resnet12, "drop_block", record)
    first, second = map(tuple, np.asarray(keys_of(jax.random.key(3))))
    assert calls == [((1, 5, 4, 4), {"rate": 0.2}), ((1, 2, 2, 5), {"rate": 0.2})]
    assert len({first, second, tuple(jax.random.key_data(jax.random.key(3)).tolist())}) == 3


def test_resnet12_in_training_follows_its_key():
    maps = [
        run(small_model(drop_rate=0.5), images_of(4, 32, 32, 3), key)[1]["pre_pool"]
        for key in map(jax.random.key, (0, 0, 1))
    ]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])
    dropped = np.all(np.asarray(maps[0]) == 0, (1, 2))  # of maps of 2 x 2, whole channels
    assert 0 < dropped.sum() < dropped.size


@pytest.mark.parametrize("mode", ["eval", "rate"])
@pytest.mark.parametrize("seed", [None, 0])
def test_resnet12_without_dropping_needs_no_key(monkeypatch, mode, seed):
    key = None if seed is None else jax.random.key(seed)
    monkeypatch.setattr(resnet12, "drop_block", lambda *args, **options: pytest.fail("dropped"))
    model = small_model(drop_rate=0.5 if mode == "eval" else 0.0)
    if mode == "eval":
        model.eval()
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    output, _ = nnx.eval_shape(lambda model, images: model(images, key=key), model, images)
    assert output.shape == (2, 3)


def test_resnet12_in_training_asks_for_a_key():
    model = small_model()
    model.eval()
    model.train()
    with pytest.raises(ValueError, match=r"DropBlock needs a key .* drop_rate 0\.1: call model\(images, key=key\)"):
        model(jnp.asarray(images_of(1, 16, 16, 3)))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (2, 3, 4)}, r"widths: want four positive integers, one a block, got \(2, 3, 4\)"),
        ({"widths": (2, 3, 4, 0)}, r"widths: want four positive integers, one a block, got \(2, 3, 4, 0\)"),
        ({"widths": (2, 3, 4, 5.0)}, "widths: want four positive integers"),
        ({"drop_rate": 1.0}, r"drop_rate: want a share in \[0, 1\), got 1\.0"),
        ({"drop_rate": -0.1}, r"drop_rate: want a share in \[0, 1\), got -0\.1"),
        ({"last_stride": 3}, "last_stride must be 1 or 2, got 3"),
        ({"num_classes": 0}, "num_classes"),
        ({"dtype": "int8"}, "dtype must be float32, bfloat16 or float16"),
        ({"head": "softmax"}, "unknown head 'softmax'"),
    ],
)
def test_resnet12_names_what_is_wrong_with_an_option(options, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: ResNet12(**{"num_classes": 2, "widths": WIDTHS, "rngs": nnx.Rngs(0), **options}))


@pytest.mark.parametrize(("last_stride", "side"), [(2, 15), (1, 7)])
def test_resnet12_refuses_images_smaller_than_its_stride(last_stride, side):
    with pytest.raises(ValueError, match=f"images of {side} x 20 pixels are smaller than the network's stride"):
        small_model(last_stride=last_stride)(jnp.zeros((1, side, 20, 3)))


# ---- drop_block


drop = jax.jit(drop_block, static_argnames=("rate", "size"))


def covers(h, w, size):
    """How many blocks of `size` x `size`, at every place where a whole one fits, hold each cell."""
    result = np.zeros((h, w), int)
    for row in range(h - size + 1):
        for column in range(w - size + 1):
            result[row : row + size, column : column + size] += 1
    return result


def union_of_squares(dropped, size):
    """The union of all squares of `size` x `size` that lie in `[b, h, w, k]` dropped cells."""
    result = np.zeros_like(dropped)
    for row in range(dropped.shape[1] - size + 1):
        for column in range(dropped.shape[2] - size + 1):
            place = (slice(None), slice(row, row + size), slice(column, column + size))
            result[place] |= dropped[place].all((1, 2), keepdims=True)
    return result


@pytest.mark.parametrize(
    ("shape", "size", "block"), [((3, 11, 9, 16), 5, 5), ((2, 8, 12, 16), 2, 2), ((2, 3, 8, 16), 5, 3)]
)
def test_drop_block_zeroes_squares_and_scales_the_rest(shape, size, block):
    x = images_of(*shape) + 10
    result = np.asarray(drop(jax.random.key(0), x, rate=0.2, size=size))
    dropped = result == 0
    assert 0.1 < dropped.mean() < 0.3
    np.testing.assert_array_equal(union_of_squares(dropped, block), dropped)
    assert not np.array_equal(union_of_squares(dropped, block + 1), dropped)
    np.testing.assert_allclose(result[~dropped], x[~dropped] * (x.size / (~dropped).sum()), rtol=1e-5)
    single = dropped[0, ..., 0]
    assert any(not np.array_equal(single, dropped[0, ..., channel]) for channel in range(1, 16))
    assert not np.array_equal(dropped[0], dropped[1])


@pytest.mark.parametrize(
    ("h", "w", "block", "gamma"),
    [
        (10, 10, 5, 0.1 * 100 / 25 / 36),
        (7, 11, 5, 0.1 * 77 / 25 / (3 * 7)),
        (5, 5, 5, 0.1),
        (3, 4, 3, 0.1 * 12 / 9 / 2),
    ],
)
def test_drop_block_drops_each_cell_with_its_probability(h, w, block, gamma):
    maps = 100 * 256
    dropped = np.asarray(drop(jax.random.key(2), jnp.ones((100, h, w, 256)), rate=0.1)) == 0
    want = 1 - (1 - gamma) ** covers(h, w, block)
    deviation = np.sqrt(want * (1 - want) / maps)
    assert (np.abs(dropped.mean((0, 3)) - want) < 5 * deviation).all()
    assert 0.07 < dropped.mean() <= 0.105


def test_drop_block_at_rate_zero_is_the_identity():
    x = images_of(2, 6, 6, 3)
    np.testing.assert_array_equal(drop(jax.random.key(0), x, rate=0), x)


def test_drop_block_gradient_is_the_scaled_mask():
    x, key = images_of(2, 9, 9, 8), jax.random.key(4)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(drop_block(key, x, rate=0.4))))(x))
    kept = np.asarray(drop(key, x, rate=0.4)) != 0
    np.testing.assert_allclose(gradient, np.where(kept, x.size / kept.sum(), 0), rtol=1e-5)


def test_drop_block_with_nothing_kept_is_zero():
    @jax.jit
    def both(key, x):
        return jax.value_and_grad(lambda x: jnp.sum(drop_block(key, x, rate=0.9)))(x)

    keys = [jax.random.key(seed) for seed in range(10)]
    results = [both(key, jnp.ones((1, 4, 4, 1))) for key in keys]
    dropped = [gradient for result, gradient in results if result == 0]
    assert 5 < len(dropped) < 10
    np.testing.assert_array_equal(dropped, np.zeros((len(dropped), 1, 4, 4, 1)))


def test_drop_block_keeps_bfloat16_and_scales_it_exactly():
    x = jnp.full((4, 10, 10, 64), 1.0, jnp.bfloat16)
    result = drop(jax.random.key(0), x, rate=0.1)
    assert result.dtype == jnp.bfloat16
    kept = np.asarray(result, np.float32) > 0
    want = jnp.asarray(x.size / kept.sum(), jnp.bfloat16)
    assert (np.asarray(result)[kept] == want).all()


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (
            np.ones((4, 4, 3), np.float32),
            {"rate": 0.1},
            r"x: want floats of shape \[b, h, w, k\], got float32 of shape",
        ),
        (np.ones((1, 4, 4, 3), np.int32), {"rate": 0.1}, "x: want floats of shape .* got int32"),
        (np.ones((1, 4, 4, 3), np.float32), {"rate": 1}, r"rate: want a share in \[0, 1\), got 1"),
        (np.ones((1, 4, 4, 3), np.float32), {"rate": float("nan")}, r"rate: want a share in \[0, 1\), got nan"),
        (np.ones((1, 4, 4, 3), np.float32), {"rate": 0.1, "size": 0}, "size: want a positive integer, got 0"),
    ],
)
def test_drop_block_names_what_is_wrong(x, options, message):
    with pytest.raises(ValueError, match=message):
        drop_block(jax.random.key(0), x, **options)
