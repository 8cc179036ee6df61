"""The recipes of configs/ilsvrc2012.py."""

import numpy as np
import pytest
from flax import nnx

from configs import ilsvrc2012
from distcam_jax import runs, training
from distcam_jax.models import MODELS

BACKBONES = [(name, objective) for name in ilsvrc2012.BACKBONES for objective in ilsvrc2012.OBJECTIVES]


@pytest.mark.parametrize(("backbone", "objective"), BACKBONES)
def test_recipe_builds_its_network_with_the_published_width(backbone, objective):
    config = ilsvrc2012.get_config(f"{backbone},{objective}")
    runs.check_config(config)
    published = {"resnet18": 512, "resnet50": 2048, "resnet101": 2048, "densenet161": 2208, "densenet169": 1664}
    model = nnx.eval_shape(lambda: training.build_model(config, 1000))
    assert model.embedding_size == {**published, "densenet201": 1920}[backbone]
    assert backbone in MODELS
    # 0.1 for 256 images (Goyal et al., 2017), the first steps of five epochs far below.
    schedule = training.learning_rate_schedule(config, 500_000, 5_000)
    np.testing.assert_allclose([schedule(0), schedule(25_000), schedule(500_000)], [0.0, 0.1, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("resnet34,metric", "got 'resnet34,metric', want backbone,objective"),
        ("resnet50", "with a backbone of resnet18"),
    ],
)
def test_recipes_refuse_another_argument(argument, message):
    with pytest.raises(ValueError, match=message):
        ilsvrc2012.get_config(argument)
