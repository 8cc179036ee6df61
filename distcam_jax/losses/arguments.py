"""Checks of the losses' hyper-parameters."""

import numpy as np


def check_positive(**arguments) -> None:
    """Refuses arguments `name=value` that are no positive finite numbers."""
    for name, value in arguments.items():
        if not (_is_finite(value) and value > 0):
            raise ValueError(f"{name}: want a positive finite number, got {value!r}")


def check_not_negative(**arguments) -> None:
    """Refuses arguments `name=value` that are no finite numbers of at least 0."""
    for name, value in arguments.items():
        if not (_is_finite(value) and value >= 0):
            raise ValueError(f"{name}: want a finite number of at least 0, got {value!r}")


def check_between(low: float | int, high: float | int, **arguments) -> None:
    """Refuses arguments `name=value` that are no numbers from low to high, both included."""
    for name, value in arguments.items():
        if not (_is_finite(value) and low <= value <= high):
            raise ValueError(f"{name}: want a number in [{low:g}, {high:g}], got {value!r}")


def check_finite(**arguments) -> None:
    """Refuses arguments `name=value` that are no finite numbers."""
    for name, value in arguments.items():
        if not _is_finite(value):
            raise ValueError(f"{name}: want a finite number, got {value!r}")


def _is_finite(value) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and bool(np.isfinite(value))
