"""Which images the report shows, and their heatmaps."""

import numpy as np

from distcam_jax.datasets import Dataset
from distcam_jax.evaluators.explain import Explained
from distcam_jax.evaluators.localize import Localization, ilsvrc_protocol, threshold_index
from distcam_jax.evaluators.network import Network, rank_classes
from distcam_jax.geometry import check_size
from distcam_jax.input_pipeline import decode_image, resize_image
from distcam_jax.localization import best_iou, heatmap_to_box
from distcam_jax.methods import METHODS
from distcam_jax.report import Case, Comparison, ComparisonRow, Panel

SHOWN = ("cam", "dist_cam", "contrastive", "intersection", "mahalanobis")


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


def read_examples(data: Dataset, indices: np.ndarray) -> tuple[list[dict], list[np.ndarray]]:
    """Examples at positions in the source, and their pictures."""
    examples = [data.source[int(index)] for index in indices]
    return examples, [decode_image(example["image"], example["file_name"]) for example in examples]


def run_network(network: Network, pictures: list[np.ndarray]):
    """Output and features of a few pictures, padded to what the devices take."""
    size = check_size(network.config.input.image_size)
    no_boxes = np.zeros((0, 4), np.float32)
    images = np.stack([resize_image(picture, no_boxes, size)[0] for picture in pictures])
    padding = -len(images) % network.mesh.size
    images = np.concatenate([images, np.zeros((padding, *images.shape[1:]), images.dtype)])
    return network(images.astype(np.float32) / np.float32(255))


def maps_of(explained: Explained, features, classes: np.ndarray) -> dict[str, np.ndarray]:
    """Maps `[n, m, h, w]` of every method, for classes `[n, m]`."""
    padded = np.zeros((len(features["pre_pool"]), classes.shape[1]), np.int32)
    padded[: len(classes)] = classes
    maps = explained.maps(features["pre_pool"], padded)
    return {name: np.asarray(value)[: len(classes)] for name, value in maps.items()}


def shown_maps(
    explained: list[Explained], pictures: list[np.ndarray], features, classes: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, float]]:
    """What the report shows of pictures: the first network's maps of `SHOWN`, and CAM of the first that has one.

    Args:
        explained: the evaluated network, then those it is compared with.
        pictures: n of them.
        features: the first network's, of these pictures.
        classes: asked about each `[n, m]`.

    Returns:
        Method to maps `[n, m, h, w]`, to title, and to tuned threshold.
    """
    maps = maps_of(explained[0], features, classes)
    titles, thresholds = {name: METHODS[name].title for name in maps}, dict(explained[0].tuned)
    for other in explained[1:]:
        if "cam" not in maps and "cam" in other.methods:
            maps["cam"] = maps_of(other, run_network(other.network, pictures)[1], classes)["cam"]
            titles["cam"], thresholds["cam"] = f"CAM, {other.network.name} network", other.tuned["cam"]
    return {name: maps[name] for name in SHOWN if name in maps}, titles, thresholds


def make_cases(data: Dataset, explained: list[Explained], indices: np.ndarray) -> list[Case]:
    """Chosen images with the maps of their true class.

    Args:
        data: the split.
        explained: the evaluated network, then those it is compared with. CAM comes from the first one that has a linear
            layer, the other maps from the first network.
        indices: positions in the source.

    Returns:
        One case an index.
    """
    examples, pictures = read_examples(data, indices)
    labels = np.array([[example["label"]] for example in examples])
    first = explained[0].network
    output, features = run_network(first, pictures)
    decisions, distances = rank_classes(first, explained[0].prototypes, output, features["embedding"])
    maps, titles, thresholds = shown_maps(explained, pictures, features, labels)
    protocol = ilsvrc_protocol(first.config.input.image_size)
    cases = []
    for row, (example, picture) in enumerate(zip(examples, pictures, strict=True)):
        panels = {}
        for name, values in maps.items():
            heatmap = values[row, 0]
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


def make_comparisons(data: Dataset, explained: Explained, measured: Localization, *, count: int) -> list[Comparison]:
    """A few images against their classes' prototypes, as Fig. 3 of the paper, by Dist-CAM and its three extensions.

    Args:
        data: the split.
        explained: whose maps.
        measured: one pass over the split, to choose from.
        count: images, of as many different classes; the columns are these classes.

    Returns:
        One comparison a method, of the same images.
    """
    iou = measured.right_iou["dist_cam"].max(axis=1)
    right = measured.decisions["nearest"][:, 0] == measured.labels
    order = np.argsort(-(iou + right), kind="stable")
    _, firsts = np.unique(measured.labels[order], return_index=True)
    rows = order[np.sort(firsts)[:count]]
    classes = np.sort(measured.labels[rows])
    examples, pictures = read_examples(data, measured.index[rows])
    output, features = run_network(explained.network, pictures)
    _, distances = rank_classes(explained.network, explained.prototypes, output, features["embedding"])
    maps = maps_of(explained, features, np.tile(classes, (len(rows), 1)))
    texts = {
        "dist_cam": "Distances are L1, of pooled features. The maps of a row share one colour scale.",
        "contrastive": "Weights are the mean class's channel distance minus the class's own; they may be negative.",
        "intersection": "Weights are the share of a channel that the class's prototype has too, less the mean class's.",
        "mahalanobis": "Weights are the class's prototype less those of near rivals, times the inverse covariance "
        "within the classes; they may be negative.",
    }
    return [
        Comparison(
            title=METHODS[name].title,
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
        if name in maps
    ]
