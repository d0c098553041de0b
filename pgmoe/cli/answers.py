"""`pgmoe answers`: what a model says to many prompts, as data for `pgmoe finetune`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgmoe.cli.console import steps_bar
from pgmoe.cli.generate import as_prompt
from pgmoe.cli.loading import load_llm
from pgmoe.cli.options import Device, DeviceMemory, HostMemory, Model
from pgmoe.cli.trace import read_prompts
from pgmoe.errors import ConfigError
from pgmoe.new_file import check_new_file

if TYPE_CHECKING:
    from pgmoe.engine.llm import LLM
    from pgmoe.request import SamplingParams

Row = tuple[str, str]
"""A prompt and its answer."""
GROUP = 8
"""Prompts handed over at once, for each that runs: a short answer's place is taken by the next."""


def answers(
    model: Model,
    prompts: Annotated[Path, typer.Option(help="A prompt a line; in a .jsonl file, JSON with a `prompt`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The Parquet file to write.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of each answer.")] = 256,
    at_once: Annotated[int, typer.Option(min=1, help="Prompts that are answered side by side.")] = 4,
    device_memory: DeviceMemory = "100%",
    host_memory: HostMemory = "auto",
    device: Device = "auto",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option()] = 0.95,
    seed: Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
) -> None:
    """Answer prompts and write both down: text of the model's own to distil it from.

    The file has the column `messages` for a model that chats, else `prompt` and `completion`. Answers that
    `max_tokens` cut short are left out: they would teach to stop in the middle of a sentence.
    """
    from pgmoe.request import SamplingParams

    check_new_file(out)
    texts = read_prompts(prompts)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    llm = load_llm(
        model, device=device, device_memory=device_memory, host_memory=host_memory, max_running=at_once
    )
    chats = not raw and llm.tokenizer is not None and bool(llm.tokenizer.chat_template)
    answered: list[list[Row]] = []
    try:
        with llm:
            for group in _answer_all(llm, texts, params, GROUP * at_once, raw=raw):
                answered.append(group)
    finally:  # a prompt that is too long, or Ctrl-C, costs no answer of the groups before
        if rows := [row for group in answered for row in group]:
            _write(rows, out, chats=chats)
            asked = min(len(answered) * GROUP * at_once, len(texts))
            typer.echo(_summary(len(rows), asked, len(texts), out), err=True)
    if not rows:
        raise ConfigError(f"no answer ended within {max_tokens} tokens; give more with --max-tokens")


def _answer_all(
    llm: LLM, texts: list[str], params: SamplingParams, size: int, *, raw: bool
) -> Iterator[list[Row]]:
    """The rows of one group of prompts after another."""
    with steps_bar() as progress:
        for first in range(0, len(texts), size):
            some = texts[first : first + size]
            yield list(_answer(llm, some, params, raw=raw))
            progress("prompts answered", first + len(some), len(texts))


def _answer(llm: LLM, texts: list[str], params: SamplingParams, *, raw: bool) -> Iterator[Row]:
    """Prompts and answers of those that came to an end."""
    together = [as_prompt(llm, text, raw=raw) for text in texts]
    prompts = [prompt for prompt, _ in together]
    said = llm.generate(prompts, params, add_special_tokens=together[0][1])
    for text, answer in zip(texts, said, strict=True):
        if answer.finish_reason != "length":
            yield text, answer.text


def _summary(num_rows: int, asked: int, wanted: int, out: Path) -> str:
    told = f"{num_rows} answers written to {out}, {asked - num_rows} cut short left out"
    if asked == wanted:
        return told
    return (
        f"{told}; only the first {asked} of {wanted} prompts were answered: have the others answered into "
        "another file"
    )


def _write(rows: list[Row], out: Path, *, chats: bool) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    if chats:
        roles = ("user", "assistant")
        chat = [[{"role": r, "content": c} for r, c in zip(roles, turn, strict=True)] for turn in rows]
        table = pa.table({"messages": chat})
    else:
        table = pa.table({"prompt": [a for a, _ in rows], "completion": [b for _, b in rows]})
    parquet.write_table(table, out, compression="zstd")
