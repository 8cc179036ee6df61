"""The explorer of `write_report`: which images it holds, which classes each is asked about, and their maps."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np

from distcam_jax.report.explorer import Explorer, ExplorerImage, ExplorerMethod
from distcam_jax.report.inputs import ReportInputs

ASKED = 4  # classes an image can be asked about


def make_explorer(
    inputs: ReportInputs,
    distances: np.ndarray,
    make_maps: Callable[[ReportInputs, np.ndarray], dict[str, np.ndarray]],
    *,
    threshold: float,
    limit: int,
    seed: int,
) -> Explorer | None:
    """Makes the explorer: the predicted class's maps first, then those of the true class and of the next nearest.

    Args:
        inputs: the checked arguments of `write_report`.
        distances: of every image to every class `[n, c]`.
        make_maps: from inputs and one class an image `[n]` to maps `[n, h, w]` of every method.
        threshold: from which the user starts.
        limit: the most images to hold; of more, a random sample. 0 leaves the explorer out.
        seed: of the sample.

    Returns:
        The explorer, or None.

    Example:
        >>> from distcam_jax.report.inputs import check_inputs
        >>> inputs = check_inputs(np.zeros((1, 8, 8, 3)), np.ones((1, 2, 2, 1)), np.ones((3, 1)), "abc",
        ...                       None, None, None, None, "NHWC")
        >>> maps = lambda inputs, classes: {"sum": inputs.features.sum(-1)}
        >>> explorer = make_explorer(inputs, np.array([[3.0, 1.0, 2.0]]), maps, threshold=0.2, limit=9, seed=0)
        >>> explorer.images[0].classes
        ['b', 'c', 'a']
    """
    rows = _sample(len(distances), limit, seed)
    if not len(rows):
        return None
    chosen, distances = _rows(inputs, rows), distances[rows]
    asked = asked_classes(distances, chosen.labels)
    by_place = [make_maps(chosen, classes) for classes in asked.T]
    names = _different(inputs.class_names)
    images = [_image(chosen, index, asked[index], distances[index], names) for index in range(len(rows))]
    methods = [
        ExplorerMethod(title, np.stack([maps[title] for maps in by_place], axis=1), threshold) for title in by_place[0]
    ]
    return Explorer(images, methods, start="predicted")


def _sample(n: int, limit: int, seed: int) -> np.ndarray:
    """Returns positions of at most `limit` images, in their order."""
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))


def _rows(inputs: ReportInputs, rows: np.ndarray) -> ReportInputs:
    """Returns the arguments of some images."""
    return dataclasses.replace(
        inputs,
        images=inputs.images[rows],
        features=inputs.features[rows],
        labels=None if inputs.labels is None else inputs.labels[rows],
        boxes=None if inputs.boxes is None else [inputs.boxes[row] for row in rows],
        file_names=[inputs.file_names[row] for row in rows],
    )


def asked_classes(distances: np.ndarray, labels: np.ndarray | None, count: int = ASKED) -> np.ndarray:
    """Chooses the classes that an image can be asked about.

    Args:
        distances: of every image to every class `[n, c]`.
        labels: true classes `[n]`, or None.
        count: how many classes, at least 2.

    Returns:
        Classes `[n, min(count, c)]`, nearest first, among them the true one, if need be as the last.

    Example:
        >>> asked_classes(np.array([[3.0, 1.0, 2.0]]), np.array([0]), 2).tolist()
        [[1, 0]]
    """
    near = np.argsort(distances, axis=1, kind="stable")[:, :count]
    if labels is not None:
        missing = ~(near == labels[:, None]).any(axis=1)
        near[missing, -1] = labels[missing]
    return near


def _different(names: list[str]) -> list[str]:
    """Returns the names, numbered where several classes share one."""
    counts = Counter(names)
    return [f"{name} (class {index})" if counts[name] > 1 else name for index, name in enumerate(names)]


def _image(inputs: ReportInputs, index: int, asked: np.ndarray, distances: np.ndarray, names: list[str]):
    predicted = int(distances.argmin())
    return ExplorerImage(
        picture=inputs.images[index],
        classes=[names[number] for number in asked],
        file_name=inputs.file_names[index],
        true_class=None if inputs.labels is None else names[inputs.labels[index]],
        predicted_class=names[predicted],
        distance=float(distances[predicted]),
        distances=distances[asked],
        true_boxes=None if inputs.boxes is None else inputs.boxes[index],
    )
