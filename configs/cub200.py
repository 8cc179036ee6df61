"""Image retrieval on CUB-200-2011 with ResNet-50: trained on birds of 100 species, searched among those of 100 others.

    python train.py    --config=configs/cub200.py:multi_similarity --workdir=runs/cub200 \
        --config.data.manual_dir=<folder of CUB_200_2011> --config.start.weights=<resnet50.safetensors, of ImageNet>
    python evaluate.py --config=configs/cub200.py:multi_similarity --workdir=runs/cub200 \
        --config.data.manual_dir=<folder of CUB_200_2011>

The argument is `loss[,variant]`; every loss compares the images of a batch, which holds 56 classes with two images
each. What is compared, and searched by, is a projection of the pooled features to 128 channels; heatmaps explain the
pooled features, and the evaluation says how often both choose the same neighbour. Without `start.weights` training
starts from random weights, which few birds are too few for.

The variant `image_folder` reads images of your own, a folder for each class, of which the first half trains and the
others are searched; a batch has 8 classes with four images each:

    python train.py    --config=configs/cub200.py:multi_similarity,image_folder --workdir=runs/own \
        --config.data.manual_dir=<folder> --config.data.title=<a name> --config.start.weights=<resnet50.safetensors>

A checkpoint can be chosen by classes that are held out of training: `--config.data.validation_classes=20` (of your own,
`validation_share=0.1`) with `--config.input.tune_split=validation`, `--config.checkpoint.validation_images=10000` and
`--config.evaluate.checkpoint=best`.

The variant `stand_in` is the same path on Tiny-ImageNet with a narrow network, two cores and an hour: no projection, a
classifier's cross-entropy beside the loss, as there are no weights to start from. Its classes come from a file of three
lists, `--config.data.class_splits=<file>`. docs/retrieval.md has its figures. Nothing here has been run on CUB-200-2011
itself by us yet.

Where each value comes from:

* 128 channels, normalisations with the statistics of ImageNet, batches of 112 with two images a class, Adam with 1e-5
  throughout, 150 epochs: Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric
  Learning", ICML 2020; the decay of 4e-4 too. They report the best checkpoint on the test classes, we the last one.
* 224 x 224 pixels; crops of 16 to 100 % of the area, a straight resize in the evaluation: our own choice.
* Recall@{1, 2, 4, 8}, R-precision and MAP@R: Musgrave et al., "A Metric Learning Reality Check", ECCV 2020.
"""

import ml_collections
from ml_collections import config_dict

VARIANTS = ("", "image_folder", "stand_in")
LOSSES = ("multi_similarity", "batch_hard_triplet", "semi_hard_triplet", "contrastive", "n_pair", "nt_xent")


def get_config(argument: str = "multi_similarity") -> ml_collections.ConfigDict:
    """Plain values; every key is read."""
    loss, _, variant = argument.partition(",")
    if loss not in LOSSES or variant not in VARIANTS:
        raise ValueError(
            f"configs/cub200.py: got {argument!r}, want loss[,variant] with a loss of {', '.join(LOSSES)} and, where "
            f"wanted, a variant of {', '.join(VARIANTS[1:])}"
        )
    config = ml_collections.ConfigDict(
        dict(
            seed=0,
            objective="metric",
            start=dict(run="", checkpoint="latest", weights="", freeze_statistics=True),
            model=dict(name="resnet50", stem="imagenet", width=64, last_stride=2, dtype="bfloat16", remat=False),
            data=dict(name="cub200", manual_dir="", validation_classes=0),
            input=dict(
                train_split="train",
                tune_split="train",  # thresholds of boxes
                eval_split="test",
                gallery_split="",  # nothing: every image of eval_split is searched among the others
                image_size=224,
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                augmentation=dict(kind="random_resized_crop", scale=(0.16, 1.0), ratio=(3 / 4, 4 / 3), flip=True),
                num_workers=8,
            ),
            batch=112,
            sampler=dict(classes=56, images=2),
            accumulate=1,
            epochs=150.0,
            optimizer=dict(
                name="adam",
                learning_rate=1e-5,
                schedule="steps",
                milestones=(),  # the rate stays
                step_factor=1.0,
                warmup_epochs=0.0,
                warmup_start=0.0,
                momentum=0.9,
                weight_decay=4e-4,
                label_smoothing=0.0,
            ),
            metric=dict(
                loss=loss,
                projection=128,
                prototypes="running_means",
                auxiliary=0.0,
                scale=1.0,
                memory=40.0,
                distance="squared_l2" if loss == "semi_hard_triplet" else "l2",
                normalize=True,  # unit length before distances, for which the published margins are
                margin=config_dict.placeholder(float),  # the loss's published one
            ),
            average=0.0,
            sharding="replicated",
            log_every=20,
            profile=0,
            checkpoint=dict(every_steps=500, keep=2, validation_images=0),
            evaluate=dict(
                batch=128,
                search=dict(space="projection", distance="cosine"),
                ks=(1, 2, 4, 8),
                controls=True,  # a network with random weights, and pixels
                methods=(
                    "dist_cam",
                    "mahalanobis",
                    "grad_cam_cosine",
                    "decomposition_cosine",
                    "uniform",
                ),
                norm="sum",
                eps=0.1,
                whitening_samples=50,  # training images of each class, for the covariance of Mahalanobis CAM
                whitening_ridge=1.0,
                resamples=2000,
                shown_queries=12,
                shown_matches=5,
                checkpoint="latest",
                center_crop=False,
            ),
        )
    )
    if variant == "image_folder":
        config.data = dict(
            name="image_folder", manual_dir="", title="", train_share=0.5, validation_share=0.0, class_splits=""
        )
        config.batch = 32
        config.sampler.update(classes=8, images=4)
    if variant == "stand_in":
        _stand_in(config)
    return config


def _stand_in(config: ml_collections.ConfigDict) -> None:
    """The same path on Tiny-ImageNet, for two cores."""
    config.data = dict(
        name="tiny_imagenet_fewshot", manual_dir="", class_splits="", split_names=("base64", "val16", "novel20")
    )
    config.start.freeze_statistics = False
    config.model.update(name="resnet18", stem="stride2", width=32, last_stride=1, dtype="float32")
    config.input.update(tune_split="validation", image_size=64, num_workers=0)
    config.input.augmentation.scale = (0.35, 1.0)
    config.update(batch=64, epochs=8.0)
    config.sampler.update(classes=16, images=4)
    config.optimizer.update(
        name="adamw", learning_rate=3e-3, schedule="cosine", warmup_epochs=1.0, weight_decay=0.05, label_smoothing=0.1
    )
    config.metric.update(projection=0, auxiliary=1.0)
    config.checkpoint.update(every_steps=500, validation_images=4000)
    config.evaluate.search.space = "embedding"
    config.evaluate.checkpoint = "best"
