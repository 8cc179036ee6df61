"""What torch calls each number of a network, as data: torchvision's names, which timm shares, against our paths.

A rule turns the key of a torch module into the path of ours. Convolutions go from [o, i, h, w] to [h, w, i, o], linear
layers from [o, i] to [i, o]; torch counts stages, dense blocks and dense layers from one.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

Leaves = dict[str, tuple[str, tuple[int, ...]]]  # torch's name: ours, and the order of torch's axes in ours

CONV: Leaves = {"weight": ("kernel", (2, 3, 1, 0))}
LINEAR: Leaves = {"weight": ("kernel", (1, 0)), "bias": ("bias", (0,))}
NORM: Leaves = {
    "weight": ("scale", (0,)),
    "bias": ("bias", (0,)),
    "running_mean": ("mean", (0,)),
    "running_var": ("var", (0,)),
}


class Rule(NamedTuple):
    """How modules of one kind are called.

    Attributes:
        key: a regular expression for torch's key up to the last dot; its groups are numbers.
        path: our dotted path, with one {} for each group.
        first: the number that torch's count starts with, for each group; ours starts with 0.
        leaves: what stands behind the last dot; `CONV`, `LINEAR` or `NORM`.
    """

    key: str
    path: str
    first: tuple[int, ...]
    leaves: Leaves


RESNET = (
    Rule(r"conv1", "conv1", (), CONV),
    Rule(r"bn1", "bn1", (), NORM),
    Rule(r"layer([0-9]+)\.([0-9]+)\.conv([1-3])", "stages.{}.{}.conv{}", (1, 0, 0), CONV),
    Rule(r"layer([0-9]+)\.([0-9]+)\.bn([1-3])", "stages.{}.{}.bn{}", (1, 0, 0), NORM),
    Rule(r"layer([0-9]+)\.([0-9]+)\.downsample\.0", "stages.{}.{}.downsample.0", (1, 0), CONV),
    Rule(r"layer([0-9]+)\.([0-9]+)\.downsample\.1", "stages.{}.{}.downsample.1", (1, 0), NORM),
    Rule(r"fc", "head.linear", (), LINEAR),
)

_LAYER = r"features\.denseblock([0-9]+)\.denselayer([0-9]+)"

DENSENET = (
    Rule(r"features\.conv0", "conv0", (), CONV),
    Rule(r"features\.norm0", "norm0", (), NORM),
    # torchvision's published files still hold the names of before its version 0.2: norm.1 for norm1
    Rule(_LAYER + r"\.norm\.?([12])", "blocks.{}.{}.norm{}", (1, 1, 0), NORM),
    Rule(_LAYER + r"\.conv\.?([12])", "blocks.{}.{}.conv{}", (1, 1, 0), CONV),
    Rule(r"features\.transition([0-9]+)\.norm", "transitions.{}.norm", (1,), NORM),
    Rule(r"features\.transition([0-9]+)\.conv", "transitions.{}.conv", (1,), CONV),
    Rule(r"features\.norm5", "norm5", (), NORM),
    Rule(r"classifier", "head.linear", (), LINEAR),
)

# the naming that public few-shot code shares; whoever adds a classifier calls it fc or classifier
RESNET12 = (
    Rule(r"layer([0-9]+)\.0\.conv([1-3])", "stages.{}.conv{}", (1, 0), CONV),
    Rule(r"layer([0-9]+)\.0\.bn([1-3])", "stages.{}.bn{}", (1, 0), NORM),
    Rule(r"layer([0-9]+)\.0\.downsample\.0", "stages.{}.downsample.0", (1,), CONV),
    Rule(r"layer([0-9]+)\.0\.downsample\.1", "stages.{}.downsample.1", (1,), NORM),
    Rule(r"(?:fc|classifier)", "head.linear", (), LINEAR),
)

# by the name of the model's class
FAMILIES = {"ResNet": RESNET, "DenseNet": DENSENET, "ResNet12": RESNET12}


def path_of(family: str, key: str) -> tuple[str, tuple[int, ...]] | None:
    """Finds where a torch tensor goes.

    Args:
        family: one of `FAMILIES`.
        key: torch's, of a state dict.

    Returns:
        The dotted path in our model and the order in which torch's axes stand there (as `np.transpose` takes it), or
        None where the family has no such key.

    Examples:
        >>> path_of("ResNet", "layer1.0.conv2.weight")
        ('stages.0.0.conv2.kernel', (2, 3, 1, 0))
        >>> path_of("DenseNet", "features.denseblock2.denselayer12.norm.1.running_var")
        ('blocks.1.11.norm1.var', (0,))
        >>> path_of("DenseNet", "fc.weight") is None
        True
    """
    module, _, leaf = key.rpartition(".")
    for rule in FAMILIES[family]:
        match = re.fullmatch(rule.key, module)
        if match and leaf in rule.leaves:
            name, axes = rule.leaves[leaf]
            numbers = (int(group) - first for group, first in zip(match.groups(), rule.first, strict=True))
            return f"{rule.path.format(*numbers)}.{name}", axes
    return None


def known_keys(keys: Iterable[str]) -> dict[str, int]:
    """How many of the keys of a state dict each of `FAMILIES` knows.

    Args:
        keys: torch's.

    Examples:
        >>> known_keys(["conv1.weight", "fc.bias"])
        {'ResNet': 2, 'DenseNet': 0, 'ResNet12': 1}
    """
    keys = list(keys)
    return {family: sum(path_of(family, key) is not None for key in keys) for family in FAMILIES}
