"""The localisation protocols as plain data."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_CHOICES = {
    "interpolation": ("bilinear", "bicubic"),
    "scaling": ("max", "minmax"),
    "components": ("largest_region", "largest_contour", "all_contours"),
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How heatmaps become boxes and when a box is right. Plain data: change it with `dataclasses.replace`.

    Attributes:
        interpolation: `"bilinear"` or `"bicubic"` (a = -0.75), half-pixel centres, edges clamped.
        scaling: `"max"` divides by the maximum, `"minmax"` subtracts the minimum first.
        eight_bit: computes in float64 and truncates the scaled map to 0..255; thresholds times its maximum are cut
            to whole levels too. Otherwise float32 maps stay float32.
        strict: keeps pixels strictly above the threshold instead of at or above it.
        components: `"largest_region"` is the largest 8-connected region by pixel count (ties: the one that comes first
            in raster order), `"largest_contour"` the contour of largest `cv2.contourArea` (ties: the first),
            `"all_contours"` every contour, of holes too.
        inclusive: compares inclusive boxes, cut to whole pixels of the input, with 1 added to every side length.
            Otherwise boxes are compared in pixels of the original image, without the 1.
        thresholds: fractions of the map's maximum, in [0, 1].
        ious: the least intersection over union of a right box, in (0, 1].
        input_size: side in pixels of the square network input, to which the heatmap is upsampled.

    Examples:
        >>> dataclasses.replace(PROTOCOLS["ilsvrc"], input_size=64, thresholds=np.linspace(0.1, 0.3, 3)).thresholds
        (0.1, 0.2, 0.3)
    """

    interpolation: str
    scaling: str
    eight_bit: bool
    strict: bool
    components: str
    inclusive: bool
    thresholds: Sequence[float] | Float[np.ndarray, " thresholds"]
    ious: Sequence[float] | Float[np.ndarray, " ious"]
    input_size: int = 224

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}")
        for field in ("thresholds", "ious"):
            values = np.asarray(getattr(self, field), np.float64)
            inside = (values >= 0) & (values <= 1) & ((values > 0) | (field == "thresholds"))
            if values.ndim != 1 or values.size == 0 or not inside.all():
                interval = "[0, 1]" if field == "thresholds" else "(0, 1]"
                raise ValueError(
                    f"{field} must be a non-empty sequence of numbers in {interval}, got {values.tolist()}"
                )
            object.__setattr__(self, field, tuple(values.tolist()))
        if self.input_size < 1:
            raise ValueError(f"input_size must be at least 1, got {self.input_size}")


_WSOL = Protocol(
    interpolation="bicubic",
    scaling="minmax",
    eight_bit=True,
    strict=True,
    components="largest_contour",
    inclusive=True,
    thresholds=np.arange(0, 1, 0.001),
    ious=(0.5,),
)

PROTOCOLS: dict[str, Protocol] = {
    "ilsvrc": Protocol(
        interpolation="bilinear",
        scaling="max",
        eight_bit=False,
        strict=False,
        components="largest_region",
        inclusive=False,
        thresholds=(0.2,),
        ious=(0.5,),
    ),
    "wsol-v1": _WSOL,
    "wsol-v2": dataclasses.replace(_WSOL, components="all_contours", ious=(0.3, 0.5, 0.7)),
}


def find_protocol(protocol: str | Protocol) -> Protocol:
    """The protocol of that name, or the given one; a ValueError lists the names."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be a Protocol or one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return PROTOCOLS[protocol]
