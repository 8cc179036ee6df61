"""Person re-identification on Market-1501 with ResNet-50: the "bag of tricks" baseline of Luo et al.

    python train.py    --config=configs/market1501.py --workdir=runs/market1501 \
        --config.data.manual_dir=<folder of Market-1501> --config.start.weights=<resnet50.safetensors, of ImageNet>
    python evaluate.py --config=configs/market1501.py --workdir=runs/market1501 \
        --config.data.manual_dir=<folder of Market-1501>

Published for this recipe: 94.5 % rank-1 and 85.9 % mAP, 95.4 and 94.2 with re-ranking. Nothing here has been run on
Market-1501 itself by us yet.

The argument `pedestrians` is the same path on drawn people, with a narrow network, two cores and some minutes:

    python tools/generate_pedestrians.py <folder>
    python train.py    --config=configs/market1501.py:pedestrians --workdir=runs/pedestrians \
        --config.data.manual_dir=<folder>
    python evaluate.py --config=configs/market1501.py:pedestrians --workdir=runs/pedestrians \
        --config.data.manual_dir=<folder>

A checkpoint can be chosen by persons that are held out of training: `--config.data.validation_identities=100` with
`--config.input.tune_split=validation`, `--config.checkpoint.validation_images=10000` and
`--config.evaluate.checkpoint=best`; cameras are not looked at there.

Where each value comes from: Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", CVPRW
2019, and their code: last stride 1, 256 x 128 pixels, flips, 10 pixels of padding and a crop, random erasing (Zhong et
al., AAAI 2020); 16 persons with four images each; cross-entropy with label smoothing after a neck of batch
normalisation, batch-hard triplet loss and centre loss before it; Adam with coupled decay, a warm-up of ten epochs,
steps after 40 and 70 of 120 epochs; the search by cosine after the neck. Their rate grows by the epoch during the
warm-up, ours by the step; their batches have persons in proportion to their images, ours all persons equally often.
"""

import ml_collections

VARIANTS = ("", "pedestrians")


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Plain values; every key is read."""
    if argument not in VARIANTS:
        raise ValueError(f"configs/market1501.py: got {argument!r}, want pedestrians or nothing")
    config = ml_collections.ConfigDict(
        dict(
            seed=0,
            objective="neck",
            start=dict(run="", checkpoint="latest", weights="", freeze_statistics=False),
            model=dict(name="resnet50", stem="imagenet", width=64, last_stride=1, dtype="bfloat16", remat=False),
            data=dict(name="market1501", manual_dir="", validation_identities=0),
            input=dict(
                train_split="train",
                tune_split="train",
                eval_split="query",
                gallery_split="gallery",
                image_size=(256, 128),
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                augmentation=dict(
                    kind="pad_crop",
                    padding=10,
                    flip=True,
                    # 0.485, 0.456, 0.406 after the normalisation
                    random_erasing=dict(
                        probability=0.5, area=(0.02, 0.4), aspect=(0.3, 10 / 3), fill=(0.596, 0.558, 0.497)
                    ),
                ),
                num_workers=8,
            ),
            batch=64,
            sampler=dict(classes=16, images=4),
            accumulate=1,
            epochs=120.0,
            optimizer=dict(
                name="adam",
                learning_rate=3.5e-4,
                schedule="steps",
                milestones=(40.0, 70.0),
                step_factor=0.1,
                warmup_epochs=10.0,
                warmup_start=0.01,
                momentum=0.9,
                weight_decay=5e-4,
                label_smoothing=0.1,
            ),
            neck=dict(
                loss="batch_hard_triplet",
                distance="l2",
                margin=0.3,
                weight=1.0,
                center=5e-4,
                center_learning_rate=0.5,
            ),
            average=0.0,
            sharding="replicated",
            log_every=20,
            profile=0,
            checkpoint=dict(every_steps=500, keep=2, validation_images=0),
            evaluate=dict(
                batch=128,
                search=dict(space="neck", distance="cosine"),
                ks=(1, 5, 10),
                rerank=dict(k1=20, k2=6, lambda_value=0.3),
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
                whitening_samples=16,  # training images of each person, for the covariance of Mahalanobis CAM
                whitening_ridge=1.0,
                resamples=2000,
                shown_queries=12,
                shown_matches=5,
                checkpoint="latest",
                center_crop=False,
            ),
        )
    )
    if argument:
        _shrink(config)
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    """The same path on drawn people, for two cores."""
    config.data.name = "drawn_pedestrians"
    config.model.update(name="resnet18", stem="stride2", width=16, dtype="float32")
    config.input.update(image_size=(128, 64), num_workers=0)
    config.input.augmentation.padding = 5
    config.update(epochs=24.0, log_every=10)
    config.optimizer.update(learning_rate=2e-3, warmup_epochs=2.0, milestones=(12.0, 18.0))
