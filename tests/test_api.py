"""The public names, their documentation, and which module may import which."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import distcam_jax

ROOT = Path(__file__).parents[1]
LEVELS = {
    0: {
        "cam",
        "checks",
        "cluster",
        "compiler",
        "faithfulness",
        "fewshot",
        "files",
        "intersection",
        "localization",
        "losses",
        "mahalanobis",
        "methods",
        "retrieval",
        "specificity",
        "statistics",
    },
    1: {
        "models",
        "datasets",
        "input_pipeline",
        "augmentations",
        "class_batches",
        "decoding",
        "episodes",
        "geometry",
        "orders",
        "photometric",
        "reading",
    },
    2: {"checkpoints", "prototypes", "runs", "scripts", "training", "evaluators", "report"},
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names}
HEAVY = {"flax", "grain", "orbax", "tensorflow_datasets", "tensorflow", "torch", "sklearn", "matplotlib"}
DATA = LEVELS[1] - {"models"}
PUBLIC = {
    "distcam_jax": distcam_jax.__all__,
    "distcam_jax.losses": ["proxy_nca", "batch_hard_triplet", "nt_xent", "multi_similarity", "arcface_logits"],
    "distcam_jax.training": ["fit", "TrainState", "make_train_step"],
    "distcam_jax.prototypes": ["Prototypes", "compute_prototypes", "load_prototypes"],
    "distcam_jax.localization": ["PROTOCOLS", "Protocol", "LocalizationScores", "evaluate_boxes"],
    "distcam_jax.methods": ["METHODS", "Context", "Method", "grad_cam", "similarity_decomposition"],
    "distcam_jax.fewshot": ["rectify_prototypes", "mean_confidence_interval", "episode_accuracies"],
    "distcam_jax.retrieval": [
        "recall_at_k",
        "map_at_r",
        "r_precision",
        "market1501_metrics",
        "k_reciprocal_rerank",
        "nearest_neighbors",
    ],
    "distcam_jax.models": ["MODELS", "create_model"],
    "distcam_jax.models.pretrained": ["load_torch_weights"],
    "distcam_jax.datasets": ["DATASETS", "Dataset", "load_dataset"],
    "distcam_jax.report": ["write_report"],
    "distcam_jax.evaluators": ["evaluate"],
}


def modules():
    names = [info.name for info in pkgutil.walk_packages(distcam_jax.__path__, "distcam_jax.")]
    return [importlib.import_module(name) for name in names]


def public_functions(module):
    for name, value in vars(module).items():
        own = not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        if own and (inspect.isfunction(value) or inspect.isclass(value) or hasattr(value, "lower")):
            yield name, value


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist(module):
    missing = [name for name in PUBLIC[module] if not hasattr(importlib.import_module(module), name)]
    assert not missing


def test_public_functions_and_classes_are_documented():
    bare = [
        f"{module.__name__}.{name}"
        for module in modules()
        for name, value in public_functions(module)
        if not inspect.getdoc(value)
    ]
    assert not bare


def test_options_of_the_core_functions_are_keyword_only():
    arrays = {
        "features",
        "weights",
        "prototypes",
        "references",
        "query",
        "reference",
        "distances",
        "class_weights",
        "embeddings",
        "labels",
        "num_classes",
    }
    for name in distcam_jax.__all__:
        for parameter in inspect.signature(getattr(distcam_jax, name)).parameters.values():
            assert parameter.kind is parameter.KEYWORD_ONLY or parameter.name in arrays, (name, parameter.name)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_down_only():
    wrong = []
    for path in (ROOT / "distcam_jax").rglob("*.py"):
        here = path.relative_to(ROOT / "distcam_jax").parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            there = parts[1] if parts[0] == "distcam_jax" and len(parts) > 1 else None
            heavy = LEVEL_OF[here] == 0 and parts[0] in HEAVY
            upward = there in LEVEL_OF and LEVEL_OF[there] > LEVEL_OF[here]
            crossed = (here == "models" and there in DATA) or (here in DATA and there == "models")
            if heavy or upward or crossed:
                wrong.append(f"{here} imports {name}")
    assert not wrong


def test_import_is_light():
    code = "import sys, distcam_jax; print(sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(ast.literal_eval(loaded))
