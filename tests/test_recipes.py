"""The recipes of configs/ilsvrc2012.py, configs/cub200.py and configs/market1501.py."""

import numpy as np
import pytest
from flax import nnx

from configs import cub200, ilsvrc2012, market1501
from distcam_jax import runs, training
from distcam_jax.augmentations import check_augmentation
from distcam_jax.evaluators.retrieval_options import check_retrieval_options
from distcam_jax.models import MODELS, check_search_space

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


@pytest.mark.parametrize(
    ("recipe", "argument", "channels"),
    [
        *((cub200, loss, 2048) for loss in cub200.LOSSES),
        (cub200, "multi_similarity,stand_in", 256),
        (cub200, "contrastive,image_folder", 2048),
        (market1501, "", 2048),
        (market1501, "pedestrians", 128),
    ],
)
def test_recipe_of_retrieval_searches_a_space_of_its_network(recipe, argument, channels):
    config = recipe.get_config(argument)
    runs.check_config(config)
    check_retrieval_options(config.evaluate)
    check_augmentation(config.input.augmentation.to_dict())
    model = nnx.eval_shape(lambda: training.build_model(config, 100))
    check_search_space(model, config.evaluate.search.space)
    assert model.embedding_size == channels
    assert config.batch == config.sampler.classes * config.sampler.images
