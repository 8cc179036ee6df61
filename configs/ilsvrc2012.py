"""ILSVRC 2012: the six backbones of the paper's Table 1, with a softmax layer and without.

    python train.py    --config=configs/ilsvrc2012.py:resnet50,softmax --workdir=runs/r50_softmax \
        --config.data.manual_dir=<folder of the official files>
    python evaluate.py --config=configs/ilsvrc2012.py:resnet50,metric --workdir=runs/r50_metric \
        --compare=runs/r50_softmax

The argument is `backbone,objective[,smoke]`. `smoke` is the same path in small, to see that everything is in place: a
network of width 16 at 64 x 64 pixels, one epoch of one percent of the images. docs/scaling.md tells how to run on many
devices. Nothing on this page has been run at full size by us yet; what is expected comes from the sources below.

| backbone | top-1 expected of softmax, one central crop, % |
|---|---|
| resnet18 | 69.8 |
| resnet50 | 76.3 to 76.7 (flax's example, from which the recipe comes); 76.1 (torchvision) |
| resnet101 | 77.4 |
| densenet161 | 77.1 |
| densenet169 | 75.6 |
| densenet201 | 76.9 |

Those without another source are torchvision's (its page of models, weights IMAGENET1K_V1). For the metric objective
nobody has published the top-1 of these networks by the nearest class mean in L1.

Where each value comes from:

* batch, learning rate, momentum, warm-up, weight decay, epochs: Goyal et al., "Accurate, Large Minibatch SGD", 2017,
  Sect. 5.1: 0.1 for 256 images, in proportion for other batches (`--config.batch=2048
  --config.optimizer.learning_rate=0.8`), Nesterov momentum 0.9, five epochs of warm-up, decay 1e-4, the last scale of
  each residual block zero at the start. DenseNets were trained with the same rate, momentum and decay (Huang et al.,
  CVPR 2017, Sect. 4.2).
* a cosine in the place of steps, and 100 epochs: flax's ImageNet example; Loshchilov and Hutter, ICLR 2017.
* no decay of biases and scales: flax's example; He et al., "Bag of Tricks for Image Classification", CVPR 2019.
* random resized crops of 8 to 100 % of the area, flips: Szegedy et al., CVPR 2015.
* bfloat16 with float32 weights, statistics and sums: flax's example (its `half_precision` on TPU).
* DenseNets compute their blocks again for the gradient: Pleiss et al., "Memory-Efficient Implementation of DenseNets",
  2017.
* metric: the objective of docs/results/objectives.md; its values were chosen on Tiny-ImageNet, not on this data.

The last percent of the training images is held out: it tunes thresholds and picks the best checkpoint.
"""

import ml_collections
from ml_collections import config_dict

BACKBONES = ("resnet18", "resnet50", "resnet101", "densenet161", "densenet169", "densenet201")
OBJECTIVES = ("softmax", "metric")


def get_config(argument: str = "resnet50,metric") -> ml_collections.ConfigDict:
    """Plain values; every key is read."""
    backbone, objective, smoke = _parse(argument)
    config = ml_collections.ConfigDict(
        dict(
            seed=0,
            objective=objective,
            model=dict(
                name=backbone,
                stem="imagenet",
                width=96 if backbone == "densenet161" else 64,
                last_stride=2,
                dtype="bfloat16",
                remat=backbone.startswith("densenet"),
            ),
            data=dict(name="ilsvrc2012", manual_dir=""),
            input=dict(
                train_split="train[:99%]",
                tune_split="train[99%:]",
                eval_split="validation",
                image_size=224,
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                augmentation=dict(kind="random_resized_crop", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True),
                num_workers=16,
            ),
            batch=256,
            accumulate=1,
            epochs=100.0,
            optimizer=dict(
                name="sgd",
                learning_rate=0.1,
                warmup_epochs=5.0,
                momentum=0.9,
                weight_decay=1e-4,
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
            log_every=100,
            profile=0,
            checkpoint=dict(every_steps=1000, keep=2, validation_images=5000),
            evaluate=dict(
                batch=256,
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
                # Training images of each class, for the covariance of Mahalanobis CAM: 20,000 that are run through the
                # network, two in five of a pass over the validation images, among some 45,000 whose labels are read.
                whitening_samples=20,
                whitening_ridge=1.0,
                samples_per_class=0,
                resamples=2000,
                cases=8,
                explorer=500,
                checkpoint="latest",
                center_crop=True,
            ),
        )
    )
    if smoke:
        _shrink(config)
    return config


def _parse(argument: str) -> tuple[str, str, bool]:
    """The parts of the argument; a ValueError lists what may stand there."""
    parts = argument.split(",")
    fits = len(parts) in (2, 3) and parts[0] in BACKBONES and parts[1] in OBJECTIVES and parts[2:] in ([], ["smoke"])
    if not fits:
        raise ValueError(
            f"configs/ilsvrc2012.py: got {argument!r}, want backbone,objective[,smoke] with a backbone of "
            f"{', '.join(BACKBONES)} and an objective of {', '.join(OBJECTIVES)}"
        )
    return parts[0], parts[1], len(parts) == 3


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.model.update(width=16, stem="stride2", dtype="float32")
    config.input.update(
        train_split="train[:1%]", tune_split="train[1%:2%]", eval_split="validation[:2%]", image_size=64, num_workers=0
    )
    config.update(batch=32, epochs=1.0, log_every=10)
    config.optimizer.update(warmup_epochs=0.2, learning_rate=0.0125)
    config.checkpoint.update(every_steps=50, validation_images=200)
    config.evaluate.update(batch=64, resamples=200)
