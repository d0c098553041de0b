"""How often experts are known early, as Markdown."""

from __future__ import annotations

from pgmoe.bench.guesses_result import GuessesResult
from pgmoe.bench.tables import conditions, heading, table


def render_guesses(result: GuessesResult) -> str:
    """A row a layer, the means below."""
    lines = result.lines
    rows = [
        [str(layer), *(_share(line.by_layer[layer]) for line in lines)]
        for layer in range(len(lines[0].by_layer))
    ]
    rows.append(["mean", *(_share(line.mean) for line in lines)])
    return "\n\n".join(
        [
            heading(result),
            table(("layer", *(line.name for line in lines)), rows),
            f"{result.num_tokens} tokens; a blind guess has {result.chance:.2f}.",
            conditions(result),
        ]
    )


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.3f}"
