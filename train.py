"""Trains a model: python train.py --config=configs/quickstart.py:metric --workdir=runs/quickstart/metric."""

from absl import flags
from ml_collections import config_flags

from distcam_jax import cluster, scripts

_CONFIG = config_flags.DEFINE_config_file("config", None, "Which experiment: configs/<name>.py[:argument].")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: configuration, checkpoints, TensorBoard files.")
_CLUSTER = flags.DEFINE_bool("cluster", False, "Joins the other hosts of a TPU slice; Slurm and Open MPI need no flag.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """One call into the package."""
    cluster.join_cluster(force=_CLUSTER.value)
    from distcam_jax.training import fit  # after the flags, so that --help and a mistyped flag answer at once

    fit(_CONFIG.value, str(_WORKDIR.value))
    if cluster.is_primary():
        print(f"trained: {_WORKDIR.value}")


if __name__ == "__main__":
    scripts.run(main)
