"""A configuration that trains and evaluates in seconds."""

import ml_collections


def tiny_config(objective="metric", **changes):
    config = ml_collections.ConfigDict(
        dict(
            seed=0,
            objective=objective,
            model=dict(name="resnet18", stem="stride2", width=4, last_stride=1),
            data=dict(name="digits", train_size=64, validation_size=20, test_size=20),
            input=dict(
                train_split="train",
                tune_split="validation",
                eval_split="test",
                image_size=32,
                mean=(0.5, 0.5, 0.5),
                std=(0.25, 0.25, 0.25),
                augmentation=dict(kind="pad_crop", padding=2, flip=False),
                num_workers=0,
            ),
            batch=16,
            epochs=2.0,
            optimizer=dict(
                name="sgd", learning_rate=0.05, warmup_epochs=0.5, momentum=0.9, weight_decay=1e-4, label_smoothing=0.0
            ),
            metric=dict(prototypes="running_means", auxiliary=1.0, scale=1.0, memory=40.0),
            log_every=2,
            checkpoint=dict(every_steps=3, keep=2),
            evaluate=dict(batch=16, norm="sum", eps=0.1, resamples=100, cases=2),
        )
    )
    config.update_from_flattened_dict(changes)
    return config
