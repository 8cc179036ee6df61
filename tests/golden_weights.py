"""What the golden values rest on: the weights, the images and the places that are looked at.

`tools/make_golden.py` gives these weights to torchvision's networks and `test_golden.py` gives them to ours, so neither
a weights file nor torch is needed to compare. Every number follows from a name and a shape. All are drawn uniformly:
NumPy turns random bits into uniform floats without a rounding that could differ between machines.
"""

import hashlib
import re
from collections.abc import Mapping

import numpy as np

MODELS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
)
# Images [b, h, w, 3] in evaluation mode. Halved from stage to stage, the sides of the first stay even until the last
# one, where a border of "SAME" is another than torch's; 75 and 93 are odd in turn, where a side is rounded up or down.
EVALUATION = {"even": (2, 64, 96, 3), "odd": (2, 75, 93, 3)}
# One step of training on an even height and an odd width. Which images, by their name, is chosen so that no ReLU's
# input lies within rounding of zero.
TRAINING = {"resnet18": "images 19", "resnet50": "images 19", "densenet121": "images 13"}
TRAINING_SHAPE = (4, 64, 73, 3)
LABELS = (191, 382, 573, 764)
LEARNING_RATE = 0.1

_BLOCK_OUTPUT = re.compile(r"layer\d\.\d+\.bn[23]\.weight")


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Numbers in `[low, high)`, float32, seeded by the name.

    Examples:
        >>> uniform("bn1.bias", (2,), -1, 1).tolist() == uniform("bn1.bias", (3,), -1, 1)[:2].tolist()
        True
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    numbers = np.random.default_rng(seed).random(shape, np.float32)
    return np.float32(low) + np.float32(high - low) * numbers


def images(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normalised images `[b, h, w, 3]`, float32, of the size that real ones have: within 2 of zero."""
    return uniform(name, shape, -2, 2)


def torch_weight(name: str, shape: tuple[int, ...], *, apart: bool = False) -> np.ndarray:
    """The numbers of one tensor of a torch network, whose activations keep their size through 201 layers.

    Kernels have He's variance 2 / fan-in. No batch-norm tensor holds the values a network starts with: means and biases
    are not zero, variances lie in [0.5, 1.5], and so do scales, but every eighth is 50 times smaller. What a residual
    block adds is halved, or else the sum over 50 blocks would explode.

    Args:
        name: the tensor's key in the state dict.
        shape: in torch's order, kernels `[o, i, s, s]` and linear layers `[c, k]`.
        apart: whether batch-norm biases lie in ±[2.5, 4], so that few inputs of a ReLU are close to zero. One that
            rounding carries across zero moves a gradient by up to 1 %, in torch's own float32 as well.

    Returns:
        Array of the shape asked for, float32; the counter `num_batches_tracked` is an int64 zero.

    Examples:
        >>> torch_weight("bn1.running_var", (64,)).min() >= 0.5
        np.True_
    """
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) > 1:
        bound = np.sqrt((6 if len(shape) == 4 else 3) / np.prod(shape[1:]))  # a uniform's variance is bound² / 3
        return uniform(name, shape, -bound, bound)
    if name.endswith("running_var"):
        return uniform(name, shape, 0.5, 1.5)
    if name.endswith("weight"):
        scale = uniform(name, shape, 0.5, 1.5)
        scale[::8] /= np.float32(50)
        return scale / np.float32(2) if _BLOCK_OUTPUT.fullmatch(name) else scale
    if apart and name.endswith("bias") and not name.startswith(("fc.", "classifier.")):
        # The same signs in every layer: what a block adds to an open channel keeps it open.
        signs = np.where(np.arange(shape[0]) % 2, 1, -1).astype(np.float32)
        return signs * uniform(name, shape, 2.5, 4)
    return uniform(name, shape, -0.3, 0.3)


def torch_weights(shapes: Mapping[str, tuple[int, ...]], *, apart: bool = False) -> dict[str, np.ndarray]:
    """`torch_weight` of every key of a state dict."""
    return {name: torch_weight(name, tuple(shape), apart=apart) for name, shape in shapes.items()}


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """A hash of names, shapes and numbers, that tells a change of NumPy's generator from a wrong network.

    Examples:
        >>> fingerprint({"a": np.zeros(3)}) == fingerprint({"a": np.zeros((3, 1))})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()[:16]


def sample(array: np.ndarray, count: int) -> np.ndarray:
    """Numbers at fixed places all over an array.

    Args:
        array: of any shape.
        count: how many places; some repeat where the array has fewer.

    Returns:
        `[count]`, float64.
    """
    flat = np.asarray(array, np.float64).ravel()
    return flat[np.arange(1, count + 1) * 2_654_435_761 % flat.size]


def summary(array: np.ndarray) -> dict[str, np.ndarray]:
    """What is kept of an output `[b, ..., k]`.

    Returns:
        "sample" `[96]`, "norm" `[b, ...]`, the L2 norm over channels, and "moments": mean and standard deviation.
    """
    array = np.asarray(array, np.float64)
    return {
        "sample": sample(array, 96),
        "norm": np.linalg.norm(array, axis=-1),
        "moments": np.array([array.mean(), array.std()]),
    }
