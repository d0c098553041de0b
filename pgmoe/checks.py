"""Checks of a request's values: each raises InvalidRequest with parameter, limit and value."""

from __future__ import annotations

import math
from typing import TypeGuard

from pgmoe.errors import InvalidRequest


def check(ok: bool, param: str, value: object, limit: str) -> None:
    """Raise InvalidRequest "`param` must be `limit`, got `value`" unless `ok`."""
    if not ok:
        raise InvalidRequest(f"{param} must be {limit}, got {value!r}", param)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an int; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is an int or a float that is neither NaN nor infinite."""
    return math.isfinite(value) if isinstance(value, float) else is_integer(value)
