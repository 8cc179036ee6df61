"""Ablations: what Dist-CAM's localisation depends on, measured on Tiny-ImageNet, networks included, with one command.

    python evaluate.py --config=configs/ablations.py --output=runs/ablations/out --config.runs=runs/ablations \
        --config.data.manual_dir=<folder with tiny-imagenet-200 or its archive>

Networks that are not there are trained first, one after the other, each into the folder of its name in `config.runs`:
about five and a half hours for all ten on two cores of their own. `--config.train_missing=False` trains none and leaves
those that are missing out of the tables. The command may be killed at any time; the same one goes on.

Each network is configs/tiny_imagenet.py of its objective with ten epochs and the changes of its name.
docs/results/ablations.md tells what is varied.
"""

import ml_collections

from configs import tiny_imagenet

EPOCHS = 10.0
DENSENET = dict(model=dict(name="densenet121", width=8, pre_pool="relu"))  # a step costs two thirds of the ResNet's


def get_config() -> ml_collections.ConfigDict:
    """Plain values; every key is read."""
    base = {objective: tiny_imagenet.get_config(objective) for objective in ("metric", "softmax")}
    for one in base.values():
        one.epochs = EPOCHS
        del one["data"]  # one for all
    networks = {}
    for objective in base:
        for seed in (0, 1, 2):
            networks[f"{objective}_{seed}"] = _network(objective, 35, seed=seed)
        networks[f"{objective}_0_stride2"] = _network(objective, 30, model=dict(last_stride=2))
        networks[f"densenet_{objective}_0"] = _network(objective, 20, **DENSENET)
    return ml_collections.ConfigDict(
        dict(
            task="ablations",
            seed=0,
            runs="runs/ablations",
            train_missing=True,
            data=dict(name="tiny_imagenet", manual_dir="", classes=""),
            base=base,
            networks=networks,
            # which networks stand in which table
            seeds=("metric_0", "metric_1", "metric_2", "softmax_0", "softmax_1", "softmax_2"),
            varied=("metric_0", "softmax_0"),
            last_stride=(("metric_0", "metric_0_stride2"), ("softmax_0", "softmax_0_stride2")),
            pre_pool=("densenet_metric_0", "densenet_softmax_0"),
            vary=dict(
                norm=("sum", "l2", "max", "minmax"),
                eps=(1e-6, 1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0),
                samples=(1, 5),
                draws=5,
                distance=("l1", "l2", "cosine"),
            ),
            evaluate=dict(batch=100, norm="sum", eps=0.1, resamples=2000),
        )
    )


def _network(objective: str, minutes: int, **changes) -> dict:
    return dict(objective=objective, minutes=minutes, changes=changes)
