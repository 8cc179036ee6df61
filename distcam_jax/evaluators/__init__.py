"""Evaluation loops: a model and a data set in, figures with intervals and a report out."""

from distcam_jax.evaluators.localize import METHODS, Localization, class_maps, localize, tune_thresholds
from distcam_jax.evaluators.network import Network, load_network, network_prototypes
from distcam_jax.evaluators.run import evaluate

__all__ = [
    "METHODS",
    "Localization",
    "Network",
    "class_maps",
    "evaluate",
    "load_network",
    "localize",
    "network_prototypes",
    "tune_thresholds",
]
