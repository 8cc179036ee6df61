"""A run's folder and configuration: what is checked before any work, and what a later run must agree with."""

import json
from pathlib import Path

import ml_collections

from distcam_jax.files import write_atomically


def flatten(values: dict, prefix: str = "") -> dict:
    """Nested dicts to one, with names such as "model.width"."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


_POSITIVE = (
    "batch",
    "accumulate",
    "epochs",
    "log_every",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "input.image_size",
    "evaluate.batch",
)
_NOT_NEGATIVE = ("profile", "checkpoint.validation_images")


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuses a configuration that lacks a key or whose counts are out of range; a ValueError names the key."""
    values = flatten(config.to_dict())
    for name in (*_POSITIVE, *_NOT_NEGATIVE, "average", "sharding", "evaluate.checkpoint", "evaluate.center_crop"):
        if name not in values:
            raise ValueError(f"the configuration has no key {name}; it was made for another version of this package")
    for name in _POSITIVE:
        value = values[name]  # an image size may be a height and a width
        if not all(side > 0 for side in (value if isinstance(value, tuple | list) else [value])):
            raise ValueError(f"config.{name} must be positive, got {value}")
    for name in _NOT_NEGATIVE:
        if values[name] < 0:
            raise ValueError(f"config.{name} must be 0 or more, got {values[name]}")
    if not 0 <= values["average"] < 1:
        raise ValueError(f"config.average must lie in [0, 1), got {values['average']}")
    if values["evaluate.checkpoint"] not in ("latest", "best"):
        raise ValueError(f"config.evaluate.checkpoint must be latest or best, got {values['evaluate.checkpoint']!r}")


# What may differ between runs that share a folder: none of it changes what the run computes, though `evaluate.search`
# is what the accuracy of a checkpoint rests on.
_FREE_KEYS = (
    "checkpoint",
    "log_every",
    "profile",
    "sharding",
    "evaluate",
    "data.data_dir",
    "data.manual_dir",
    "input.eval_split",
    "input.gallery_split",
    "input.num_workers",
)


def check_workdir(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Checks that a folder's run, if it holds one, has this configuration.

    Args:
      config: see `configs/`.
      workdir: the run's folder.

    Raises:
      ValueError: when it has another; names the keys that differ. Where data lie, how often a checkpoint is written
        and how the run is evaluated may differ.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        return
    there, here = flatten(json.loads(path.read_text())), flatten(json.loads(json.dumps(config.to_dict())))
    differ = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name) and not name.startswith(_FREE_KEYS)
    ]
    if differ:
        raise ValueError(
            f"{workdir} holds a run of another configuration ({'; '.join(differ)}); choose another --workdir"
        )


def has_begun(workdir: str | Path) -> bool:
    """Whether a folder holds a run that has saved anything."""
    folder = Path(workdir) / "checkpoints"
    return folder.is_dir() and any(folder.iterdir())


def claim_workdir(config: ml_collections.ConfigDict, workdir: str | Path) -> Path:
    """Makes a run's folder and writes the configuration into it, unless both are there and fit."""
    check_workdir(config, workdir)
    path = Path(workdir) / "config.json"
    if not path.is_file():
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text))
    return Path(workdir)


def data_options(config: ml_collections.ConfigDict) -> dict:
    """What the configuration says of the data, without where this machine keeps them; of lists of classes, the name."""
    options = {name: value for name, value in config.data.items() if name not in ("data_dir", "manual_dir")}
    return {
        name: Path(value).name if isinstance(value, str) and value.endswith((".json", ".txt")) else value
        for name, value in options.items()
    }


def load_run_config(workdir: str | Path) -> ml_collections.ConfigDict:
    """The configuration that training wrote into a run's folder.

    Args:
        workdir: the run's folder.

    Returns:
        The configuration.

    Raises:
        ValueError: when there is none.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} is no run of train.py: it holds no config.json")
    return ml_collections.ConfigDict(json.loads(path.read_text()))


def load_comparable_run(workdir: str | Path, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration of a run whose figures are to stand beside others of the same data.

    Args:
        workdir: the run's folder.
        config: of the evaluation; says which data, and which checkpoint is loaded.

    Returns:
        The run's configuration.

    Raises:
        ValueError: when the folder holds no run, one of another version, or one of other data.
    """
    made = load_run_config(workdir)
    try:
        check_config(made)
    except ValueError as error:
        raise ValueError(f"{workdir}: {error}") from error
    made.evaluate.checkpoint = config.evaluate.checkpoint
    there, here = (json.dumps(data_options(one), sort_keys=True) for one in (made, config))  # tuples are lists there
    if there != here:
        raise ValueError(
            f"{workdir} was trained on other data than this configuration's; only runs on the same data compare"
        )
    return made
