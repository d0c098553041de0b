"""Loading a model for a command, with a bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgmoe.cli.console import bytes_bar

if TYPE_CHECKING:
    from pgmoe.engine.llm import LLM


def load_llm(model: str, **options: Any) -> LLM:
    """`LLM` with these options. Raises as that does."""
    from pgmoe.engine.llm import LLM

    with bytes_bar(f"Loading {model}") as bar:
        return LLM(model, progress=bar, **options)
