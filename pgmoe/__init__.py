"""pgmoe serves Mixture-of-Experts models that do not fit on their device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgmoe.config import EngineConfig
    from pgmoe.engine.async_engine import AsyncEngine
    from pgmoe.engine.llm import LLM
    from pgmoe.models.pre_gate import pre_gate
    from pgmoe.request import Completion, Request, RequestOutput, SamplingParams

_HOMES = {
    "LLM": "pgmoe.engine.llm",
    "AsyncEngine": "pgmoe.engine.async_engine",
    "EngineConfig": "pgmoe.config",
    "SamplingParams": "pgmoe.request",
    "Request": "pgmoe.request",
    "RequestOutput": "pgmoe.request",
    "Completion": "pgmoe.request",
    "pre_gate": "pgmoe.models.pre_gate",
}

__all__ = [
    "LLM",
    "AsyncEngine",
    "Completion",
    "EngineConfig",
    "Request",
    "RequestOutput",
    "SamplingParams",
    "pre_gate",
]


def __getattr__(name: str) -> object:
    """Import torch only when something that needs it is asked for, so that `pgmoe --help` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pgmoe' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
