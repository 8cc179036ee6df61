"""Class prototypes (Eq. 7) of a whole training set: computed in one streamed pass, kept in one portable file.

The pass runs at the speed of the network's forward pass, on any number of devices and processes, and goes on where it
was killed. The file is plain safetensors, so that whoever publishes a model can publish its prototypes and spare
everybody the pass over the training images. It carries a hash of the weights it was made with; another model's file is
refused.
"""

from distcam_jax.prototypes.compute import compute_prototypes
from distcam_jax.prototypes.file import Prototypes, load_prototypes
from distcam_jax.prototypes.hashing import hash_weights
from distcam_jax.prototypes.partial import PartialSums
from distcam_jax.prototypes.sums import ClassSums

__all__ = ["ClassSums", "PartialSums", "Prototypes", "compute_prototypes", "hash_weights", "load_prototypes"]
