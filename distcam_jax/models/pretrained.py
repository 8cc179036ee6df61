"""Weights that were trained in torch: from a safetensors file, a torch file or the Hugging Face Hub.

Nothing is unpickled but through torch's own loader of plain weights, and nothing is loaded in part: a model is changed
only after every name, shape and number of the file was checked.
"""

import importlib
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from distcam_jax.checks import one_line
from distcam_jax.models.heads import LinearHead
from distcam_jax.models.weight_names import FAMILIES, known_keys, path_of

HEAD_MODES = ("load", "drop")
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?", re.ASCII)
_HUB_FILE = "model.safetensors"
_LISTED = 8  # names in each list of an error
_CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('{source}', weights_only=True), '{target}')\""
)

# What ends a download, by the name of huggingface_hub's error or of the first class above it that stands here
_HUB_REASONS = {
    "GatedRepoError": "its owner must grant access; ask on its page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "it has no repository of that name, or a private one, which needs `hf auth login`; "
    "check the spelling",
    "RevisionNotFoundError": "the repository has no such revision; check what stands behind the @",
    "LocalEntryNotFoundError": "the Hub cannot be reached and the file is not in the local cache; go online (without "
    "HF_HUB_OFFLINE) or pass a file",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set and the file is not in the local cache; unset it or pass a file",
    "EntryNotFoundError": f"the repository has no {_HUB_FILE}; download its weights and pass the file",
    "HFValidationError": "the Hub does not allow such a name; want owner/name or owner/name@revision",
}


def load_torch_weights(model: nnx.Module, path_or_hub_id: str | os.PathLike, *, head: str = "load") -> None:
    """Fills a model with weights that were trained in torch.

    The names are torchvision's, which timm shares; see `distcam_jax.models.weight_names`. A prefix "module." is left
    out, `num_batches_tracked` is ignored, and a checkpoint may hold its weights under "state_dict" or "model". Every
    variable keeps its type and its sharding.

    Args:
        model: of `distcam_jax.models`; changed in place, and left as it was where anything is wrong. With head="load"
            it may come from `nnx.eval_shape`, which draws no first values.
        path_or_hub_id: a `.safetensors` file; a `.pth`, `.pt` or `.bin` file, which takes torch 2.6 or later; or, where
            there is no such file, the id of a repository on the Hugging Face Hub that has a `model.safetensors`, such
            as "timm/resnet50.tv_in1k" or "timm/resnet50.tv_in1k@main", which takes the package huggingface_hub.
        head: "load" fills the linear head from the file; "drop" ignores the file's classifier and leaves the model's
            head, of whatever kind, as it is.

    Raises:
        ValueError: for an unknown `head`, a model without a linear layer to load into, a file that is broken or of
            another kind, a missing package, and for a file that does not fit the model: then names that only one of
            both has, shapes that differ and tensors with NaN or infinite numbers are counted and listed, eight of each.
        FileNotFoundError: when there is no such file.
        OSError: when a file cannot be read or downloaded.

    Examples:
        >>> from distcam_jax.models import create_model
        >>> model = nnx.eval_shape(lambda: create_model("resnet18", num_classes=1000, rngs=nnx.Rngs(0)))
        >>> load_torch_weights(model, "timm/resnet18.tv_in1k")  # doctest: +SKIP
        >>> load_torch_weights(model, "resnet18.safetensors", head="drop")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no file resnet18.safetensors; check the path
    """
    if head not in HEAD_MODES:
        raise ValueError(f"unknown head {head!r}; choose one of {', '.join(HEAD_MODES)}")
    if head == "load" and not isinstance(own := getattr(model, "head", None), LinearHead):
        raise ValueError(f'head="load" fills a linear head, the model has a {type(own).__name__}; pass head="drop"')
    family = _family(model)
    path = _local_file(path_or_hub_id)
    tensors = _read(path)
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    places = {".".join(map(str, place)): (place, variable) for place, variable in state}
    if head == "drop":
        places = {name: found for name, found in places.items() if not _in_head(name)}
    fit = _fit(family, tensors, {name: variable for name, (_, variable) in places.items()}, head)
    if any(fit[1:]):
        raise ValueError(_message(path, family, fit, tensors))
    filled = {
        place: variable.replace(_placed(fit.values[name], variable)) for name, (place, variable) in places.items()
    }
    nnx.update(model, nnx.from_flat_state(filled))


