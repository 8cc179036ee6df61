"""The quickstart's configuration, so small that it trains and evaluates in seconds."""

import ml_collections

from configs.quickstart import get_config

_NECK = {"loss": "batch_hard_triplet", "distance": "l2", "margin": 0.3, "weight": 0.7, "center": 0.01}


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


def neck_config(objective="neck", **changes):
    config = tiny_config("metric")
    with config.unlocked():
        config.objective = objective
        config.neck = {**_NECK, "center_learning_rate": 0.5}
        config.sampler = {"classes": 4, "images": 4}
        config.start = {"run": "", "checkpoint": "latest", "weights": "", "freeze_statistics": False}
        config.metric.projection = 5 if objective == "metric" else 0
        config.evaluate.search = {"space": "neck" if objective == "neck" else "projection", "distance": "cosine"}
    config.update_from_flattened_dict(changes)
    return config
