"""Backbones by name. Each maps normalised images `[b, h, w, 3]` to `(output, features)`."""

import inspect
from collections.abc import Callable

from flax import nnx

from distcam_jax.models.backbone import Backbone
from distcam_jax.models.heads import HEADS, class_weights
from distcam_jax.models.resnet import resnet18

MODELS: dict[str, Callable[..., Backbone]] = {"resnet18": resnet18}
_COMMON = ("num_classes", "rngs", "head")  # what every model takes

__all__ = ["HEADS", "MODELS", "Backbone", "class_weights", "create_model"]


def create_model(name: str, *, num_classes: int, rngs: nnx.Rngs, head: str = "linear", **options) -> Backbone:
    """Makes a model by its name.

    Args:
        name: one of `MODELS`.
        num_classes: classes c of the head.
        rngs: where the initial weights come from.
        head: one of `HEADS`: "linear" outputs class scores `[b, c]`, "none" the embedding `[b, k]`.
        **options: the backbone's own, for a ResNet: `stem` ("imagenet": 7 x 7 at stride 2 and a max-pool; "stride2":
            3 x 3 at stride 2; "small": 3 x 3 at stride 1), `width` (channels of the first stage), `last_stride` (1 or
            2), `dtype` (of the computation; parameters and statistics stay float32).

    Returns:
        A module in training mode (`model.eval()` makes it use its running statistics and leave them alone);
        `model(images)` gives the head's output and a dict with "pre_pool" `[b, h', w', k]` (feature maps after the last
        ReLU) and "embedding" `[b, k]` (their global average pool).

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
    known = [option for option in inspect.signature(MODELS[name]).parameters if option not in _COMMON]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; choose one of {', '.join(known)}")
    return MODELS[name](num_classes=num_classes, rngs=rngs, head=head, **options)
