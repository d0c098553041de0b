"""Classes made of a family's own and something mixed in: how modules of transformers' get to do otherwise."""

from __future__ import annotations

from functools import cache
from typing import Any

_MIXED = "made_of_a_familys_class"


@cache
def mixed(prefix: str, mixin: Any, family: Any) -> Any:
    """`family`'s subclass of that name, in which `mixin` comes first; one for each pair.

    A subclass, so that transformers' hooks on modules of the family's class still find it.
    """
    return type(
        f"{prefix}{family.__name__}", (mixin, family), {"__module__": family.__module__, _MIXED: True}
    )


def unmixed(module: object) -> Any:
    """The family's own class of a module, whatever was mixed in."""
    kind: Any = type(module)
    while _MIXED in kind.__dict__:
        kind = kind.__bases__[-1]
    return kind
