"""Evaluates a run: python evaluate.py --config=configs/quickstart.py:metric --workdir=runs/quickstart/metric.

Published weights take the place of a run with --weights=resnet50.safetensors instead of --workdir. A configuration of
many networks, such as configs/explanations.py, names them itself.
"""

from absl import flags
from ml_collections import config_flags

from distcam_jax import scripts

_CONFIG = config_flags.DEFINE_config_file("config", None, "Which experiment: configs/<name>.py[:argument].")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "torchvision's or timm's weights (a file or a hub id) instead of a run."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Where the results go; by default the run's folder, runs/<name of the weights>, or runs/<name of the task>.",
)
_COMPARE = flags.DEFINE_multi_string("compare", [], "Folders of further runs on the same data, for the same table.")
_PROTOTYPES = flags.DEFINE_string("prototypes", None, "A prototypes file instead of a pass over the training images.")
flags.mark_flag_as_required("config")
flags.mark_flags_as_mutual_exclusive(["workdir", "weights"])


def main() -> None:
    """One call into the package."""
    from distcam_jax.evaluators import evaluate_run, run_task, tasks  # after the flags: --help answers at once

    if "task" in _CONFIG.value:  # of many networks, which the configuration names
        unused = (_WORKDIR, _WEIGHTS, _COMPARE, _PROTOTYPES)
        tasks.refuse_flags(_CONFIG.value, {flag.name: flag.value for flag in unused})
        run_task(_CONFIG.value, _OUTPUT.value)
        return
    evaluate_run(
        _CONFIG.value,
        _WORKDIR.value,
        output=_OUTPUT.value or _WORKDIR.value,
        compare=_COMPARE.value,
        prototypes=_PROTOTYPES.value,
        weights=_WEIGHTS.value,
    )


if __name__ == "__main__":
    scripts.run(main)
