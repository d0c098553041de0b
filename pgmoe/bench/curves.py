"""The curves that are measured: which lines, which tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pgmoe.bench.lines import PGMOE, AccelerateLine, Line, LlamaCppLine, OurLine
from pgmoe.config import EngineConfig
from pgmoe.engine.named_options import check_options as check_engine_options
from pgmoe.errors import ConfigError
from pgmoe.models.loader import read_plan
from pgmoe.models.pack import is_pack

Options = tuple[tuple[str, str | int], ...]
ORACLE = "oracle"
ACCELERATE_TOKENS = 3
"""Measured of accelerate, which takes seconds for each."""


def parse_options(texts: Sequence[str]) -> Options:
    """`NAME=VALUE` as options of EngineConfig; whole numbers are numbers. Raises ConfigError."""
    found: list[tuple[str, str | int]] = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"option {text!r} is not NAME=VALUE; write for example policy=lru")
        found.append((name, int(value) if value.isdecimal() else value))
    return tuple(found)


def check_options(options: Options, gatings: Sequence[str]) -> None:
    """Raise ConfigError for what no engine could be made with, before anything is measured."""
    for line in our_lines(gatings, options, Path("a trace")):
        check_engine_options(EngineConfig.parse({"model": "a model", **dict(line.options)}))


def pack_options(pack: Path | None) -> Options:
    """Of an engine that reads this pack of the same weights; none for none. Raises ConfigError."""
    if pack is None:
        return ()
    if not is_pack(pack):
        raise ConfigError(f"{pack} is no pack; `pgmoe pack` makes one")
    return (("model", str(pack)), ("verify_pack", False))


def our_lines(gatings: Sequence[str], options: Options, trace: Path) -> tuple[OurLine, ...]:
    """A line for each gating; one, with the engine's own, if none is named. An oracle replays `trace`."""
    if not gatings:
        return (OurLine(PGMOE, options),)
    lines = []
    for name in gatings:
        replayed: Options = (("gating_trace", str(trace)),) if name == ORACLE else ()
        lines.append(OurLine(f"{PGMOE}, {name}", (*options, ("gating", name), *replayed)))
    return tuple(lines)


def twin_line(twin: Path, model: Path, gating: str, options: Options) -> OurLine:
    """A line of another model: the same vocabulary, as many experts of the same size, routed in another way.

    Raises ConfigError if it is no such model, and for a gating that replays the routing of this one.
    """
    if gating == ORACLE:
        raise ConfigError(
            f"gating {ORACLE!r} replays the routing of {model.name}, not its twin's; choose another"
        )
    if (other := _shape(twin)) != (own := _shape(model)):
        raise ConfigError(
            f"{twin.name} is no twin of {model.name}: it has {other}, and that one {own}; name a model that "
            "was rewired from it, or the one that it was rewired from (`pgmoe pregate`)"
        )
    return OurLine(f"{PGMOE}, {gating} (twin)", (*options, ("model", str(twin)), ("gating", gating)))


def _shape(model: Path) -> str:
    plan = read_plan(str(model))
    vocabulary = plan.config.get_text_config().vocab_size
    experts = Counter((layer.num_experts, layer.layout.slot_bytes) for layer in plan.layers)
    layers = [f"{n} layers of {e} experts of {size:,} bytes" for (e, size), n in experts.items()]
    return f"{vocabulary} token ids and {' and '.join(layers)}"


def peer_lines(gguf: Path, num_tokens: int, num_threads: int | None, *, accelerate: bool) -> tuple[Line, ...]:
    """llama.cpp, and accelerate if it is wanted."""
    llama = LlamaCppLine(str(gguf), num_tokens, num_threads)
    return (llama, AccelerateLine(ACCELERATE_TOKENS)) if accelerate else (llama,)