def _family(model: nnx.Module) -> str:
    for kind in type(model).__mro__:
        if kind.__name__ in FAMILIES:
            return kind.__name__
    raise ValueError(f"no torch names are known for a {type(model).__name__}; model must be a {' or '.join(FAMILIES)}")


def _placed(value: np.ndarray, variable: nnx.Variable) -> jax.Array:
    """The value where the variable's own stands; what jax may move freely stays so."""
    old = variable.get_value()
    stays = old.committed if isinstance(old, jax.Array) else old.sharding is not None
    return jax.device_put(value, old.sharding) if stays else jnp.array(value)


# ---- files


def _local_file(path_or_hub_id: str | os.PathLike) -> Path:
    """The file to read, downloaded where it is on the Hub."""
    path = Path(path_or_hub_id)
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{path} is a folder; pass the weights file in it")
    match = _HUB_ID.fullmatch(path_or_hub_id) if isinstance(path_or_hub_id, str) else None
    if match is None or path.suffix.lower() in SUFFIXES:
        raise FileNotFoundError(f"there is no file {path}; check the path")
    return _downloaded(match[1], match[2])


def _downloaded(repository: str, revision: str | None) -> Path:
    """The file of a repository on the Hub, from the local cache where it is there."""
    hub = _optional("huggingface_hub")
    if hub is None:
        raise ValueError(
            f"there is no file {repository}, and a Hub id takes the package huggingface_hub: "
            "pip install huggingface_hub, or pass a file"
        )
    try:
        return Path(hub.hf_hub_download(repository, _HUB_FILE, revision=revision))
    # huggingface_hub raises its own types, its HTTP library's and OSError, which differ from version to version.
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        reason = next((_HUB_REASONS[name] for name in names if name in _HUB_REASONS), _short(error))
        asked = f"{repository}@{revision}" if revision else repository
        raise OSError(f"there is no file {asked}, and the Hub gives none: {reason}") from error


def _read(path: Path) -> dict[str, np.ndarray]:
    """The file's tensors by their torch keys, without the prefix and the counters of batches."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in {suffix or 'nothing'}; weights are read from {', '.join(SUFFIXES)} files")
    tensors = {}
    for key, tensor in (_read_torch if suffix in TORCH_SUFFIXES else _read_safetensors)(path).items():
        name = key.removeprefix("module.")
        if name in tensors:
            raise ValueError(f"{path} holds {name} twice, with and without the prefix module.; leave one of both out")
        if not name.endswith("num_batches_tracked"):
            tensors[name] = tensor
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({_short(error)}); download or convert it again"
        ) from error
    except (AttributeError, TypeError) as error:  # a type that NumPy lacks
        raise ValueError(f"{path} holds numbers of a type that is not read ({_short(error)}); save float32") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _torch_for(path)
    path.open("rb").close()  # whoever may not read it learns that
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is cut off or holds more than plain weights, which torch refuses to load unseen; "
            "save the model's state_dict() alone"
        ) from error
    # torch raises RuntimeError, OSError, EOFError, KeyError and more for a file that is broken or of another kind.
    except Exception as error:
        raise ValueError(f"{path} is not a whole torch file ({_short(error)}); download or save it again") from error
    for name in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; want a state dict, of tensors by name")
    return {key: _from_torch(path, key, tensor) for key, tensor in loaded.items()}


def _torch_for(path: Path) -> Any:
    """The package torch, where there is one that loads safely."""
    convert = _CONVERT.format(source=path.name, target=path.with_suffix(".safetensors").name)
    torch = _optional("torch")
    if torch is None:
        raise ValueError(
            f"{path} takes torch, which is not installed: install it, or convert the file where it is: {convert}"
        )
    if tuple(map(int, re.findall(r"\d+", str(torch.__version__))[:2])) < (2, 6):
        # CVE-2025-32434: before 2.6 a file could run code in spite of weights_only=True.
        raise ValueError(
            f"{path} takes torch 2.6 or later, which loads weights safely, and this is {torch.__version__}: "
            f"install a later one, or convert the file where it is: {convert}"
        )
    return torch


def _from_torch(path: Path, key, tensor) -> np.ndarray:
    if not isinstance(key, str) or not hasattr(tensor, "detach"):
        raise ValueError(
            f"{path} holds {key!r}, a {type(tensor).__name__}; want a state dict, of tensors by name, alone or under "
            '"state_dict" or "model"'
        )
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _optional(name: str) -> Any:
    """A package, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _short(error: BaseException) -> str:
    text = one_line(error)
    return f"{type(error).__name__}: {text[:150]}" if text else type(error).__name__


