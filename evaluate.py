"""Evaluates a run: python evaluate.py --config=configs/quickstart.py:metric --workdir=runs/quickstart/metric."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Which experiment: configs/<name>.py[:argument].")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
_OUTPUT = flags.DEFINE_string("output", None, "Where metrics.json and report.html go; the run's folder by default.")
_COMPARE = flags.DEFINE_multi_string("compare", [], "Folders of further runs on the same data, for the same table.")
_PROTOTYPES = flags.DEFINE_string("prototypes", None, "A prototypes file instead of a pass over the training images.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_) -> None:
    """One call into the package; what the user can mend ends in one line."""
    from distcam_jax.evaluators import evaluate

    logging.set_verbosity(logging.WARNING)
    output = _OUTPUT.value or _WORKDIR.value
    try:
        evaluate(
            _CONFIG.value.lock(),
            _WORKDIR.value,
            output=output,
            compare=_COMPARE.value,
            prototypes=_PROTOTYPES.value,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    print(f"\nfigures: {output}/metrics.json\nreport:  {output}/report.html")


if __name__ == "__main__":
    app.run(main)
