"""What a DenseNet's options change; tests/test_golden.py holds its arithmetic against torchvision's."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from distcam_jax.models import create_model
from distcam_jax.models.convolution import compiler_options
from distcam_jax.models.densenet import DenseNet
from tests.network_oracles import assert_keeps_float32_where_it_counts, filled, images_of, run


def small_model(blocks=(2, 1, 1, 2), **options):
    options = {"num_classes": 3, "width": 4, "stem": "small", **options}
    return filled(lambda: DenseNet(blocks, rngs=nnx.Rngs(0), **options))


@pytest.mark.parametrize(
    ("stem", "last_stride", "side", "maps"),
    [
        ("imagenet", 2, (224, 224), (7, 7)),
        ("imagenet", 1, (224, 224), (14, 14)),
        ("imagenet", 2, (225, 255), (7, 8)),  # stem and pool round up, transitions down
        ("imagenet", 2, (32, 33), (1, 1)),
        ("stride2", 1, (64, 64), (8, 8)),
        ("small", 2, (32, 33), (4, 4)),
    ],
)
def test_densenet_maps_shrink_as_torchvisions(stem, last_stride, side, maps):
    options = {"stem": stem, "last_stride": last_stride, "width": 4}
    model = nnx.eval_shape(lambda: create_model("densenet121", num_classes=3, rngs=nnx.Rngs(0), **options))
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, *side, 3), jnp.float32)
    output, features = jax.eval_shape(lambda state, images: nnx.merge(graph, state)(images), state, images)
    assert features["pre_pool"].shape == (2, *maps, model.embedding_size)
    assert features["embedding"].shape == (2, model.embedding_size)
    assert output.shape == (2, 3)


def test_densenet_pre_pool_before_the_relu_leaves_the_output_alone():
    images = images_of(2, 16, 17, 3)
    after, before = small_model(), small_model(pre_pool="norm")
    for model in (after, before):
        model.eval()
    output, features = run(after, images)
    same, signed = run(before, images)
    assert signed["pre_pool"].min() < -0.1
    np.testing.assert_allclose(np.maximum(signed["pre_pool"], 0), features["pre_pool"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(signed["embedding"], np.mean(signed["pre_pool"], (1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(same, output, rtol=1e-5, atol=1e-6)


def test_densenet_in_bfloat16_keeps_float32_where_it_counts():
    assert_keeps_float32_where_it_counts(small_model(dtype="bfloat16"), images_of(2, 16, 16, 3))


def compiled_gradients(remat):
    """Loss, gradients and statistics of a step, compiled as the training step is, and its temporary memory in bytes."""
    graph, params, statistics = nnx.split(small_model((4, 4, 4, 4), remat=remat), nnx.Param, ...)
    images = jnp.asarray(images_of(4, 32, 32, 3))

    def loss(params, statistics):
        model = nnx.merge(graph, params, statistics, copy=True)
        output, _ = model(images)
        return jnp.square(output).sum(), nnx.split(model, nnx.Param, ...)[2]

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=compiler_options())
    compiled = step.lower(params, statistics).compile()
    return jax.device_get(compiled(params, statistics)), compiled.memory_analysis().temp_size_in_bytes


def test_densenet_remat_gives_the_same_step_with_less_memory():
    (kept, kept_bytes), (again, again_bytes) = compiled_gradients(False), compiled_gradients(True)
    for one, two in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4 * max(1, np.abs(one).max()))
    assert again_bytes < 0.7 * kept_bytes


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 5}, "width must be even for a DenseNet"),
        ({"pre_pool": "conv"}, "unknown pre_pool 'conv'; choose one of relu, norm"),
        (
            {"growth": 12},
            "densenet121 has no option 'growth'; choose one of stem, width, last_stride, dtype, remat, pre",
        ),
    ],
)
def test_densenet_names_what_is_wrong_with_an_option(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("densenet121", num_classes=2, rngs=nnx.Rngs(0), **options)
