"""Training: state, objectives, step and loop, over every device of one mesh.

Batches are split along the axis "data"; `jit` does the rest, so that one device and many, one process and many compute
the same thing, batch-norm statistics and class means included.
"""

from distcam_jax.training.loop import fit, load_split
from distcam_jax.training.objectives import OBJECTIVES, PROTOTYPES
from distcam_jax.training.optimizers import OPTIMIZERS, learning_rate_schedule, make_optimizer
from distcam_jax.training.starting import restore_model
from distcam_jax.training.state import (
    SHARDINGS,
    TrainState,
    build_model,
    create_mesh,
    create_state,
    evaluation_weights,
    normalize,
    shard_batch,
)
from distcam_jax.training.steps import make_train_step, make_validation_step, shardings_of

__all__ = [
    "OBJECTIVES",
    "OPTIMIZERS",
    "PROTOTYPES",
    "SHARDINGS",
    "TrainState",
    "build_model",
    "create_mesh",
    "create_state",
    "evaluation_weights",
    "fit",
    "learning_rate_schedule",
    "load_split",
    "make_optimizer",
    "make_train_step",
    "make_validation_step",
    "normalize",
    "restore_model",
    "shard_batch",
    "shardings_of",
]
