"""The hash that ties prototypes to a network."""

import hashlib

import jax
import numpy as np


def hash_weights(state) -> str:
    """SHA-256 of a network's parameters and statistics, its head left out: what the embedding depends on.

    Args:
        state: every parameter and statistic of the model: the `nnx.State` of `nnx.split`, or its nested dicts.

    Returns:
        64 hexadecimal digits. They depend on names, types, shapes and values, not on the order of the names.

    Examples:
        >>> one, other = ({"conv": {"kernel": np.ones(2)}, "head": {"kernel": np.full(2, x)}} for x in (0.0, 1.0))
        >>> hash_weights(one) == hash_weights(other)
        True
        >>> hash_weights({"conv": {"kernel": np.zeros(2)}}) == hash_weights(one)
        False
    """
    # flax marks the variable behind a leaf by ".value" at the end of its path; the hash is of the plain names.
    leaves = {
        jax.tree_util.keystr(path).removesuffix(".value"): leaf for path, leaf in jax.tree.leaves_with_path(state)
    }
    digest = hashlib.sha256()
    for path in sorted(leaves):
        if path.startswith("['head']"):
            continue
        array = np.asarray(jax.device_get(leaves[path]))
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
