"""Evaluates a run: python evaluate.py --config=configs/quickstart.py:metric --workdir=runs/quickstart/metric."""

from absl import flags
from ml_collections import config_flags

from distcam_jax import scripts

_CONFIG = config_flags.DEFINE_config_file("config", None, "Which experiment: configs/<name>.py[:argument].")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
_OUTPUT = flags.DEFINE_string("output", None, "Where metrics.json and report.html go; the run's folder by default.")
_COMPARE = flags.DEFINE_multi_string("compare", [], "Folders of further runs on the same data, for the same table.")
_PROTOTYPES = flags.DEFINE_string("prototypes", None, "A prototypes file instead of a pass over the training images.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """One call into the package."""
    from distcam_jax.evaluators import evaluate  # after the flags, so that --help and a mistyped flag answer at once

    workdir = str(_WORKDIR.value)
    output = _OUTPUT.value or workdir
    evaluate(_CONFIG.value, workdir, output=output, compare=_COMPARE.value, prototypes=_PROTOTYPES.value)
    print(f"\nfigures: {output}/metrics.json\nreport:  {output}/report.html")


if __name__ == "__main__":
    scripts.run(main)
