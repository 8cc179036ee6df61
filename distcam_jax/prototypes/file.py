"""The prototypes file: plain safetensors, with what its prototypes belong to."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

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
        made_from: which images were averaged; empty where nobody said.

    Raises:
        ValueError: when shapes, types and the number of names do not fit each other.
    """

    prototypes: Float[np.ndarray, "c k"]
    counts: Int[np.ndarray, " c"]
    class_names: tuple[str, ...]
    preprocessing: dict
    weights_hash: str
    made_from: dict = dataclasses.field(default_factory=dict)

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
            "made_from": json.dumps(self.made_from, sort_keys=True),
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
    made_from: dict | None = None,
) -> Prototypes:
    """Reads a prototypes file and refuses one that does not fit.

    Args:
        path: a file of `Prototypes.save`.
        weights_hash: the network's `hash_weights`; None skips this check.
        class_names: the data set's names; None skips this check.
        preprocessing: the configuration's; None skips this check.
        made_from: which images it must be the mean of; None skips this check.

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
        "made_from": None if made_from is None else json.loads(json.dumps(made_from)),
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
            made_from=json.loads(metadata.get("made_from", "{}")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is a broken prototypes file ({error}); remove the file to compute the prototypes again"
        ) from None


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
