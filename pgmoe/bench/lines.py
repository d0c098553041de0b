"""Lines of a curve: an engine in one mode, with any share of the experts in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pgmoe.bench.arms.base import Arm
from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.llama_cpp import LlamaCppArm
from pgmoe.bench.arms.peers import AccelerateArm

PGMOE, LLAMA_CPP, ACCELERATE = "pgmoe", "llama.cpp", "accelerate"


class Line(Protocol):
    """One line; its arms are its points."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        ...

    @property
    def engine(self) -> str:
        """Lines of one engine are as fast where all experts are resident."""
        ...

    def at(self, share: float, name: str) -> Arm:
        """The arm of this share (per cent), called `name`."""
        ...


@dataclass(frozen=True)
class OurLine:
    """Our engine with these options of EngineConfig."""

    name: str
    options: tuple[tuple[str, str | int], ...] = ()
    engine: str = PGMOE

    def at(self, share: float, name: str) -> Arm:
        """See Line."""
        return EngineArm(name, f"{share:g}%", options=self.options)


@dataclass(frozen=True)
class LlamaCppLine:
    """llama.cpp in its best mode: all in memory, or mapped where that does not fit."""

    gguf: str
    num_tokens: int
    """Measured below 100 %, where it takes seconds for each."""
    num_threads: int | None = None
    """Below 100 %."""
    name: str = LLAMA_CPP
    engine: str = LLAMA_CPP

    def at(self, share: float, name: str) -> Arm:
        """See Line."""
        if share == 100:
            return LlamaCppArm(name, self.gguf, "none")
        return LlamaCppArm(name, self.gguf, "mmap", num_threads=self.num_threads, most_tokens=self.num_tokens)


@dataclass(frozen=True)
class AccelerateLine:
    """accelerate's disk offload; the memory limit alone decides what its page cache holds."""

    num_tokens: int
    name: str = ACCELERATE
    engine: str = ACCELERATE

    def at(self, share: float, name: str) -> Arm:
        """See Line."""
        return AccelerateArm(cold=False, most_tokens=self.num_tokens, label=name)
