"""Tiny-ImageNet: real 64 x 64 photographs with one box each (a subset of ILSVRC, from Stanford's CS231n course).

    python train.py --config=configs/tiny_imagenet.py:metric,core20 --workdir=runs/tiny_imagenet/metric \
        --config.data.manual_dir=<folder with tiny-imagenet-200 or its archive>

The argument is `objective[,classes]`: "metric" or "softmax"; "core20" picks twenty classes, nothing takes all classes
that the folder holds. `--config.data.classes=` picks others: ids with commas, or a .txt or .json file of them.

A stem of stride 2 without a max-pool and a last stage of stride 1 keep the feature map at 8 x 8.
docs/results/tiny_imagenet.md has commands, run times and figures.
"""

import ml_collections
from ml_collections import config_dict

CORE20 = (
    "n01855672",
    "n02099601",
    "n02206856",
    "n02233338",
    "n02699494",
    "n02769748",
    "n02843684",
    "n03126707",
    "n03388043",
    "n03424325",
    "n03854065",
    "n03930313",
    "n03976657",
    "n03977966",
    "n03983396",
    "n03992509",
    "n04417672",
    "n04501370",
    "n07583066",
    "n07749582",
)


def get_config(argument: str = "metric") -> ml_collections.ConfigDict:
    """Plain values; every key is read."""
    objective, _, classes = argument.partition(",")
    if classes not in ("", "core20"):
        raise ValueError(f"configs/tiny_imagenet.py: unknown classes {classes!r}; name core20 or none")
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            objective=objective,
            model=dict(name="resnet18", stem="stride2", width=32, last_stride=1),
            data=dict(name="tiny_imagenet", manual_dir="", classes=",".join(CORE20) if classes else ""),
            input=dict(
                train_split="train[:95%]",
                tune_split="train[95%:]",
                eval_split="validation",
                image_size=64,
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                augmentation=dict(kind="random_resized_crop", scale=(0.35, 1.0), ratio=(0.75, 1.333), flip=True),
                num_workers=0,
            ),
            batch=64,
            accumulate=1,
            epochs=12.0,
            optimizer=dict(
                name="adamw",
                learning_rate=3e-3,
                warmup_epochs=1.0,
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
            log_every=20,
            profile=0,
            checkpoint=dict(every_steps=200, keep=2, validation_images=200),
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
