"""Which images the report shows, and their heatmaps."""

import numpy as np

from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.localize import (
    METHODS,
    Localization,
    ilsvrc_protocol,
    network_maps,
    threshold_index,
)
from distcam_jax.evaluators.network import Network, rank_classes
from distcam_jax.input_pipeline import decode_image, resize_image
from distcam_jax.localization import best_iou, heatmap_to_box
from distcam_jax.prototypes import Prototypes
from distcam_jax.report import Case, Comparison, ComparisonRow, Panel

_SHOWN = ("cam", "dist_cam", "contrastive")


def choose_cases(measured: Localization, threshold: float, *, count: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of the best, the worst and random images by the IoU of the true class's Dist-CAM.

    Args:
        measured: one pass over a split.
        threshold: of the boxes, one of `THRESHOLDS`.
        count: images a group.
        seed: of the random group.

    Returns:
        "best", "worst" and "random" to rows `[count]`, best or worst first.
    """
    iou = measured.right_iou["dist_cam"][:, threshold_index(threshold)]
    order = np.argsort(-iou, kind="stable")
    count = min(count, len(order))
    chosen = np.random.default_rng(seed).choice(len(order), count, replace=False)
    return {"best": order[:count], "worst": order[::-1][:count], "random": np.sort(chosen)}


def _read(data: Dataset, indices: np.ndarray):
    examples = [data.source[int(index)] for index in indices]
    return examples, [decode_image(example["image"], example["file_name"]) for example in examples]


def _features(network: Network, pictures: list[np.ndarray]):
    """Output and features of a few pictures, padded to what the devices take."""
    size = network.config.input.image_size
    no_boxes = np.zeros((0, 4), np.float32)
    images = np.stack([resize_image(picture, no_boxes, (size, size))[0] for picture in pictures])
    padding = -len(images) % network.mesh.size
    images = np.concatenate([images, np.zeros((padding, *images.shape[1:]), images.dtype)])
    return network(images.astype(np.float32) / np.float32(255))


def _maps(network, prototypes, features, classes, options) -> dict[str, np.ndarray]:
    """Maps `[n, m, h, w]` of every method, for classes `[n, m]`."""
    padded = np.zeros((len(features["pre_pool"]), classes.shape[1]), np.int32)
    padded[: len(classes)] = classes
    maps = network_maps(network, prototypes, features["pre_pool"], padded, **options)
    return {name: value[: len(classes)] for name, value in maps.items()}


def make_cases(
    data: Dataset,
    networks: list[tuple[Network, Prototypes, dict[str, float]]],
    indices: np.ndarray,
    *,
    norm: str,
    eps: float,
) -> list[Case]:
    """Chosen images with CAM, Dist-CAM and contrastive Dist-CAM of their true class.

    Args:
        data: the split.
        networks: the evaluated network with its prototypes and tuned thresholds, then those it is compared with. CAM
            comes from the first one that has a linear layer, the other maps from the first network.
        indices: positions in the source.
        norm: normalisation of the reciprocal weights.
        eps: of the reciprocal weights.

    Returns:
        One case an index.
    """
    options = {"norm": norm, "eps": eps}
    examples, pictures = _read(data, indices)
    labels = np.array([[example["label"]] for example in examples])
    first, prototypes, tuned = networks[0]
    output, features = _features(first, pictures)
    decisions, distances = rank_classes(first, prototypes, output, features["embedding"])
    maps, titles = _maps(first, prototypes, features, labels, options), dict(METHODS)
    thresholds = dict(tuned)
    for network, others, other_tuned in networks[1:]:
        if "cam" not in maps and network.class_weights is not None:
            maps["cam"] = _maps(network, others, _features(network, pictures)[1], labels, options)["cam"]
            titles["cam"], thresholds["cam"] = f"CAM, {network.name} network", other_tuned["cam"]
    protocol = ilsvrc_protocol(first.config.input.image_size)
    cases = []
    for row, (example, picture) in enumerate(zip(examples, pictures, strict=True)):
        panels = {}
        for name in (name for name in _SHOWN if name in maps):
            heatmap = maps[name][row, 0]
            box = heatmap_to_box(heatmap, picture.shape[1::-1], threshold=thresholds[name], protocol=protocol)
            panels[name] = Panel(titles[name], heatmap, box=box, iou=best_iou(box, example["boxes"]))
        cases.append(
            Case(
                image=picture,
                panels=list(panels.values()),
                file_name=example["file_name"],
                predicted_class=data.class_names[decisions["nearest"][row, 0]],
                true_class=data.class_names[labels[row, 0]],
                distance=float(distances[row].min()),
                iou=panels["dist_cam"].iou,
                true_boxes=example["boxes"],
            )
        )
    return cases


def make_comparisons(
    data: Dataset,
    network: Network,
    prototypes: Prototypes,
    measured: Localization,
    *,
    count: int,
    norm: str,
    eps: float,
) -> list[Comparison]:
    """A few images against their classes' prototypes, as Fig. 3 of the paper: by Dist-CAM and by the contrastive form.

    Args:
        data: the split.
        network: whose maps.
        prototypes: its prototypes.
        measured: one pass over the split, to choose from.
        count: images, of as many different classes; the columns are these classes.
        norm: normalisation of the reciprocal weights.
        eps: of the reciprocal weights.

    Returns:
        Two comparisons of the same images.
    """
    iou = measured.right_iou["dist_cam"].max(axis=1)
    right = measured.decisions["nearest"][:, 0] == measured.labels
    order = np.argsort(-(iou + right), kind="stable")
    _, firsts = np.unique(measured.labels[order], return_index=True)
    rows = order[np.sort(firsts)[:count]]
    classes = np.sort(measured.labels[rows])
    examples, pictures = _read(data, measured.index[rows])
    output, features = _features(network, pictures)
    _, distances = rank_classes(network, prototypes, output, features["embedding"])
    maps = _maps(network, prototypes, features, np.tile(classes, (len(rows), 1)), {"norm": norm, "eps": eps})
    texts = {
        "dist_cam": "Distances are L1, of pooled features. The maps of a row share one colour scale.",
        "contrastive": "Weights are the mean class's channel distance minus the class's own; they may be negative.",
    }
    return [
        Comparison(
            title=METHODS[name],
            text=text,
            class_names=[data.class_names[c] for c in classes],
            rows=[
                ComparisonRow(
                    image=picture,
                    heatmaps=maps[name][row],
                    distances=distances[row, classes],
                    file_name=example["file_name"],
                    true_class=data.class_names[example["label"]],
                )
                for row, (example, picture) in enumerate(zip(examples, pictures, strict=True))
            ],
            shared_scale=True,
        )
        for name, text in texts.items()
    ]
