"""Evaluation loops: a model and a data set in, figures with intervals and a report out."""

from distcam_jax.evaluators.explain import Explained, Samples, bind_methods, choose_methods, collect_samples
from distcam_jax.evaluators.faithfulness import faithfulness
from distcam_jax.evaluators.fewshot import evaluate_fewshot
from distcam_jax.evaluators.localize import Localization, localize, tune_thresholds
from distcam_jax.evaluators.network import Network, load_network, network_prototypes
from distcam_jax.evaluators.randomization import randomization_similarity
from distcam_jax.evaluators.retrieval import evaluate_retrieval
from distcam_jax.evaluators.run import evaluate
from distcam_jax.evaluators.specificity import specificity
from distcam_jax.evaluators.tasks import TASKS, evaluate_run, run_task

__all__ = [
    "TASKS",
    "Explained",
    "Localization",
    "Network",
    "Samples",
    "bind_methods",
    "choose_methods",
    "collect_samples",
    "evaluate",
    "evaluate_fewshot",
    "evaluate_retrieval",
    "evaluate_run",
    "faithfulness",
    "load_network",
    "localize",
    "network_prototypes",
    "randomization_similarity",
    "run_task",
    "specificity",
    "tune_thresholds",
]
