"""Perplexities, as Markdown."""

from __future__ import annotations

from pgmoe.bench.perplexity_result import PerplexityResult
from pgmoe.bench.tables import conditions, heading, table


def render_perplexity(result: PerplexityResult) -> str:
    """A row a source."""
    rows = [
        [
            source,
            str(result.num_tokens[source]),
            *(f"{found[source]:.2f}" for found in result.models.values()),
        ]
        for source in result.sources
    ]
    return "\n\n".join(
        [heading(result), table(("source", "tokens", *result.models), rows), conditions(result)]
    )
