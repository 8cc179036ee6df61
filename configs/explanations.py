"""How good explanations are, measured on trained networks: localisation, dependence on the class asked, faithfulness.

    python evaluate.py --config=configs/explanations.py:choose --output=runs/explanations/choose \
        --config.data.manual_dir=<folder with tiny-imagenet-200 or its archive>

The networks are those that configs/ablations.py trains, in `config.runs`. The argument is one of

* `choose`: many candidates, on the validation images of sixteen classes;
* `report`: what was chosen and its rivals, on those of twenty other classes;
* `sanity`: of two networks, how alike the maps stay where parameters become random part by part, from the head to the
  stem (Adebayo et al., NeurIPS 2018), beside deletion and insertion on twice as many images as in `report`. A map that
  explains a network must change with its parameters;
* `demo`: the same check on the two networks of `make demo`, in minutes and without any download.

`--config.classes=` takes others, `--config.networks="('name',)"` too. What was measured of a network is kept in the
output's folder `pieces`, so that a command that was stopped goes on. docs/method.md tells what came out.
"""

import math

import ml_collections

VAL16 = (
    "n01882714",
    "n02814533",
    "n02950826",
    "n02999410",
    "n03444034",
    "n03447447",
    "n04067472",
    "n04074963",
    "n04133789",
    "n04328186",
    "n04371430",
    "n04376876",
    "n04465501",
    "n04532670",
    "n04596742",
    "n07715103",
)
NOVEL20 = (
    "n01768244",
    "n01774750",
    "n02085620",
    "n02123394",
    "n02125311",
    "n02321529",
    "n02666196",
    "n02730930",
    "n02795169",
    "n02892201",
    "n02906734",
    "n03042490",
    "n03404251",
    "n03617480",
    "n03891332",
    "n04118538",
    "n04179913",
    "n07711569",
    "n09246464",
    "n09332890",
)
# Of the first two everything was chosen; the others are trained from other seeds, and a DenseNet.
REPORTED = (
    "softmax_0",
    "metric_0",
    "softmax_1",
    "metric_1",
    "softmax_2",
    "metric_2",
    "densenet_softmax_0",
    "densenet_metric_0",
)
METHODS = (
    "cam",
    "dist_cam",
    "dist_cam_literal",
    "contrastive",
    "intersection",
    "mahalanobis",
    "uniform",
    "energy",
    "grad_cam",
    "grad_cam_pp",
    "grad_cam_l1",
    "grad_cam_cosine",
    "decomposition_cosine",
    "decomposition_l2",
)

# Weights e_k^c - (1 - base) sum_c' pi_c' e_k^c' for five measures of evidence e, see distcam_jax/methods/margins.py.
CANDIDATES = (
    dict(name="intersection, base 0.05", evidence="intersection", base=0.05),
    dict(name="intersection, base 0.1", evidence="intersection", base=0.1),
    dict(name="intersection, base 0.2", evidence="intersection", base=0.2),
    dict(name="intersection, base 1", evidence="intersection", base=1.0),
    dict(name="intersection, temperature 1", evidence="intersection", temperature=1.0),
    dict(name="intersection, temperature 2", evidence="intersection", temperature=2.0),
    dict(name="intersection, temperature 1, base 0.1", evidence="intersection", temperature=1.0, base=0.1),
    dict(name="intersection, temperature 2, base 0.05", evidence="intersection", temperature=2.0, base=0.05),
    dict(name="intersection over spread", evidence="intersection", spread=True),
    dict(name="distance, near rivals", evidence="distance", temperature=0.5, uniform=0.5),
    dict(name="distance, near rivals, over spread", evidence="distance", temperature=0.5, uniform=0.5, spread=True),
    dict(name="distance over spread", evidence="distance", spread=True),
    dict(name="gradient", evidence="gradient", temperature=math.inf),
    dict(name="difference", evidence="difference", temperature=math.inf),
    dict(name="difference, near rivals", evidence="difference", temperature=0.5, uniform=0.5),
    dict(name="difference over spread", evidence="difference", spread=True),
    dict(name="difference, temperature 1", evidence="difference", temperature=1.0),
    dict(name="whitened difference", evidence="whitened", temperature=math.inf),
    dict(name="whitened difference, temperature 1", evidence="whitened", temperature=1.0),
)


def get_config(argument: str = "report") -> ml_collections.ConfigDict:
    """Plain values; every key is read."""
    if argument not in ("choose", "report", "sanity", "demo"):
        raise ValueError(f"configs/explanations.py: got {argument!r}, want choose, report, sanity or demo")
    choose, sanity = argument == "choose", argument in ("sanity", "demo")
    config = ml_collections.ConfigDict(
        dict(
            task="explanations",
            seed=0,
            runs="runs/ablations",
            networks=REPORTED if argument == "report" else ("softmax_0", "metric_0"),
            data=dict(name="tiny_imagenet", manual_dir="", classes=""),
            classes=VAL16 if choose else NOVEL20,
            evaluate=dict(
                batch=100,
                methods=METHODS,
                margins=CANDIDATES if choose else (),
                norm="sum",
                eps=0.1,
                whitening_samples=100,  # training images of each class
                whitening_ridge=1.0,
                resamples=2000,
                localize=not sanity,
                pairs=0 if sanity else 1000,  # 0 leaves them out, as it does with images below
                pair_batch=50,
                faithful=(
                    "cam",
                    "dist_cam",
                    "contrastive",
                    "intersection",
                    "mahalanobis",
                    "uniform",
                    "grad_cam_l1",
                    "decomposition_cosine",
                ),
                faithful_images={"choose": 0, "report": 100}.get(argument, 200),
                faithful_batch=25,
                faithful_steps=16,
                randomized_images=200 if sanity else 0,
                randomized_samples=20,  # training images of each class, for the prototypes of each random network
                checkpoint="latest",
            ),
        )
    )
    if argument == "demo":
        config.update(runs="runs/quickstart", networks=("softmax", "metric"), classes=())
        config.data = dict(name="digits")
    return config
