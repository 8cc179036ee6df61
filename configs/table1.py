"""The paper's Table 1: CAM and Dist-CAM of six backbones on the validation images of ILSVRC 2012, in one command.

    python evaluate.py --config=configs/table1.py --output=runs/table1 --config.data.manual_dir=<folder of ILSVRC> \
        --config.weights=<folder of weights files> --config.runs=<folder of runs>

For each backbone three networks are looked for; what is not given is shown as "not given":

* imported softmax weights: `<weights>/<backbone>.safetensors` (or .pth, .pt, .bin);
* a softmax run of train.py: the folder `<runs>/<backbone>_softmax`;
* a metric run of train.py: the folder `<runs>/<backbone>_metric`.

`--config.networks.<backbone>.weights=` names another file or a Hub id, `.softmax=` and `.metric=` other folders. The
argument `stand_in` is the same path on Tiny-ImageNet, with the settings of `configs/tiny_imagenet.py` and small
networks: `--config=configs/table1.py:stand_in`. Its figures are none of ImageNet. docs/table1.md has all commands.

We could not get the text of the paper's Table 1 (Shen et al., ICIG 2021, doi 10.1007/978-3-030-88013-2_28), only its
abstract. Who has it fills in `paper`, Top-1 localisation errors in percent: `--config.paper.resnet50.cam=<figure>`.
"""

import ml_collections
from ml_collections import config_dict

from configs import tiny_imagenet

BACKBONES = ("resnet18", "resnet50", "resnet101", "densenet161", "densenet169", "densenet201")
ARGUMENTS = ("ilsvrc2012", "stand_in")


def get_config(argument: str = "ilsvrc2012") -> ml_collections.ConfigDict:
    """Plain values; every key is read."""
    if argument not in ARGUMENTS:
        raise ValueError(f"configs/table1.py: got {argument!r}, want one of {', '.join(ARGUMENTS)}")
    config = ml_collections.ConfigDict(
        dict(
            task="table1",
            seed=0,
            backbones=BACKBONES,
            weights="",
            runs="",
            # The width is that of imported weights; a run knows its own.
            networks={
                name: dict(weights="", softmax="", metric="", width=96 if name == "densenet161" else 64)
                for name in BACKBONES
            },
            paper={
                name: dict(cam=config_dict.placeholder(float), dist_cam=config_dict.placeholder(float))
                for name in BACKBONES
            },
            # Of imported weights too. The last stage at stride 2, as published: maps of 7 x 7 cells.
            model=dict(stem="imagenet", last_stride=2, dtype="float32"),
            data=dict(name="ilsvrc2012", manual_dir=""),
            input=dict(
                train_split="train[:99%]",
                tune_split="train[99%:]",
                eval_split="validation",
                image_size=224,
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                num_workers=16,
            ),
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
                norm="sum",
                eps=0.1,
                # Training images of each class, for the covariance of Mahalanobis CAM: 20,000 that are run through the
                # network, two in five of a pass over the validation images, among some 45,000 whose labels are read.
                whitening_samples=20,
                whitening_ridge=1.0,
                resamples=2000,
                checkpoint="latest",
            ),
        )
    )
    if argument == "stand_in":
        _stand_in(config)
    return config


def _stand_in(config: ml_collections.ConfigDict) -> None:
    """The settings of `configs/tiny_imagenet.py` on all classes that the folder holds, and small widths."""
    small = tiny_imagenet.get_config("softmax")
    config.data = small.data.to_dict()
    # The last stage at stride 1, unlike the paper's networks: with stride 2 maps of 64 pixels would have 4 x 4 cells.
    config.model.update(stem=small.model.stem, last_stride=small.model.last_stride)
    config.input.update({name: small.input[name] for name in config.input})
    config.evaluate.update({name: small.evaluate[name] for name in ("batch", "whitening_samples")})
    for name in config.networks:
        config.networks[name].width = 12 if name == "densenet161" else 8
