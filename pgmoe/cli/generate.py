"""`pgmoe generate`: answer one prompt, streaming, and say what it cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgmoe.cli.loading import load_llm
from pgmoe.cli.options import Device, DeviceMemory, Gating, HostMemory, Json, MaxTokens, Model, Policy
from pgmoe.errors import ConfigError, InvalidRequest, PromptTooLong
from pgmoe.units import format_bytes

if TYPE_CHECKING:
    from pgmoe.engine.llm import LLM
    from pgmoe.request import Completion, RequestOutput, ResponseFormat, SamplingParams

DEFAULT_TOKENS = 256


@dataclass(frozen=True)
class Speed:
    """Wall-clock times of one answer."""

    load_s: float
    first_token_s: float
    tokens_per_s: float
    """After the first token."""


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="What to answer or go on from; - reads standard input.")],
    device_memory: DeviceMemory = "100%",
    host_memory: HostMemory = "auto",
    gating: Gating = "auto",
    policy: Policy = "prospect",
    device: Device = "auto",
    max_tokens: MaxTokens = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="The answer is JSON that follows the schema in this file.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="The whole answer matches this expression.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    as_json: Json = False,
) -> None:
    """Answer one prompt with the experts in a device budget of your choice.

    The text goes to standard output as it comes, the figures to standard error.
    """
    from pgmoe.request import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=tuple(stop or ()),
        response_format=_response_format(json_schema, regex),
    )
    text = _read_stdin() if prompt == "-" else prompt
    begin = time.perf_counter()
    llm = load_llm(
        model,
        device=device,
        device_memory=device_memory,
        host_memory=host_memory,
        gating=gating,
        policy=policy,
    )
    with llm:
        load_s = time.perf_counter() - begin
        typer.echo(llm.memory.text(), err=True)
        answer, speed = _follow(_stream(llm, text, params, raw=raw), load_s, echo=not as_json)
    figures = json.dumps({**asdict(answer), **asdict(speed)}) if as_json else _summary(answer, speed)
    typer.echo(figures, err=not as_json)


def _stream(llm: LLM, text: str, params: SamplingParams, *, raw: bool) -> Iterator[RequestOutput]:
    """The answer, of at most DEFAULT_TOKENS tokens or what fits in the context where no number is given."""
    prompt, add_special_tokens = as_prompt(llm, text, raw=raw)
    if params.max_tokens is None:
        try:
            some = replace(params, max_tokens=DEFAULT_TOKENS)
            return llm.stream(prompt, some, add_special_tokens=add_special_tokens)
        except PromptTooLong:
            pass  # for so many tokens at least
    return llm.stream(prompt, params, add_special_tokens=add_special_tokens)


def _response_format(json_schema: Path | None, regex: str | None) -> ResponseFormat | None:
    """The form that the answer must have, if any. Raises ConfigError or InvalidRequest."""
    from pgmoe.request import ResponseFormat

    if json_schema is None:
        return None if regex is None else ResponseFormat(regex=regex)
    try:
        schema = json_schema.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{json_schema}: the schema cannot be read ({error})") from error
    return ResponseFormat(json_schema=schema, regex=regex)


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"standard input is not text in {error.encoding}: {error}", "prompt") from error


def as_prompt(llm: LLM, text: str, *, raw: bool) -> tuple[str, bool]:
    """The prompt, and whether special tokens are to be added to it.

    Where the model has a chat template and `raw` is not set, the text is the first turn of a chat, and the
    template writes the special tokens. Raises InvalidRequest.
    """
    from pgmoe.models.chat_template import ChatMessage, ChatTemplate

    if raw or llm.tokenizer is None or not llm.tokenizer.chat_template:
        return text, True
    try:
        return ChatTemplate(llm.tokenizer).render([ChatMessage("user", text)]), False
    except InvalidRequest as error:
        raise InvalidRequest(f"{error}; try --raw", "prompt") from error


def _follow(stream: Iterator[RequestOutput], load_s: float, *, echo: bool) -> tuple[Completion, Speed]:
    from pgmoe.request import Completion

    begin = time.perf_counter()
    pieces: list[RequestOutput] = []
    arrivals: list[float] = []
    for piece in stream:
        arrivals.append(time.perf_counter())
        pieces.append(piece)
        if echo:
            typer.echo(piece.text, nl=False)
    if echo:
        typer.echo()
    decode_s = arrivals[-1] - arrivals[0]
    rate = (len(arrivals) - 1) / decode_s if decode_s > 0 else 0.0
    return Completion.join(pieces), Speed(load_s, arrivals[0] - begin, rate)


def _summary(answer: Completion, speed: Speed) -> str:
    usage = answer.usage
    used = usage.expert_hits + usage.expert_misses
    return (
        f"{usage.completion_tokens} tokens ({answer.finish_reason}), {speed.tokens_per_s:.1f} tokens/s, "
        f"first after {speed.first_token_s:.2f} s, loaded in {speed.load_s:.1f} s; "
        f"experts: {usage.expert_hits / max(used, 1):.1%} hits, {format_bytes(usage.expert_bytes)} read, "
        f"{usage.expert_stall_s:.2f} s waited"
    )
