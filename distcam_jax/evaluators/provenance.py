"""Where figures come from: date, machine, versions, configuration; and how they are written."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import jax
import ml_collections

from distcam_jax import runs
from distcam_jax.files import write_atomically

_PACKAGES = (
    "jax",
    "flax",
    "optax",
    "grain",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "numpy",
    "opencv-python-headless",
)


def provenance(config: ml_collections.ConfigDict, *, intervals: str | None = None) -> dict:
    """What every `metrics.json` starts with.

    Args:
        config: of the evaluation; has `seed` and, for the default intervals, `evaluate.resamples`.
        intervals: how they are made; by default by a bootstrap over images.

    Returns:
        Date, machine, versions, seed, configuration and how intervals are made, as JSON takes them.
    """
    if intervals is None:
        intervals = f"95 %, percentile bootstrap over images, {config.evaluate.resamples} resamples"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine_name(),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _PACKAGES},
        "seed": config.seed,
        "config": portable(config),
        "intervals": intervals,
    }


def machine_name() -> str:
    """The processor's name, its cores, and the devices that JAX computes on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores; {jax.device_count()} x {jax.devices()[0].device_kind}"


def portable(config: ml_collections.ConfigDict) -> dict:
    """The configuration without where this machine keeps its data, and of folders of networks the name alone."""
    folders: dict = {name: Path(config[name]).name for name in ("runs", "weights") if name in config}
    if "start" in config:
        names = {key: Path(config.start[key]).name for key in ("run", "weights") if key in config.start}
        folders["start"] = config.start.to_dict() | names
    return config.to_dict() | {"data": runs.data_options(config)} | folders


def write_text(path: Path, text: str) -> None:
    """Writes a text file that is there whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n"))
