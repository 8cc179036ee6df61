"""Class prototypes (Eq. 7) of a whole training set: computed in one streamed pass, kept in one portable file.

The file is plain safetensors, so that whoever publishes a model can publish its prototypes and spare everybody the
pass over the training images. It carries a hash of the weights it was made with; another model's file is refused.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distcam_jax.files import write_atomically

_FORMAT = "distcam_jax prototypes 1"


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """Class prototypes and what they belong to.

    Attributes:
        prototypes: mean embeddings `[c, k]`; zero for a class without samples.
        counts: training samples of each class `[c]`.
        class_names: readable names, c of them.
        preprocessing: how images became the network's input (size, resize, mean, std).
        weights_hash: `hash_weights` of the network.

    Raises:
        ValueError: when shapes, types and the number of names do not fit each other.
    """

    prototypes: Float[np.ndarray, "c k"]
    counts: Int[np.ndarray, " c"]
    class_names: tuple[str, ...]
    preprocessing: dict
    weights_hash: str

    def __post_init__(self):
        shape, kind = np.shape(self.prototypes), self.prototypes.dtype.kind
        if len(shape) != 2 or kind != "f":
            raise ValueError(f"prototypes must be floats of shape [c, k], got {self.prototypes.dtype} of shape {shape}")
        if self.counts.shape != shape[:1] or self.counts.dtype.kind not in "iu" or len(self.class_names) != shape[0]:
            raise ValueError(
                f"counts must be {shape[0]} integers and class_names as many names, got {self.counts.dtype} of shape "
                f"{self.counts.shape} and {len(self.class_names)} names"
            )

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all.

        Args:
            path: usually `prototypes.safetensors` in the run's folder; the folder is made.
        """
        metadata = {
            "format": _FORMAT,
            "class_names": json.dumps(self.class_names),
            "preprocessing": json.dumps(self.preprocessing, sort_keys=True),
            "weights_hash": self.weights_hash,
        }
        # safetensors writes an array's memory as it lies, whatever its order.
        arrays = {"prototypes": np.ascontiguousarray(self.prototypes), "counts": np.ascontiguousarray(self.counts)}
        write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))


