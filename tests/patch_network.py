"""A network that needs no training: its features are rectified mixtures of the mean colours of patches."""

import cv2
import jax.numpy as jnp
import ml_collections
import numpy as np

from distcam_jax import training
from distcam_jax.datasets import Dataset
from distcam_jax.evaluators import Network
from distcam_jax.prototypes import Prototypes

SIZE, PATCH, CHANNELS, CLASSES = 16, 4, 6, 5
MIX = np.random.default_rng(3).normal(size=(3, CHANNELS)).astype(np.float32)


class PatchNetwork(Network):
    """Scores are a linear layer of the mean of the features, where it has one."""

    def __init__(self, *, linear=True, name="patches"):
        weights = np.random.default_rng(5).normal(size=(CLASSES, CHANNELS)).astype(np.float32)
        config = ml_collections.ConfigDict({"input": {"image_size": SIZE, "num_workers": 0}})
        self.__dict__.update(name=name, config=config, mesh=training.create_mesh())
        self.__dict__.update(class_weights=jnp.asarray(weights) if linear else None)

    def __call__(self, images):
        maps = patch_features(np.asarray(images))
        pooled = maps.mean((1, 2))
        output = pooled if self.class_weights is None else pooled @ np.asarray(self.class_weights).T
        return jnp.asarray(output), {"pre_pool": jnp.asarray(maps), "embedding": jnp.asarray(pooled)}


def patch_features(images):
    """`[b, h, w, 3]` in [0, 1] to `[b, h / 4, w / 4, k]`."""
    b, h, w, _ = images.shape
    colours = images.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, 3).mean((2, 4))
    return np.maximum(colours @ MIX, 0).astype(np.float32)


def picture(seed, side=SIZE):
    """Coarse noise `[side, side, 3]`, uint8."""
    cells = np.random.default_rng([7, seed]).integers(0, 255, (side // PATCH, side // PATCH, 3))
    return cells.repeat(PATCH, axis=0).repeat(PATCH, axis=1).astype(np.uint8)


def make_data(labels, *, side=SIZE):
    """One picture a label, of the network's own size unless another is wanted."""
    source = [
        {
            "image": cv2.imencode(".png", picture(i, side)[..., ::-1])[1].tobytes(),
            "label": int(label),
            "boxes": np.array([[i % 5, 1, i % 5 + 8, 11]], np.float32),
            "file_name": f"{i}.png",
        }
        for i, label in enumerate(labels)
    ]
    ids = tuple(f"n{c}" for c in range(CLASSES))
    return Dataset(
        "patches", "validation", source, class_names=("crane", "owl", "crane", "tern", "kite"), class_ids=ids
    )


def pooled_features(index, side=SIZE):
    """`[k]` of one picture."""
    return patch_features(picture(index, side)[None] / np.float32(255))[0].mean((0, 1))


def make_prototypes(*, absent=()):
    """Of all classes but those that have no training samples."""
    values = np.random.default_rng(9).uniform(0, 0.6, (CLASSES, CHANNELS)).astype(np.float32)
    counts = np.array([0 if c in absent else 4 + c for c in range(CLASSES)])
    values[counts == 0] = 0
    return Prototypes(values, counts, tuple("abcde"), {}, "hash")
