"""Heatmap methods bound to a trained network and its prototypes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from distcam_jax.evaluators.network import Network
from distcam_jax.evaluators.rows import read_labels
from distcam_jax.input_pipeline import Rows, Source
from distcam_jax.methods import METHODS, Context, Method, nearest_samples
from distcam_jax.prototypes import Prototypes


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Pooled features of training samples, for the methods that compare with a sample and not with a prototype.

    Attributes:
        embeddings: `[n, k]`.
        labels: class of each `[n]`.
    """

    embeddings: np.ndarray
    labels: np.ndarray


def check_names(names: Sequence[str]) -> None:
    """Refuses names that no method has; a ValueError lists those that one has."""
    for name in names:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}; choose some of {', '.join(METHODS)}")


def choose_methods(
    names: Sequence[str],
    network: Network,
    *,
    samples: Samples | None = None,
    norm: str = "sum",
    eps: float = 0.1,
    whitened: bool = False,
) -> dict[str, Method]:
    """The methods that a network has all for, with the options of its evaluation.

    Args:
        names: of `METHODS`, in the order of the tables.
        network: from `load_network`; without a linear layer it has no CAM.
        samples: training samples; None leaves out the methods that need them.
        norm: normalisation of Dist-CAM's reciprocal weights.
        eps: of Dist-CAM's reciprocal weights; the literal Eq. 5 keeps its own.
        whitened: whether `bind_methods` will be given a whitening; False leaves out the methods that need it.

    Returns:
        Name to method.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    check_names(names)
    missing = {"transferred"}
    if network.class_weights is None:
        missing.add("class_weights")
    if samples is None:
        missing.add("neighbors")
    if not whitened:
        missing.add("whitening")
    chosen = {name: METHODS[name] for name in names if not missing.intersection(METHODS[name].needs)}
    options = {"dist_cam": {"norm": norm, "eps": eps}, "dist_cam_literal": {"norm": norm}}
    options["dist_cam_nearest"] = options["dist_cam"]
    return {
        name: dataclasses.replace(method, function=functools.partial(method.function, **options.get(name, {})))
        for name, method in chosen.items()
    }


MapFunction = Callable[[Float[Array, "b h w k"], Int[Array | np.ndarray, "b m"]], dict[str, Array]]


def bind_methods(
    methods: Mapping[str, Method],
    network: Network,
    prototypes: Prototypes,
    *,
    samples: Samples | None = None,
    whitening: Float[np.ndarray, "k k"] | None = None,
) -> MapFunction:
    """One function from features and asked classes to the heatmaps of all methods, compiled for the network's devices.

    Args:
        methods: of `choose_methods`, or any others of the same kind.
        network: whose features they explain.
        prototypes: its class prototypes. Classes without samples are nobody's rivals; their own maps are another's.
        samples: training samples, where a method needs `neighbors`.
        whitening: of `within_class_precision`, where a method needs it.

    Returns:
        A function of pre-pool features `[b, h, w, k]` and classes `[b, m]` to `{name: maps [b, m, h, w]}` on the
        devices, in the order of `methods`.
    """
    present, position = present_classes(prototypes)
    linear = None if network.class_weights is None else network.class_weights[present]
    rows = {"prototypes": prototypes.prototypes[present], "class_weights": linear, "whitening": whitening}
    wanted = {field for method in methods.values() for field in method.needs}
    given = None
    if samples and "neighbors" in wanted:
        kept = prototypes.counts[samples.labels] > 0  # a sample of another class is nobody's neighbour
        given = (samples.embeddings, np.where(kept, position[samples.labels], -1))

    def local(features, classes, rows, given):
        neighbors = None
        if given is not None:
            _, neighbors = nearest_samples(features.mean(axis=(1, 2)), classes, *given)
        context = Context(classes, rows["prototypes"], rows["class_weights"], neighbors, whitening=rows["whitening"])
        return {name: method(features, context) for name, method in methods.items()}

    batch, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        local, mesh=network.mesh, in_specs=(batch, batch, whole, whole), out_specs=batch, check_vma=False
    )
    compiled = jax.jit(sharded)

    def maps(features, classes) -> dict[str, Any]:
        values = compiled(features, position[np.asarray(classes)], rows, given)
        return {name: values[name] for name in methods}  # jit sorts a dict by name

    return maps


@dataclasses.dataclass(frozen=True, eq=False)
class Explained:
    """A network with all that its heatmaps need.

    Attributes:
        network: from `load_network`.
        prototypes: its class prototypes.
        methods: of `choose_methods`.
        maps: of `bind_methods`.
        tuned: each method's threshold, from `tune_thresholds`.
    """

    network: Network
    prototypes: Prototypes
    methods: Mapping[str, Method]
    maps: MapFunction
    tuned: Mapping[str, float] = dataclasses.field(default_factory=dict)


def present_classes(prototypes: Prototypes) -> tuple[np.ndarray, np.ndarray]:
    """The classes that have training samples `[p]`, and the position of each class among them `[c]`."""
    present = np.flatnonzero(prototypes.counts)
    position = np.zeros(len(prototypes.counts), np.int32)
    position[present] = np.arange(len(present))
    return present, position


def collect_samples(
    network: Network,
    source: Source,
    *,
    batch: int,
    per_class: int | None = None,
    counts: Int[np.ndarray, " c"] | None = None,
    seed: int = 0,
) -> Samples:
    """Pooled features of training images, at most `per_class` of each class, drawn at random.

    Args:
        network: from `load_network`.
        source: of training examples.
        batch: images a step.
        per_class: None takes all.
        counts: images of each class in the source; given, labels are read only until all samples are found, and
            classes with a count of 0 are left out.
        seed: of the draw.

    Returns:
        The samples, in the order of the source.
    """
    if per_class is not None and counts is not None:
        source = Rows(source, find_rows(source, np.minimum(counts, per_class), seed))
    elif per_class is not None:
        source = Rows(source, sample_rows(read_labels(source), per_class, seed))
    embeddings, labels = [], []
    batches = network.batches(source, batch=batch)
    for one in tqdm(batches, f"samples of the {network.name} network", len(batches), unit="batch", leave=False):
        real = np.flatnonzero(one["mask"])
        embeddings.append(np.asarray(network(one["image"])[1]["embedding"])[real])
        labels.append(one["label"][real])
    return Samples(np.concatenate(embeddings), np.concatenate(labels))


def sample_rows(labels: Int[np.ndarray, " n"], per_class: int, seed: int) -> Int[np.ndarray, " m"]:
    """Rows of at most `per_class` samples of each class, drawn without replacement, in order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])  # within the class
    return np.sort(order[place < per_class])


def find_rows(source: Source, wanted: Int[np.ndarray, " c"], seed: int) -> Int[np.ndarray, " m"]:
    """The rows of `sample_rows`, where it is known how many of each class are wanted.

    Labels are read in the order of the draw and only until all are found: of ILSVRC's 1.3 million training images some
    45,000 for 20 of each class.

    Args:
        source: of examples.
        wanted: samples of each class `[c]`, at most as many as the source has; where it has fewer, all is read.
        seed: of the draw.

    Returns:
        Rows, in order.

    Examples:
        >>> labels = [0, 1, 1, 0, 1, 1]
        >>> find_rows([{"label": label} for label in labels], np.array([2, 2]), seed=1).tolist()
        [0, 2, 3, 4]
        >>> sample_rows(np.array(labels), 2, seed=1).tolist()
        [0, 2, 3, 4]
    """
    left, rows = np.array(wanted), []
    for row in np.random.default_rng(seed).permutation(len(source)).tolist():
        if not left.any():
            break
        label = source[row]["label"]
        if left[label]:
            left[label] -= 1
            rows.append(row)
    return np.sort(np.array(rows, np.int64))
