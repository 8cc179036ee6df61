"""The quickstart's configuration, so small that it trains and evaluates in seconds."""

import ml_collections

from configs.quickstart import get_config


def tiny_config(objective="metric", **changes) -> ml_collections.ConfigDict:
    config = get_config(objective)
    config.model.update(width=4, dtype="float32")
    config.data.update(train_size=64, validation_size=20, test_size=20)
    config.input.image_size = 32
    config.input.augmentation.padding = 2
    config.batch = 16
    config.epochs = 2.0
    config.optimizer.update(name="sgd", learning_rate=0.05, warmup_epochs=0.5, weight_decay=1e-4)
    config.log_every = 2
    config.checkpoint.update(every_steps=3, validation_images=0)
    config.evaluate.update(batch=16, resamples=100, cases=2, explorer=4)
    config.update_from_flattened_dict(changes)
    return config
