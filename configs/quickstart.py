"""The quickstart: a small ResNet-18 on the digits that are built in seconds from scikit-learn.

    python train.py --config=configs/quickstart.py:metric --workdir=runs/quickstart/metric
    python evaluate.py --config=configs/quickstart.py:metric --workdir=runs/quickstart/metric

The argument names the objective: "metric" (default; softmax over negative L1 distances to running class means, no
classifier layer once trained) or "softmax" (linear layer, so that CAM is defined). `make demo` runs both;
README.md has the figures.
"""

import ml_collections
from ml_collections import config_dict


def get_config(objective: str = "metric") -> ml_collections.ConfigDict:
    """Plain values; every key is read."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            objective=objective,
            model=dict(name="resnet18", stem="stride2", width=16, last_stride=1),
            data=dict(name="digits"),
            input=dict(
                train_split="train",
                tune_split="validation",
                eval_split="test",
                image_size=64,
                mean=(0.5, 0.5, 0.5),
                std=(0.25, 0.25, 0.25),
                augmentation=dict(kind="pad_crop", padding=4, flip=False),
                num_workers=0,
            ),
            batch=32,
            accumulate=1,
            epochs=3.0,
            optimizer=dict(
                name="adamw",
                learning_rate=3e-3,
                warmup_epochs=0.3,
                momentum=0.9,
                weight_decay=0.05,
                label_smoothing=0.0,
            ),
            metric=dict(
                loss="prototypes",
                prototypes="running_means",
                auxiliary=1.0,
                scale=1.0,
                memory=40.0,
                distance="l1",
                margin=config_dict.placeholder(float),  # the loss's published one
            ),
            average=0.0,
            sharding="replicated",
            log_every=10,
            profile=0,
            checkpoint=dict(every_steps=50, keep=2, validation_images=200),
            evaluate=dict(
                batch=100,
                methods=(
                    "cam",
                    "dist_cam",
                    "dist_cam_literal",
                    "contrastive",
                    "intersection",
                    "mahalanobis",
                    "uniform",
                ),
                protocols=(),
                norm="sum",
                eps=0.1,
                whitening_samples=100,  # training images of each class, for the covariance of Mahalanobis CAM
                whitening_ridge=1.0,
                samples_per_class=0,
                resamples=2000,
                cases=8,
                explorer=200,
                checkpoint="latest",
                center_crop=False,
            ),
        )
    )
