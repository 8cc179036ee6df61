"""Eq. 2 to 7 as loops in float64 NumPy, written from the equations alone, and inputs for them."""

import math

import numpy as np

NORMS = ["sum", "l2", "max", "minmax"]


def random_features(seed, shape):
    """Non-negative, half of them zero, of a different mean in each channel, as after a ReLU."""
    generator = np.random.default_rng(seed)
    return np.maximum(generator.normal(size=shape) + generator.normal(size=shape[-1]), 0).astype(np.float32)


def random_vectors(seed, shape):
    return np.random.default_rng(seed).uniform(0, 1.5, size=shape).astype(np.float32)


def loop_weights(distances, norm, eps):
    """Eq. 5 for one class: a list of distances to a list of weights."""
    mean = sum(distances) / len(distances)
    weights = [1 / (d / mean + eps) if mean else 1.0 for d in distances]
    if norm == "minmax":
        low, high = min(weights), max(weights)
        return [(w - low) / (high - low) if high > low else 1.0 for w in weights]
    total = {"sum": sum(weights), "l2": math.sqrt(sum(w * w for w in weights)), "max": max(weights)}[norm]
    return [w / total for w in weights]


def loop_distances(image, prototypes):
    """Eq. 4 for one image [h, w, k]: distances [c][k]."""
    height, width, channels = image.shape
    pooled = [
        sum(image[y, x, k] for y in range(height) for x in range(width)) / (height * width) for k in range(channels)
    ]
    return [[abs(prototype[k] - pooled[k]) for k in range(channels)] for prototype in prototypes]


def loop_map(image, weights):
    """Eq. 6 for one image and class."""
    height, width, channels = image.shape
    return [[sum(weights[k] * image[y, x, k] for k in range(channels)) for x in range(width)] for y in range(height)]


def loop_dist_cam(features, prototypes, norm="sum", eps=0.1):
    """Dist-CAM of images [n, h, w, k] for prototypes [c, k]: [n, c, h, w]."""
    features, prototypes = np.asarray(features, np.float64), np.asarray(prototypes, np.float64)
    maps = [[loop_map(q, loop_weights(d, norm, eps)) for d in loop_distances(q, prototypes)] for q in features]
    return np.array(maps)


def loop_contrastive(features, prototypes):
    features, prototypes = np.asarray(features, np.float64), np.asarray(prototypes, np.float64)
    maps = []
    for image in features:
        distances = loop_distances(image, prototypes)
        mean = [sum(d[k] for d in distances) / len(distances) for k in range(image.shape[-1])]
        maps.append([loop_map(image, [m - d for m, d in zip(mean, row, strict=True)]) for row in distances])
    return np.array(maps)


def assert_close(actual, desired, tolerance=1e-5):
    """Equal to within `tolerance` of the largest value, without NaN."""
    desired = np.asarray(desired, np.float64)
    assert np.isfinite(desired).all()
    np.testing.assert_allclose(
        actual, desired, rtol=tolerance, atol=tolerance * (np.abs(desired).max() if desired.size else 0)
    )


FEATURES, PROTOTYPES = random_features(0, (3, 2, 4, 6)), random_vectors(1, (5, 6))
