"""Maps of a margin against loops over classes and channels in float64, for every measure of evidence."""

import dataclasses
import math

import numpy as np
import pytest

from distcam_jax.methods import Context, margin_maps


def scene():
    generator = np.random.default_rng(0)
    features = np.maximum(generator.normal(0.3, 1, size=(2, 3, 2, 6)), 0).astype(np.float32)
    prototypes = generator.uniform(0, 1.2, size=(5, 6)).astype(np.float32)
    root = generator.normal(size=(6, 6))
    whitening = (root @ root.T).astype(np.float32)
    return features, Context(np.array([[4, 1], [0, 2]]), prototypes, whitening=whitening)


def evidence_of(kind, q, p):
    """What one channel says for one class; q is positive."""
    return {"intersection": min(p, q) / q, "distance": -abs(p - q), "gradient": np.sign(p - q), "difference": p}[kind]


def loop_map(
    image, prototypes, whitening, asked, *, evidence, temperature=math.inf, uniform=0.0, base=0.0, spread=False
):
    pooled = image.mean(axis=(0, 1))
    classes, channels = prototypes.shape
    if evidence == "whitened":
        values = np.array(
            [[sum(whitening[k, j] * p[j] for j in range(channels)) for k in range(channels)] for p in prototypes]
        )
    else:
        values = np.array([[evidence_of(evidence, pooled[k], p[k]) for k in range(channels)] for p in prototypes])
    distances = np.array([sum(abs(p - pooled)) for p in prototypes])
    near = np.exp(-distances / (temperature * distances.std()))
    rivals = (1 - uniform) * near / near.sum() + uniform / classes
    weights = values[asked] - (1 - base) * sum(rivals[c] * values[c] for c in range(classes))
    if spread:
        deviation = prototypes.std(axis=0)
        weights = weights / (deviation + 1e-3 * deviation.mean())
    return image @ weights


@pytest.mark.parametrize("evidence", ["intersection", "distance", "gradient", "difference", "whitened"])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 0.5, "uniform": 0.3}, {"base": 0.4}, {"spread": True}],
    ids=str,
)
def test_margin_maps_match_loops(evidence, options):
    features, context = scene()
    assert (features.mean(axis=(1, 2)) > 0).all()
    maps = margin_maps(features, context, evidence=evidence, **options)
    for b, m in np.ndindex(2, 2):
        image, prototypes = features[b].astype(np.float64), context.prototypes.astype(np.float64)
        whitening, asked = context.whitening.astype(np.float64), context.classes[b, m]
        expected = loop_map(image, prototypes, whitening, asked, evidence=evidence, **options)
        np.testing.assert_allclose(maps[b, m], expected, rtol=1e-4, atol=1e-4)


def test_margin_maps_name_an_unknown_measure_of_evidence():
    with pytest.raises(ValueError, match=r"evidence: want one of 'intersection', 'distance', .* got 'hearsay'"):
        margin_maps(*scene(), evidence="hearsay")


@pytest.mark.parametrize("base", [-0.1, 1.5, math.nan])
def test_margin_maps_refuse_a_base_that_is_no_share(base):
    with pytest.raises(ValueError, match=rf"base: want a number in \[0, 1\], got {base}"):
        margin_maps(*scene(), base=base)


@pytest.mark.parametrize("evidence", ["intersection", "distance", "gradient", "difference", "whitened"])
def test_margin_maps_of_a_nan_image_spoil_its_own_map_alone(evidence):
    features, context = scene()
    expected = np.asarray(margin_maps(features, context, evidence=evidence, temperature=2.0))
    features[0, 1, 1, 2] = np.nan
    maps = np.asarray(margin_maps(features, context, evidence=evidence, temperature=2.0))
    assert np.isnan(maps[0]).any()
    np.testing.assert_array_equal(maps[1], expected[1])


def test_margin_maps_of_whitened_evidence_name_what_the_context_lacks():
    features, context = scene()
    with pytest.raises(ValueError, match=r"margin_maps: wants context.whitening, which is None"):
        margin_maps(features, dataclasses.replace(context, whitening=None), evidence="whitened")


def test_margin_maps_of_whitened_evidence_add_up_to_the_margin_of_the_mahalanobis_distance():
    features, context = scene()
    maps = np.asarray(margin_maps(features, context, evidence="whitened"), np.float64).mean(axis=(2, 3))
    for b, m in np.ndindex(2, 2):
        away = features[b].mean(axis=(0, 1)).astype(np.float64) - context.prototypes
        half = [d @ context.whitening @ d / 2 for d in away]
        of_class = [p @ context.whitening @ p / 2 for p in context.prototypes.astype(np.float64)]
        asked = context.classes[b, m]
        margin = np.mean(half) - half[asked] + of_class[asked] - np.mean(of_class)
        np.testing.assert_allclose(maps[b, m], margin, rtol=1e-3)
