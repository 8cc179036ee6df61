"""Bootstrap intervals of a mean over images. Host functions; level 0.

Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (the percentile interval).
"""

import numpy as np
from jaxtyping import Array, Bool, Num

_BLOCK_ENTRIES = 2**22  # indices drawn at once: 32 MiB of them


def bootstrap_interval(
    values: Num[Array | np.ndarray, " n"] | Bool[Array | np.ndarray, " n"],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over images.

    Args:
        values: `[n]`, one figure an image: right or wrong, an average precision, an IoU.
        seed: the same seed gives the same interval.
        resamples: how often n values are drawn with replacement.
        level: share of the resampled means inside the interval, in (0, 1).

    Returns:
        The low and the high end, in the units of `values`.

    Raises:
        ValueError: for values that are not `[n]` finite numbers, none at all, or options out of range.

    Examples:
        >>> low, high = bootstrap_interval(np.arange(100) < 30)
        >>> 0.2 < low < 0.3 < high < 0.4
        True
    """
    values = _check_values("values", values)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _BLOCK_ENTRIES // len(values))
    for start in range(0, resamples, rows):
        block = means[start : start + rows]
        block[:] = values[generator.integers(len(values), size=(len(block), len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap_interval(
    a: Num[Array | np.ndarray, " n"] | Bool[Array | np.ndarray, " n"],
    b: Num[Array | np.ndarray, " n"] | Bool[Array | np.ndarray, " n"],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `mean(a) - mean(b)`, both measured on the same images.

    Every resample draws the same images for both, so what is hard about an image cancels out.

    Args:
        a: `[n]`, one figure an image.
        b: `[n]`, of the same images in the same order.
        seed: as in `bootstrap_interval`.
        resamples: as in `bootstrap_interval`.
        level: as in `bootstrap_interval`.

    Returns:
        The low and the high end; an interval without 0 means that the two differ.

    Raises:
        ValueError: for lengths that differ, and as `bootstrap_interval`.

    Examples:
        >>> hard = np.linspace(0, 1, 50)
        >>> low, high = paired_bootstrap_interval(hard + 0.25, hard)
        >>> round(low, 6), round(high, 6)
        (0.25, 0.25)
    """
    a, b = _check_values("a", a), _check_values("b", b)
    if len(a) != len(b):
        raise ValueError(f"a and b must be of the same images, got {len(a)} and {len(b)} values")
    return bootstrap_interval(a - b, seed=seed, resamples=resamples, level=level)


def _check_values(name: str, values) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must have shape [n] with at least one value, got {values.shape}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(values))} values that are not")
    return values
