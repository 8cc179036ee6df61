"""Few-shot learning on miniImageNet with ResNet-12: whole classification first, then episodes.

    python train.py    --config=configs/mini_imagenet.py:cosine --workdir=runs/mini/cosine \
        --config.data.manual_dir=<folder of the data>
    python train.py    --config=configs/mini_imagenet.py:episodes --workdir=runs/mini/episodes \
        --config.data.manual_dir=<folder of the data> --config.start.run=runs/mini/cosine
    python evaluate.py --config=configs/mini_imagenet.py:episodes --workdir=runs/mini/episodes \
        --config.data.manual_dir=<folder of the data> --compare=runs/mini/cosine

The argument is `objective[,variant]`. Stage 1 is `cosine` (cosine similarities to a vector a class, with a learnt
temperature) or `softmax` (a linear layer): the network learns to tell all training classes apart. Stage 2,
`episodes`, goes on from `start.run`: prototypical loss over several small tasks a step, in the distance
`episodes.distance`. Checkpoints are chosen by the accuracy in episodes of the validation classes, which are others
than those of training; what is reported comes from the test classes, others again. The evaluation draws 10,000
episodes, `--config.input.eval_split=validation` those of the validation classes.

The variant `class_folders` reads images of your own, `--config.data.title=<a name>`, in folders of splits and classes
(`distcam_jax.datasets.class_folders`).

The variant `stand_in` is the same path on Tiny-ImageNet with a narrow network, two cores and an hour; its classes come
from a file of three lists, `--config.data.class_splits=<file>`. docs/fewshot.md has its figures, and published ones of
miniImageNet. Nothing here has been run on miniImageNet itself by us yet.

Where each value comes from:

* 84 x 84 pixels, widths 64-160-320-640, DropBlock: Lee et al., CVPR 2019 (ResNet-12).
* cosine scores with a learnt temperature that starts from 10, SGD with 0.1, decay 5e-4, 100 epochs of batches of 128,
  then 0.001 and four episodes a step: Chen et al., "Meta-Baseline", ICCV 2021. A cosine in the place of its steps.
* L1 as the distance of episodes: the decision that Dist-CAM explains.
* temperature 10 of the rectification: docs/fewshot.md.
"""

import ml_collections

VARIANTS = ("", "class_folders", "stand_in")
OBJECTIVES = ("cosine", "softmax", "episodes")


def get_config(argument: str = "cosine") -> ml_collections.ConfigDict:
    """Plain values; every key is read."""
    objective, _, variant = argument.partition(",")
    if objective not in OBJECTIVES or variant not in VARIANTS:
        raise ValueError(
            f"configs/mini_imagenet.py: got {argument!r}, want objective[,variant] with an objective of "
            f"{', '.join(OBJECTIVES)} and, where wanted, a variant of {', '.join(VARIANTS[1:])}"
        )
    config = ml_collections.ConfigDict(
        dict(
            seed=0,
            objective=objective,
            start=dict(run="", checkpoint="best"),  # weights to start from
            model=dict(name="resnet12", widths=(64, 160, 320, 640), last_stride=2, drop_rate=0.1, dtype="float32"),
            data=dict(name="mini_imagenet", manual_dir=""),
            input=dict(
                train_split="train",
                tune_split="validation",
                eval_split="test",
                image_size=84,
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                augmentation=dict(kind="random_resized_crop", scale=(0.35, 1.0), ratio=(0.75, 1.333), flip=True),
                num_workers=8,
            ),
            batch=128,
            accumulate=1,
            epochs=100.0,
            optimizer=dict(
                name="sgd",
                learning_rate=0.1,
                warmup_epochs=1.0,
                momentum=0.9,
                weight_decay=5e-4,
                label_smoothing=0.0,
            ),
            cosine=dict(scale=10.0),
            episodes=dict(ways=5, shots=1, queries=15, distance="l1", scale=10.0),
            average=0.0,
            sharding="replicated",
            log_every=50,
            profile=0,
            checkpoint=dict(every_steps=300, keep=2, validation_images=9600, validation_episodes=1000),
            evaluate=dict(
                batch=250,
                ways=5,
                shots=(1, 5),
                queries=15,
                episodes=10_000,
                distances=("l1", "l2", "cosine"),
                temperature=10.0,
                controls=True,  # a network with random weights, and pixels
                methods=("dist_cam", "mahalanobis"),
                norm="sum",
                eps=0.1,
                whitening_samples=100,  # training images of each class, for the covariance of Mahalanobis CAM
                whitening_ridge=1.0,
                shown_episodes=4,  # of each number of shots, in the report
                shown_queries=15,
                checkpoint="best",
                center_crop=False,
            ),
        )
    )
    if objective == "episodes":
        config.update(batch=4 * 5 * (1 + 15), epochs=20.0)
        config.optimizer.update(learning_rate=1e-3, warmup_epochs=0.0)
    if variant == "class_folders":
        config.data = dict(name="class_folders", manual_dir="", title="")
    if variant == "stand_in":
        _stand_in(config)
    return config


def _stand_in(config: ml_collections.ConfigDict) -> None:
    """The same path on Tiny-ImageNet, for two cores."""
    config.data = dict(
        name="tiny_imagenet_fewshot", manual_dir="", class_splits="", split_names=("base64", "val16", "novel20")
    )
    config.model.update(widths=(16, 40, 80, 160), drop_rate=0.0)
    config.input.num_workers = 0
    config.update(log_every=20, epochs=2.0 if config.objective == "episodes" else 8.0)
    if config.objective != "episodes":
        config.update(batch=64)
        config.optimizer.update(learning_rate=0.05)
    config.checkpoint.update(every_steps=400, validation_images=2000, validation_episodes=500)
    config.evaluate.whitening_samples = 50
