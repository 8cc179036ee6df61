"""The inverse covariance of pooled features that Mahalanobis CAM needs, measured on training images."""

from collections.abc import Mapping

import ml_collections
import numpy as np
from jaxtyping import Float

from distcam_jax import training
from distcam_jax.evaluators.explain import Samples, collect_samples
from distcam_jax.evaluators.network import Network
from distcam_jax.mahalanobis import within_class_precision
from distcam_jax.methods import METHODS, Method
from distcam_jax.prototypes import Prototypes

KEYS = ("whitening_samples", "whitening_ridge")  # of config.evaluate


def whitening_options(options: ml_collections.ConfigDict) -> dict:
    """What decides the covariance, where one of the methods needs it; else nothing.

    Args:
        options: `config.evaluate`.

    Returns:
        The values of `KEYS`, checked; an empty dict where no method of `options.methods` needs them.

    Raises:
        ValueError: a key is missing or out of range; names it.

    Examples:
        >>> values = {"methods": ("cam", "mahalanobis"), "whitening_samples": 20, "whitening_ridge": 1.0}
        >>> whitening_options(ml_collections.ConfigDict(values))
        {'whitening_samples': 20, 'whitening_ridge': 1.0}
        >>> whitening_options(ml_collections.ConfigDict(values | {"methods": ("cam",)}))
        {}
    """
    for name in KEYS:
        if name not in options:
            raise ValueError(f"the configuration has no key evaluate.{name}; it was made for another version")
    if not any("whitening" in METHODS[name].needs for name in options.methods):
        return {}
    if options.whitening_samples < 1:
        raise ValueError(f"config.evaluate.whitening_samples must be at least 1, got {options.whitening_samples}")
    if not options.whitening_ridge > 0:
        raise ValueError(f"config.evaluate.whitening_ridge must be positive, got {options.whitening_ridge}")
    return {name: options[name] for name in KEYS}


def needs_whitening(methods: Mapping[str, Method]) -> bool:
    """Whether one of some methods needs the context's whitening."""
    return any("whitening" in method.needs for method in methods.values())


def measure_whitening(
    network: Network,
    prototypes: Prototypes,
    methods: Mapping[str, Method],
    options: ml_collections.ConfigDict,
    *,
    seed: int,
) -> Float[np.ndarray, "k k"] | None:
    """The whitening that `bind_methods` takes, of a network's pooled features of training images drawn at random.

    Args:
        network: from `load_network`.
        prototypes: its class prototypes, which the covariance is about.
        methods: of `choose_methods` with `whitened=True`.
        options: `config.evaluate`: at most `whitening_samples` images of each class, `whitening_ridge`, and `batch`.
        seed: of the draw.

    Returns:
        `[k, k]`; None where no method needs it, and nothing is computed then.

    Raises:
        ValueError: as `within_class_precision` does.
    """
    if not needs_whitening(methods):
        return None
    source = training.load_split(network.config, "train").source
    drawn = {"per_class": options.whitening_samples, "counts": prototypes.counts, "seed": seed}
    samples = collect_samples(network, source, batch=options.batch, **drawn)
    return sample_whitening(samples, prototypes, ridge=options.whitening_ridge)


def sample_whitening(samples: Samples, prototypes: Prototypes, *, ridge: float) -> Float[np.ndarray, "k k"]:
    """`within_class_precision` of samples; those of classes without a prototype are left out.

    Args:
        samples: pooled features of training images.
        prototypes: of the same network.
        ridge: see there.

    Returns:
        `[k, k]`.
    """
    kept = np.flatnonzero(prototypes.counts[samples.labels])
    return within_class_precision(samples.embeddings[kept], samples.labels[kept], prototypes.prototypes, ridge=ridge)