def load_prototypes(
    path: str | Path,
    *,
    weights_hash: str | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: dict | None = None,
) -> Prototypes:
    """Reads a prototypes file and refuses one that does not fit.

    Args:
        path: a file of `Prototypes.save`.
        weights_hash: the network's `hash_weights`; None skips this check.
        class_names: the data set's names; None skips this check.
        preprocessing: the configuration's; None skips this check.

    Returns:
        The prototypes.

    Raises:
        ValueError: when the file is broken, of another format, or does not fit; says in what.
        FileNotFoundError: when there is no such file.

    Examples:
        >>> import tempfile
        >>> made = Prototypes(np.ones((2, 3), np.float32), np.array([4, 5]), ("cat", "dog"), {"image_size": 64}, "ab12")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made.save(f"{folder}/prototypes.safetensors")
        ...     loaded = load_prototypes(f"{folder}/prototypes.safetensors", weights_hash="ab12")
        >>> loaded.class_names, loaded.counts.tolist()
        (('cat', 'dog'), [4, 5])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no prototypes file {path}; give another path or compute the prototypes")
    loaded = _read(path)
    expected = {
        "weights_hash": weights_hash,
        "class_names": None if class_names is None else tuple(class_names),
        "preprocessing": None if preprocessing is None else json.loads(json.dumps(preprocessing)),
    }
    for name, value in expected.items():
        if value is not None and value != getattr(loaded, name):
            raise ValueError(
                f"{path} does not fit this model: its {name} is {_short(getattr(loaded, name))}, wanted "
                f"{_short(value)}; remove the file to compute the prototypes again"
            )
    return loaded


def _read(path: Path) -> Prototypes:
    """Reads a file of this format; a ValueError of one line names the file and the mend."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(
                    f"{path} is not a prototypes file (format {metadata.get('format')!r}, wanted {_FORMAT!r}); give "
                    "another path or compute the prototypes"
                )
            arrays = {name: file.get_tensor(name) for name in ("prototypes", "counts")}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole prototypes file ({error}); remove the file to compute the prototypes again"
        ) from None
    try:
        return Prototypes(
            prototypes=arrays["prototypes"],
            counts=arrays["counts"],
            class_names=tuple(json.loads(metadata["class_names"])),
            preprocessing=json.loads(metadata["preprocessing"]),
            weights_hash=metadata["weights_hash"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is a broken prototypes file ({error}); remove the file to compute the prototypes again"
        ) from None


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def hash_weights(state) -> str:
    """SHA-256 of a network's parameters and statistics, its head left out: what the embedding depends on.

    Args:
        state: every parameter and statistic of the model: the `nnx.State` of `nnx.split`, or its nested dicts.

    Returns:
        64 hexadecimal digits. They depend on names, types, shapes and values, not on the order of the names.

    Examples:
        >>> one, other = ({"conv": {"kernel": np.ones(2)}, "head": {"kernel": np.full(2, x)}} for x in (0.0, 1.0))
        >>> hash_weights(one) == hash_weights(other)
        True
        >>> hash_weights({"conv": {"kernel": np.zeros(2)}}) == hash_weights(one)
        False
    """
    # flax marks the variable behind a leaf by ".value" at the end of its path; the hash is of the plain names.
    leaves = {
        jax.tree_util.keystr(path).removesuffix(".value"): leaf for path, leaf in jax.tree.leaves_with_path(state)
    }
    digest = hashlib.sha256()
    for path in sorted(leaves):
        if path.startswith("['head']"):
            continue
        array = np.asarray(jax.device_get(leaves[path]))
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def compute_prototypes(
    embed: Callable[[np.ndarray], Float[np.ndarray, "b k"]],
    batches: Iterable[dict[str, np.ndarray]],
    num_classes: int,
) -> tuple[Float[np.ndarray, "c k"], Int[np.ndarray, " c"]]:
    """Mean embedding of every class over a stream of batches (Eq. 7); sums are kept in float64.

    Args:
        embed: images `[b, h, w, 3]` in [0, 1] to embeddings `[b, k]`.
        batches: dicts with "image", "label" `[b]` and "mask" `[b]` (False marks padding).
        num_classes: classes c, at least 1.

    Returns:
        Prototypes `[c, k]` in float32 and counts `[c]`; zero and 0 for a class without images.

    Raises:
        ValueError: when there is no image at all, a label is outside [0, c), or an embedding is not finite.

    Examples:
        >>> batch = {"image": np.ones((2, 1, 1, 3)), "label": np.array([1, 1]), "mask": np.array([True, False])}
        >>> prototypes, counts = compute_prototypes(lambda images: images.sum((1, 2)), [batch], 2)
        >>> prototypes.tolist(), counts.tolist()
        ([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], [0, 1])
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    sums, counts = None, np.zeros(num_classes, np.int64)
    for batch in batches:
        mask = np.asarray(batch["mask"], bool)  # whole numbers would pick rows instead of masking them
        embeddings = np.asarray(embed(batch["image"]), np.float64)[mask]
        labels = np.asarray(batch["label"])[mask]
        if ((labels < 0) | (labels >= num_classes)).any():
            raise ValueError(f"labels must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}")
        if not np.isfinite(embeddings).all():
            raise ValueError("an embedding is not finite; the network's weights or an image hold NaN or Inf")
        if sums is None:
            sums = np.zeros((num_classes, embeddings.shape[1]))
        np.add.at(sums, labels, embeddings)
        counts += np.bincount(labels, minlength=num_classes)
    if sums is None or not counts.sum():
        raise ValueError("prototypes need at least one training image, got none")
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32), counts
