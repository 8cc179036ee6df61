"""Backbones by name. Each maps normalised images `[b, h, w, 3]` to `(output, features)`."""

import inspect
from collections.abc import Callable

from flax import nnx

from distcam_jax.models.backbone import STEMS, Backbone
from distcam_jax.models.densenet import DENSENETS
from distcam_jax.models.heads import HEADS, SEARCH_SPACES, check_search_space, class_weights, search_features
from distcam_jax.models.resnet import RESNETS
from distcam_jax.models.resnet12 import RESNET12

MODELS: dict[str, Callable[..., Backbone]] = {**RESNETS, **DENSENETS, **RESNET12}
_COMMON = ("num_classes", "rngs", "head")  # what every model takes

__all__ = [
    "HEADS",
    "MODELS",
    "SEARCH_SPACES",
    "STEMS",
    "Backbone",
    "check_search_space",
    "class_weights",
    "create_model",
    "search_features",
]


def create_model(name: str, *, num_classes: int, rngs: nnx.Rngs, head: str = "linear", **options) -> Backbone:
    """Makes a model by its name.

    Args:
        name: one of `MODELS`.
        num_classes: classes c of the head.
        rngs: where the initial weights come from.
        head: one of `HEADS`: "linear" outputs class scores `[b, c]`, "none" the embedding `[b, k]`; see `create_head`.
        **options: the backbone's own; those of `ResNet` and `DenseNet` are `stem` ("imagenet": 7 x 7 at stride 2 and a
            max-pool; "stride2": 3 x 3 at stride 2; "small": 3 x 3 at stride 1), `width`, `last_stride` (1 gives maps of
            14 x 14 cells at 224 pixels instead of 7 x 7), `dtype` (of the computation; parameters and statistics stay
            float32), `remat` (less memory in training, for time), and `pre_pool` of DenseNet.

    Returns:
        A module in training mode (`model.eval()` makes it use its running statistics and leave them alone);
        `model(images)` gives the head's output and a dict with "pre_pool" `[b, h', w', k]` (feature maps after the last
        ReLU, or before it where a DenseNet's `pre_pool` says so) and "embedding" `[b, k]` (their global average pool).

    Raises:
        ValueError: on an unknown name, head or option, or a value that an option cannot have.

    Examples:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> model = create_model("resnet18", num_classes=5, width=8, stem="small", rngs=nnx.Rngs(0))
        >>> output, features = model(jnp.zeros((2, 32, 32, 3)))
        >>> output.shape, features["pre_pool"].shape, features["embedding"].shape
        ((2, 5), (2, 4, 4, 64), (2, 64))
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(sorted(MODELS))}")
    if head not in HEADS:
        raise ValueError(f"unknown head {head!r}; choose one of {', '.join(HEADS)}")
    known = _options(MODELS[name])
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; choose one of {', '.join(known)}")
    return MODELS[name](num_classes=num_classes, rngs=rngs, head=head, **options)


def _options(make: Callable[..., Backbone]) -> list[str]:
    """The options of a model, from its class's signature."""
    parameters = inspect.signature(getattr(make, "func", make).__init__).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in _COMMON]
