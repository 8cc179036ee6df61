"""The heatmap methods by name."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jaxtyping import Array, Float

from distcam_jax.mahalanobis import DEFAULT_TEMPERATURE
from distcam_jax.methods.context import Context
from distcam_jax.methods.maps import (
    cam_maps,
    contrastive_maps,
    decomposition_maps,
    dist_cam_maps,
    energy_maps,
    grad_cam_maps,
    grad_cam_pp_maps,
    transfer_maps,
    uniform_maps,
)
from distcam_jax.methods.margins import EVIDENCE_NEEDS, margin_maps
from distcam_jax.methods.similarities import AnyArray


@dataclass(frozen=True)
class Method:
    """A heatmap method.

    Attributes:
        title: for tables and figures.
        function: of features `[b, h, w, k]` and a context to heatmaps `[b, m, h, w]`, works under `jit`.
        needs: fields of the context that must not be None.
        asks: whether the map may depend on the class that is asked about.
    """

    title: str
    function: Callable[..., Array]
    needs: tuple[str, ...] = ()
    asks: bool = True

    def __call__(self, features: Float[AnyArray, "b h w k"], context: Context, **options) -> Float[Array, "b m h w"]:
        """Heatmaps of a batch for the classes it is asked about.

        Args:
            features: feature maps `[b, h, w, k]`.
            context: the classes, and what stands for them.
            **options: of the function, such as `eps` of Dist-CAM.

        Returns:
            Heatmaps `[b, m, h, w]`, not scaled.

        Raises:
            ValueError: the context lacks what the method needs, or shapes, types or options do not fit.

        Examples:
            >>> import numpy as np
            >>> context = Context(np.array([[1]]), np.array([[2.0, 0.0], [6.0, 4.0]]))
            >>> METHODS["dist_cam"](np.array([[[[1.0, 8.0], [3.0, 0.0]]]]), context, norm="max", eps=2.0).tolist()
            [[[[8.5, 1.5]]]]
        """
        context.require(self.needs, self.title)
        return self.function(features, context, **options)


def run_methods(
    names: Iterable[str], features: Float[AnyArray, "b h w k"], context: Context
) -> dict[str, Float[Array, "b m h w"]]:
    """Heatmaps of several methods for one batch.

    Args:
        names: of `METHODS`.
        features: feature maps `[b, h, w, k]`.
        context: the classes, and what stands for them; it needs what each of the methods needs.

    Returns:
        For each name its heatmaps `[b, m, h, w]`, not scaled.

    Raises:
        ValueError: an unknown name, or as of `Method`. Nothing is computed then.

    Examples:
        >>> import numpy as np
        >>> context = Context(np.array([[0]]), np.eye(2))
        >>> maps = run_methods(["uniform", "energy"], np.ones((1, 1, 2, 2)), context)
        >>> {name: heatmaps.tolist() for name, heatmaps in maps.items()}
        {'uniform': [[[[2.0, 2.0]]]], 'energy': [[[[2.0, 2.0]]]]}
    """
    names = list(names)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"names: want some of {', '.join(map(repr, METHODS))}, got {unknown}")
    for name in names:
        context.require(METHODS[name].needs, name)
    return {name: METHODS[name](features, context) for name in names}


_part = functools.partial

METHODS: dict[str, Method] = {
    "cam": Method("CAM", cam_maps, ("class_weights",)),
    "dist_cam": Method("Dist-CAM", dist_cam_maps),
    "dist_cam_literal": Method("Dist-CAM, literal Eq. 5", _part(dist_cam_maps, eps=1e-6)),
    "dist_cam_nearest": Method("Dist-CAM, nearest sample", _part(dist_cam_maps, reference="neighbors"), ("neighbors",)),
    "contrastive": Method("contrastive Dist-CAM", contrastive_maps),
    "intersection": Method("intersection CAM", margin_maps),
    "mahalanobis": Method(
        "Mahalanobis CAM",
        _part(margin_maps, evidence="whitened", temperature=DEFAULT_TEMPERATURE),
        EVIDENCE_NEEDS["whitened"],
    ),
    "uniform": Method("uniform weights", uniform_maps, asks=False),
    "energy": Method("energy", energy_maps, asks=False),
    "grad_cam": Method("Grad-CAM", grad_cam_maps, ("class_weights",)),
    "grad_cam_pp": Method("Grad-CAM++", grad_cam_pp_maps, ("class_weights",)),
    "grad_cam_l1": Method("Grad-CAM, L1 distance", _part(grad_cam_maps, score="l1")),
    "grad_cam_l2": Method("Grad-CAM, L2 distance", _part(grad_cam_maps, score="l2")),
    "grad_cam_cosine": Method("Grad-CAM, cosine", _part(grad_cam_maps, score="cosine")),
    "grad_cam_pp_cosine": Method("Grad-CAM++, cosine", _part(grad_cam_pp_maps, score="cosine")),
    "grad_cam_transfer": Method("Grad-CAM, transferred weights", transfer_maps, ("transferred",)),
    "decomposition_cosine": Method("decomposition, cosine", decomposition_maps),
    "decomposition_l2": Method("decomposition, L2 distance", _part(decomposition_maps, metric="l2")),
}
