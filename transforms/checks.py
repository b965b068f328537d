"""Checks of settings, for transforms and for the pipeline."""

from numbers import Integral
from typing import Any


def check_whole(name: str, value: Any, least: int) -> None:
    """ValueError when a setting is no whole number of at least ``least``; True and 2.0 are none.

    Example:
        >>> check_whole("min_slices", 0, least=1)
        Traceback (most recent call last):
        ValueError: min_slices must be a whole number of at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_setting(name: str, value: Any, fits: bool, what: str) -> None:
    """ValueError, such as "dropout must be in [0, 1), got 2", when a setting does not fit."""
    if not fits:
        raise ValueError(f"{name} must be {what}, got {value!r}")
