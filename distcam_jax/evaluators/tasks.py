"""Evaluations of many networks, by the task that a configuration names."""

from collections.abc import Callable
from pathlib import Path

import ml_collections

from distcam_jax.evaluators.ablations import ablations
from distcam_jax.evaluators.explanations import explanations
from distcam_jax.evaluators.table1 import table1

TASKS: dict[str, Callable[[ml_collections.ConfigDict, Path], dict]] = {
    "ablations": ablations,
    "explanations": explanations,
    "table1": table1,
}


def run_task(config: ml_collections.ConfigDict, output: str | Path | None = None) -> dict:
    """Runs the task of a configuration.

    Args:
        config: with a key `task`, see `configs/`.
        output: folder of the results; by default `runs/` and the task's name.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: for an unknown task; lists the known ones.
    """
    if config.task not in TASKS:
        raise ValueError(f"unknown task {config.task!r}; choose one of {', '.join(TASKS)}")
    folder = Path(output or f"runs/{config.task}")
    metrics = TASKS[config.task](config, folder)
    print(f"\nfigures: {folder}/metrics.json")
    return metrics
