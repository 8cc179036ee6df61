"""Evaluations of many networks, by the task that a configuration names."""

from collections.abc import Callable, Mapping
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
    task = config.get("task")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    folder = Path(output or f"runs/{task}")
    metrics = TASKS[task](config, folder)
    print(f"\nfigures: {folder}/metrics.json")
    return metrics


def refuse_flags(config: ml_collections.ConfigDict, flags: Mapping[str, object]) -> None:
    """Refuses flags that a task would pass over in silence: it takes its networks from the configuration.

    Args:
        config: with a key `task`, see `configs/`.
        flags: name to value, of those that are meant for the evaluation of one network.

    Raises:
        ValueError: when one of them was given, that is, is neither None nor empty.

    Examples:
        >>> refuse_flags(ml_collections.ConfigDict({"task": "table1"}), {"weights": None, "compare": []})
        >>> refuse_flags(ml_collections.ConfigDict({"task": "table1"}), {"weights": "a.pth", "compare": []})
        Traceback (most recent call last):
        ...
        ValueError: --weights means nothing to the task table1, whose networks the configuration names; leave it out
    """
    given = [f"--{name}" for name, value in flags.items() if value]
    if not given:
        return
    mean, them = ("means", "it") if len(given) == 1 else ("mean", "them")
    place = ", and name the folder of the results with --output" if "--workdir" in given else ""
    raise ValueError(
        f"{', '.join(given)} {mean} nothing to the task {config.task}, whose networks the configuration names; "
        f"leave {them} out{place}"
    )
