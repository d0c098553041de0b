"""`pgmoe trace`: answer prompts and write down which experts they used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgmoe.cli.console import steps_bar
from pgmoe.cli.generate import as_prompt
from pgmoe.cli.loading import load_llm
from pgmoe.cli.options import Device, DeviceMemory, HostMemory, Model
from pgmoe.errors import ConfigError
from pgmoe.new_file import check_new_file

if TYPE_CHECKING:
    from pgmoe.engine.llm import LLM
    from pgmoe.gating.recording import RecordingGating
    from pgmoe.request import SamplingParams
    from pgmoe.routing import Gating
    from pgmoe.trace import Trace


def trace(
    model: Model,
    prompts: Annotated[Path, typer.Option(help="A prompt a line; in a .jsonl file, JSON with a `prompt`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The Parquet file to write.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of each answer.")] = 64,
    at_once: Annotated[int, typer.Option(min=1, help="Prompts that are answered side by side.")] = 1,
    device_memory: DeviceMemory = "100%",
    host_memory: HostMemory = "auto",
    device: Device = "auto",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
) -> None:
    """Record the routing of answered prompts: experts, scores, and what was predicted, for `pgmoe simulate`.

    What is recorded does not depend on the budget.
    """
    from pgmoe.gating.recording import RecordingGating
    from pgmoe.request import SamplingParams

    check_new_file(out)
    texts = read_prompts(prompts)
    recorders: list[RecordingGating] = []

    def recording(inner: Gating) -> Gating:
        recorders.append(RecordingGating(inner))
        return recorders[0]

    llm = load_llm(
        model,
        wrap_gating=recording,
        device=device,
        device_memory=device_memory,
        host_memory=host_memory,
        max_running=at_once,
    )
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with llm, steps_bar() as progress:
        _answer(llm, texts, params, raw, at_once, progress)
        recorded = _trace(llm, recorders[0])
    recorded.save(out)
    typer.echo(f"{len(recorded.steps)} forward passes of {len(texts)} prompts, written to {out}", err=True)


def read_prompts(file: Path) -> list[str]:
    """The prompts of a text file, one a line, or of JSON lines; empty lines are left out.

    Raises ConfigError for a file that cannot be read or holds none, and for JSON without a prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompts {file}: {error}") from error
    parse: Callable[[str], str] = _parse_json if file.suffix == ".jsonl" else str
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(parse(line))
            except (ValueError, TypeError, KeyError):
                raise ConfigError(
                    f'{file}, line {number}: want JSON such as {{"prompt": "Why?"}}, got {line[:60]!r}'
                ) from None
    if not found:
        raise ConfigError(f"{file} holds no prompt; write one a line")
    return found


def _parse_json(line: str) -> str:
    prompt = json.loads(line)["prompt"]
    if not isinstance(prompt, str):
        raise TypeError(prompt)
    return prompt


def _answer(
    llm: LLM,
    texts: list[str],
    params: SamplingParams,
    raw: bool,
    at_once: int,
    progress: Callable[[str, int, int], None],
) -> None:
    for first in range(0, len(texts), at_once):
        together = [as_prompt(llm, text, raw=raw) for text in texts[first : first + at_once]]
        add_special_tokens = together[0][1]
        llm.generate([prompt for prompt, _ in together], params, add_special_tokens=add_special_tokens)
        progress("prompts answered", first + len(together), len(texts))


def _trace(llm: LLM, recorder: RecordingGating) -> Trace:
    from pgmoe.trace import Trace

    layers = llm.expert_layers
    experts_per_layer = tuple(layer.num_experts for layer in layers)
    return Trace(
        model=llm.info.name,
        experts_per_layer=experts_per_layer,
        top_k=max(layer.top_k for layer in layers),
        expert_bytes=max(layer.layout.weight_bytes for layer in layers),
        steps=recorder.steps(experts_per_layer),
    )
