"""Evaluations by what their configuration asks for: a task over many networks, or one network in one of three ways."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ml_collections

from distcam_jax.evaluators.ablations import ablations
from distcam_jax.evaluators.explanations import explanations
from distcam_jax.evaluators.fewshot import evaluate_fewshot
from distcam_jax.evaluators.retrieval import evaluate_retrieval
from distcam_jax.evaluators.run import evaluate
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


def evaluate_run(
    config: ml_collections.ConfigDict,
    workdir: str | Path | None,
    *,
    output: str | Path | None = None,
    compare: Sequence[str | Path] = (),
    prototypes: str | Path | None = None,
    weights: str | Path | None = None,
) -> dict:
    """Evaluates one network as its configuration says: by episodes, by a search, or by classification and localisation.

    Args:
        config: see `configs/`; few-shot where `evaluate` draws episodes, retrieval where it has a search.
        workdir: the run's folder; None for published weights.
        output: where the results go.
        compare: folders of further runs on the same data.
        prototypes: a prototypes file instead of a pass over the training images.
        weights: what `load_torch_weights` takes, instead of a run.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: when runs, data, files and flags do not belong together.
    """
    if "search" in config.evaluate:
        if workdir is None or weights:
            raise ValueError("retrieval evaluation takes the folder of a run, --workdir; leave --weights out")
        return evaluate_retrieval(config, workdir, output=output, compare=compare, prototypes=prototypes)
    if "episodes" not in config.evaluate:
        return evaluate(config, workdir, output=output, compare=compare, prototypes=prototypes, weights=weights)
    if workdir is None or weights or prototypes:
        raise ValueError("few-shot evaluation takes the folder of a run, --workdir; leave --weights, --prototypes out")
    return evaluate_fewshot(config, workdir, output=output, compare=compare)


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
