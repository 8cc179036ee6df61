"""Trains a model: python train.py --config=configs/quickstart.py:metric --workdir=runs/quickstart/metric."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Which experiment: configs/<name>.py[:argument].")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: configuration, checkpoints, TensorBoard files.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_) -> None:
    """One call into the package; what the user can mend ends in one line."""
    from distcam_jax.training import fit

    logging.set_verbosity(logging.WARNING)
    try:
        fit(_CONFIG.value.lock(), _WORKDIR.value)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"train.py: {error}")
    print(f"trained: {_WORKDIR.value}")


if __name__ == "__main__":
    app.run(main)
