"""Perplexity of models on text that none of them has seen, by source.

`python -m recipes.perplexity TEXT.parquet MODEL... --name NAME --out FOLDER` prints a table and writes a
result: `exp` of the mean negative log-likelihood of all tokens but each document's first. A pre-gated MODEL
is routed as its config says.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pgmoe import pre_gate
from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.perplexity_report import render_perplexity
from pgmoe.bench.perplexity_result import TOTAL, PerplexityResult
from pgmoe.bench.result import current_commit, now
from pgmoe.cli.console import steps_bar
from pgmoe.errors import ConfigError
from recipes.document import Document
from recipes.lm_text import read_documents

LENGTH = 512
"""Tokens of a document that are read; the rest is left out."""
_TOKENS_A_BATCH = 4096


@dataclass
class Sums:
    """Of one source's tokens."""

    nats: float = 0.0
    num_tokens: int = 0

    @property
    def perplexity(self) -> float:
        """exp of the mean."""
        return math.exp(self.nats / self.num_tokens)


def load(folder: str) -> tuple[Any, Any]:
    """Model and tokenizer, in the type that is stored."""
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()
    pre_gate(model)
    return model, AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def perplexities(
    model: Any, tokenizer: Any, documents: Sequence[Document], progress: Callable[[int, int], None]
) -> dict[str, Sums]:
    """By source, and of all."""
    sums: dict[str, Sums] = {TOTAL: Sums()}
    done = 0
    for batch in _batches(documents, tokenizer):
        ids_BS = torch.nn.utils.rnn.pad_sequence(
            [ids for _, ids in batch], batch_first=True, padding_value=-1
        )
        seen_BS = ids_BS >= 0
        logits = model(input_ids=ids_BS.clamp(min=0), attention_mask=seen_BS.long(), use_cache=False).logits
        nats_BS = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), ids_BS[:, 1:], ignore_index=-1, reduction="none"
        )
        for (source, ids), nats in zip(batch, nats_BS.sum(1).tolist(), strict=True):
            for name in (source, TOTAL):
                total = sums.setdefault(name, Sums())
                total.nats += nats
                total.num_tokens += len(ids) - 1
        done += len(batch)
        progress(done, len(documents))
    return sums


def _batches(documents: Sequence[Document], tokenizer: Any) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Documents of like length together, the longest first."""
    rows = [
        (document.source, torch.tensor(tokenizer(document.text)["input_ids"][:LENGTH]))
        for document in documents
    ]
    rows = sorted((row for row in rows if len(row[1]) > 1), key=lambda row: -len(row[1]))
    while rows:
        count = max(1, _TOKENS_A_BATCH // len(rows[0][1]))
        yield rows[:count]
        rows = rows[count:]


def measure(name: str, text: Path, models: Sequence[str]) -> PerplexityResult:
    """Every model on the whole text, one after the other. Raises ConfigError for what cannot be compared."""
    names = [Path(folder).name for folder in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"several models are called {twice[0]}; name their folders apart")
    documents = read_documents(text)
    found: dict[str, dict[str, Sums]] = {}
    for name_of_model, folder in zip(names, models, strict=True):
        with steps_bar() as progress:
            told = partial(progress, name_of_model)
            found[name_of_model] = perplexities(*load(folder), documents, told)
        _check_tokens(found)
    first = found[names[0]]
    return PerplexityResult(
        name=f"perplexity-{name}",
        date=now(),
        commit=current_commit(),
        machine=describe_machine(weight_files(Path(models[0]))),
        conditions={
            "text": f"{len(documents)} documents, {LENGTH} tokens of each at most",
            "type": "as stored",
        },
        num_tokens={source: sums.num_tokens for source, sums in first.items()},
        models={
            model: {source: one.perplexity for source, one in sums.items()} for model, sums in found.items()
        },
    )


def _check_tokens(found: Mapping[str, Mapping[str, Sums]]) -> None:
    """Perplexities are by token: those of another tokenizer say nothing beside each other."""
    (first, sums), *others = found.items()
    for name, own in others:
        if any(own[source].num_tokens != one.num_tokens for source, one in sums.items()):
            raise ConfigError(
                f"{first} has {sums[TOTAL].num_tokens} tokens of the text, {name} {own[TOTAL].num_tokens}: "
                "compare models of one tokenizer"
            )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--name", default="models")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    result = measure(args.name, args.text, args.models)
    print(render_perplexity(result))
    print(result.save(args.out))


if __name__ == "__main__":
    main()
