"""How the queries of few-shot episodes are told: the rows of the tables, and the options that they come from."""

import dataclasses

import ml_collections

from distcam_jax import fewshot
from distcam_jax.evaluators.explain import check_names
from distcam_jax.evaluators.whitening import whitening_options

_LEAST = {"ways": 2, "queries": 1, "episodes": 2, "shown_episodes": 0, "shown_queries": 0}
_FURTHER = ("shots", "distances", "temperature", "controls", "methods")
_TITLES = {"l1": "L1", "l2": "L2", "cosine": "cosine"}


@dataclasses.dataclass(frozen=True)
class Decision:
    """How the queries of an episode are told.

    Attributes:
        title: for tables.
        metric: distance to the prototypes.
        rectified: whether the queries rectify the prototypes and are shifted (transductive).
        centred: whether the mean of the training classes is taken off and every feature has unit length.
    """

    title: str
    metric: str
    rectified: bool = False
    centred: bool = False


def decisions_of(distances: tuple[str, ...]) -> dict[str, Decision]:
    """The rows of the tables: prototypes in each distance, the same centred, and rectified prototypes.

    Args:
        distances: of `distcam_jax.fewshot.METRICS`.

    Returns:
        Name to decision.

    Examples:
        >>> list(decisions_of(("l1",)))
        ['l1', 'l1_centred', 'rectified', 'rectified_centred']
    """
    rows = {}
    for metric in distances:
        title = f"prototypes, {_TITLES[metric]}"
        rows[metric] = Decision(title, metric)
        rows[f"{metric}_centred"] = Decision(f"{title}, centred", metric, centred=True)
    rows["rectified"] = Decision("rectified, cosine", "cosine", rectified=True)
    rows["rectified_centred"] = Decision("rectified, cosine, centred", "cosine", rectified=True, centred=True)
    return rows


def check_fewshot_options(options: ml_collections.ConfigDict) -> None:
    """Refuses options of a few-shot evaluation that are missing, unknown or out of range.

    Args:
        options: `config.evaluate`, see `configs/mini_imagenet.py`.

    Raises:
        ValueError: names the key.
    """
    for name in (*_LEAST, *_FURTHER):
        if name not in options:
            raise ValueError(f"the configuration has no key evaluate.{name}; it was made for another version")
    values = {name: (options[name], least) for name, least in _LEAST.items()}
    values |= {f"shots[{place}]": (shots, 1) for place, shots in enumerate(options.shots)}
    for name, (value, least) in values.items():
        if value < least:
            raise ValueError(f"config.evaluate.{name} must be at least {least}, got {value}")
    if not options.shots:
        raise ValueError("config.evaluate.shots is empty; name the numbers of supports a class, such as (1, 5)")
    if not options.distances:
        raise ValueError(f"config.evaluate.distances is empty; name some of {', '.join(fewshot.METRICS)}")
    for name in options.distances:
        if name not in fewshot.METRICS:
            raise ValueError(f"config.evaluate.distances: got {name!r}, choose some of {', '.join(fewshot.METRICS)}")
    if not options.temperature > 0:
        raise ValueError(f"config.evaluate.temperature must be positive, got {options.temperature}")
    check_names(options.methods)
    if not options.methods:
        raise ValueError("config.evaluate.methods is empty; name some for the report, such as ('dist_cam',)")
    whitening_options(options)
