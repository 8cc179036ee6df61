"""What a retrieval evaluation refuses before any work."""

import pytest

from distcam_jax.evaluators.retrieval_options import check_retrieval_options
from tests.tiny_run import tiny_config

EVALUATE = {
    "batch": 8,
    "search": {"space": "embedding", "distance": "l1"},
    "ks": (1, 2, 4),
    "rerank": {"k1": 0, "k2": 1, "lambda_value": 0.3},
    "controls": True,
    "methods": ("dist_cam", "mahalanobis", "uniform"),
    "norm": "sum",
    "eps": 0.1,
    "whitening_samples": 5,
    "whitening_ridge": 1.0,
    "resamples": 20,
    "shown_queries": 3,
    "shown_matches": 2,
    "checkpoint": "latest",
    "center_crop": False,
}


def options(**changes):
    config = tiny_config("metric")
    with config.unlocked():
        config.evaluate = {**EVALUATE, **changes}
    return config.evaluate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"search": {"space": "gap", "distance": "l1"}},
            "search.space: got 'gap', choose one of embedding, projection",
        ),
        ({"search": {"space": "neck", "distance": "l3"}}, "search.distance: got 'l3', choose one of l1, l2, cosine"),
        ({"search": {"space": "neck"}}, r"the configuration has no key evaluate\.search\.distance"),
        ({"ks": ()}, "config.evaluate.ks is empty"),
        ({"ks": (1, 0)}, r"config.evaluate.ks\[1\] must be at least 1, got 0"),
        ({"shown_matches": 0}, "config.evaluate.shown_matches must be at least 1, got 0"),
        ({"shown_queries": -1}, "config.evaluate.shown_queries must be at least 0, got -1"),
        ({"rerank": {"k1": -1, "k2": 1, "lambda_value": 0.3}}, "config.evaluate.rerank.k1 must be at least 0, got -1"),
        ({"rerank": {"k1": 1, "k2": 1}}, r"the configuration has no key evaluate\.rerank\.lambda_value"),
        ({"rerank": {"k1": 1, "k2": 1, "lambda_value": 2.0}}, r"rerank.lambda_value must lie in \[0, 1\], got 2.0"),
        ({"methods": ("dist_cam", "cam")}, "methods: cam does not explain a pair of images, choose some of dist_cam"),
        ({"methods": ("gradcam",)}, "unknown method 'gradcam'; choose some of"),
        ({"methods": ("uniform",)}, "config.evaluate.methods must hold dist_cam"),
        ({"whitening_samples": 0}, "config.evaluate.whitening_samples must be at least 1, got 0"),
    ],
)
def test_check_retrieval_options_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        check_retrieval_options(options(**changes))


def test_check_retrieval_options_take_a_configuration_without_reranking():
    given = options()
    del given["rerank"]
    check_retrieval_options(given)
    del given["ks"]
    with pytest.raises(ValueError, match=r"the configuration has no key evaluate\.ks; it was made for another version"):
        check_retrieval_options(given)
