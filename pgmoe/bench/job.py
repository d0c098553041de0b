"""One measurement as plain data: what an arm is given, and what comes back."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, Self, TypeVar


class Task(Protocol):
    """What an arm is given to do."""

    def first(self, num_tokens: int) -> Self:
        """The same with at most this many tokens of each answer; those are the same ones."""
        ...


AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Job:
    """A prompt to go on from, the same for every arm. End-of-sequence tokens do not end an answer."""

    prompt: tuple[int, ...]
    num_tokens: int
    forced: tuple[int, ...] | None = None
    """Fed as answer in place of the model's own choice. Greedy answers of a random model fall into one
    repeated token, whose experts are then always the same: a locality that no real text has."""
    beside: tuple[tuple[int, ...], ...] = ()
    """Further sequences, of prompt and answer each, that go through the model in the same passes; as long as
    the first, and only beside a forced answer."""

    def __post_init__(self) -> None:
        if self.beside:
            assert self.forced is not None, self
            assert {len(row) for row in self.beside} == {len(self.prompt) + len(self.forced)}, self

    @classmethod
    def random_stream(cls, vocab_size: int, prompt_length: int, num_tokens: int, seed: int = 0) -> Job:
        """A prompt and a forced answer of uniformly drawn tokens."""
        draw = random.Random(seed)
        stream = tuple(draw.randrange(vocab_size) for _ in range(prompt_length + num_tokens))
        return cls(stream[:prompt_length], num_tokens, stream[prompt_length:])

    def first(self, num_tokens: int) -> Job:
        """The same with at most this many tokens; those are the same ones."""
        return replace(self, num_tokens=min(num_tokens, self.num_tokens))


@dataclass(frozen=True)
class Place:
    """Where and on what every arm runs."""

    model: str
    """Checkpoint folder."""
    device: str
    """`cpu`, or a torch accelerator's name."""
    num_threads: int
    openmp: str
    """The processes' OpenMP variables, which they inherit; only reported."""
    scratch: str
    """Folder on a disk for files that an arm needs; what is put there is removed at the end."""


@dataclass(frozen=True)
class Traffic:
    """What became of the experts used after the first token, where the arm counts it."""

    hits: int
    misses: int
    num_bytes: int
    stall_s: float
    useful_bytes: int = 0
    """Of experts read before they were asked for: those that were ready in time."""
    late_bytes: int = 0
    """Asked for while still on their way."""
    wasted_bytes: int = 0
    """Evicted unused."""
    layer_stall_s: tuple[float, ...] = ()
    """`stall_s` by MoE layer; empty where the arm does not know, and in files from before it was kept."""

    def since(self, before: Traffic) -> Traffic:
        """What came after an earlier account of the same engine."""
        counts = {
            name: value - getattr(before, name)
            for name, value in vars(self).items()
            if name != "layer_stall_s"
        }
        layers = zip(self.layer_stall_s, before.layer_stall_s, strict=True)
        return Traffic(**counts, layer_stall_s=tuple(after - earlier for after, earlier in layers))


@dataclass(frozen=True)
class Profile:
    """Where the time from the first token to the last went."""

    parts_s: dict[str, float]
    """Seconds by part; they add up to all of it."""
    compute_cpu_s: float
    """Of all cores, by all threads but the readers."""
    reader_cpu_s: float
    link_busy_s: float
    """In which at least one expert was on its way, the links' added up; to within one transfer."""
    timers_s: float
    """What the timers themselves took: their calls times that of an empty one."""
    plain_decode_s: float = 0.0
    """From the first token to the last of the same job without timers."""


@dataclass(frozen=True)
class Answer:
    """Tokens and times of one job."""

    tokens: tuple[int, ...]
    """The most probable token at each position, whether or not it was fed."""
    first_token_s: float
    decode_s: float
    """From the first token to the last."""
    traffic: Traffic | None = None
    profile: Profile | None = None
    """Where it was asked for."""

    @property
    def tokens_per_s(self) -> float:
        """After the first token."""
        return (len(self.tokens) - 1) / self.decode_s


@dataclass(frozen=True)
class Memory:
    """A process's memory in bytes, by the operating system's account."""

    rss_bytes: int
    file_bytes: int
    """Of rss_bytes, pages of mapped files; the system may take those back."""
    peak_rss_bytes: int
    """Since the process began, loading included."""
    peak_device_bytes: int | None = None
    """Allocated on the accelerator; None on a CPU."""


@dataclass(frozen=True)
class Load:
    """A cold start: fresh process, the checkpoint's files not in the page cache."""

    seconds: float
    """Until the arm could take a prompt; importing libraries is not counted."""
    memory: Memory


@dataclass(frozen=True)
class Measured(Generic[AnswerT]):
    """One job done by one arm."""

    answer: AnswerT
    memory: Memory


@dataclass(frozen=True)
class Failed:
    """An arm that could not go on."""

    message: str
    trace: str = field(repr=False)