# ---- what fits


class _Fit(NamedTuple):
    """A model's values, and what is wrong with a file. Names are torch's but in `values` and `missing`."""

    values: dict[str, np.ndarray]
    unused: list[str]
    missing: list[str]
    misshaped: dict[str, tuple[list[int], list[int]]]  # the file's shape and the model's, in torch's order of axes
    mistyped: list[str]
    infinite: list[str]


def _fit(family: str, tensors: Mapping[str, np.ndarray], variables: Mapping[str, nnx.Variable], head: str) -> _Fit:
    """Matches every tensor of a file with a variable of a model."""
    fit, met = _Fit({}, [], [], {}, [], []), set()
    for key, tensor in tensors.items():
        path, axes = path_of(family, key) or ("", ())
        if head == "drop" and _in_head(path):
            continue
        if path not in variables or path in met:
            fit.unused.append(key)
            continue
        met.add(path)
        shape = variables[path].shape
        want = [shape[axis] for axis in np.argsort(axes)]
        if list(tensor.shape) != want:
            fit.misshaped[key] = (list(tensor.shape), want)
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            fit.mistyped.append(f"{key} ({tensor.dtype})")
        else:
            with np.errstate(over="ignore"):  # what the model's type cannot hold is found below
                value = np.asarray(tensor, variables[path].dtype)
            if not np.isfinite(value).all() or (path.endswith(".var") and (value < 0).any()):
                fit.infinite.append(key)
            fit.values[path] = np.ascontiguousarray(value.transpose(axes))
    fit.missing.extend(path for path in variables if path not in met)
    return fit


def _message(path: Path, family: str, fit: _Fit, keys: Iterable[str]) -> str:
    """All that is wrong with a file, and why that may be."""
    lists = {
        "only in the file": fit.unused,
        "only in the model": fit.missing,
        "of another shape than the model's": [f"{key} {got}, not {want}" for key, (got, want) in fit.misshaped.items()],
        "not of a floating type": fit.mistyped,
        "NaN, infinite or a negative variance": fit.infinite,
    }
    lines = [f"{path} does not fit the {family}" + "".join(f"; {cause}" for cause in _causes(family, fit, keys)) + ":"]
    for title, names in lists.items():
        if names:
            more = f", ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            lines.append(f"  {title} ({len(names)}): {', '.join(names[:_LISTED])}{more}")
    return "\n".join(lines)


def _causes(family: str, fit: _Fit, keys: Iterable[str]) -> Iterator[str]:
    """What is likely wrong, where it can be told."""
    known = known_keys(keys)
    likely = max(known, key=known.__getitem__)
    if known[likely] == 0:
        yield "none of its names is torchvision's or timm's, such as layer1.0.conv1.weight"
        return
    if known[likely] > known[family]:
        yield f"it holds a {likely}"
        return
    shapes = {(path_of(family, key) or ("",))[0]: shapes for key, shapes in fit.misshaped.items()}
    body = [path for path in shapes if not _in_head(path)]
    if fit.unused or not all(map(_in_head, fit.missing)):
        yield "it holds another one, of another depth, stem or kind of block"
    elif body in (["conv1.kernel"], ["conv0.kernel"]) and shapes[body[0]][0][:2] == shapes[body[0]][1][:2]:
        yield "only the stem's kernel differs, so create the model with another `stem`"
    elif body:
        yield "it holds a wider or narrower one"
    if any(map(_in_head, fit.missing)):
        yield 'it holds no classifier: pass head="drop" to keep the model\'s'
    got, want = shapes.get("head.linear.kernel", ([], []))
    if len(got) == 2 and got[0] != want[0]:
        yield f'the file\'s classifier has {got[0]} classes, the model {want[0]}: pass head="drop" to leave it out'


def _in_head(path: str) -> bool:
    return path.startswith("head.")
