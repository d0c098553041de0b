"""The named benchmarks: which arms, which tokens, which ratios they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgmoe.bench.arms.base import Arm
from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.no_cache import NoCacheArm
from pgmoe.bench.arms.peers import AccelerateArm, TransformersArm
from pgmoe.bench.job import Job
from pgmoe.bench.result import Pair
from pgmoe.bench.small_model import PROMPTS
from pgmoe.errors import ConfigError
from pgmoe.models.chat_template import ChatMessage, ChatTemplate
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.loader import read_plan
from pgmoe.models.tokenizer import load_tokenizer

PROMPT_TOKENS = 32
CHAT_PROMPT = "Explain in a few sentences why the sky is blue."
RANDOM_STREAM = (
    "prompt and answer are a fixed uniformly random stream of tokens (seed 0), fed to every arm by the same "
    "loop over its model; `tokens` compares the most probable token at each position"
)
TEXT = (
    "prompt and answer are beginnings of documents that training has not seen, one after another, fed to "
    "every arm by the same loop"
)
CHAT = f"the default model's greedy answer to {CHAT_PROMPT!r} in its chat template"
RESIDENT = EngineArm("pgmoe, resident")
QUARTER = EngineArm("pgmoe, 25%", "25%")
NO_CACHE = NoCacheArm()
EAGER, GROUPED = TransformersArm("eager"), TransformersArm("grouped_mm")
ACCELERATE, ACCELERATE_WARM = AccelerateArm(), AccelerateArm(cold=False)


@dataclass(frozen=True)
class Benchmark:
    """What to run, before it is known on which machine."""

    name: str
    arms: tuple[Arm, ...]
    job: Job
    workload: str
    """Model and tokens, in words."""
    pairs: tuple[Pair, ...] = ()
    cold_starts: Mapping[str, int] = field(default_factory=dict)


def default_model(folder: str, num_tokens: int) -> Benchmark:
    """The default model's own greedy answer to a chat prompt."""
    return Benchmark(
        name="default-model",
        arms=(RESIDENT, QUARTER, EAGER, GROUPED, ACCELERATE, ACCELERATE_WARM),
        job=chat_job(folder, num_tokens),
        workload=CHAT,
        pairs=tuple(Pair(a, b) for a, b in [
            (RESIDENT.name, EAGER.name),
            (RESIDENT.name, GROUPED.name),
            (QUARTER.name, RESIDENT.name),
            (QUARTER.name, ACCELERATE.name),
        ]),
        cold_starts={QUARTER.name: 1, GROUPED.name: 1},
    )  # fmt: skip


def olmoe_like(folder: str, model_text: str, num_tokens: int, num_loads: int) -> Benchmark:
    """A random checkpoint on a CPU, driven by a random stream."""
    return Benchmark(
        name="olmoe-like",
        arms=(RESIDENT, QUARTER, NO_CACHE, GROUPED, EAGER),
        job=random_job(folder, num_tokens),
        workload=f"{model_text}; {RANDOM_STREAM}",
        pairs=tuple(Pair(a, b) for a, b in [
            (RESIDENT.name, GROUPED.name),
            (RESIDENT.name, EAGER.name),
            (QUARTER.name, NO_CACHE.name),
            (QUARTER.name, RESIDENT.name),
        ]),
        cold_starts={QUARTER.name: num_loads, GROUPED.name: 1},
    )  # fmt: skip


def offload_curve(folder: str, model_text: str, num_tokens: int) -> Benchmark:
    """Shares of the experts on an accelerator, the others in host memory."""
    shares = [EngineArm(f"pgmoe, {s}%", f"{s}%", host_memory="100%") for s in (50, 25, 10)]
    return Benchmark(
        name="gpu",
        arms=(RESIDENT, *shares, GROUPED),
        job=random_job(folder, num_tokens),
        workload=f"{model_text}; experts that are not resident lie in pinned host memory; {RANDOM_STREAM}",
        pairs=(Pair(RESIDENT.name, GROUPED.name), *(Pair(s.name, RESIDENT.name) for s in shares)),
    )


def custom(folder: str, arms: Sequence[Arm], num_tokens: int) -> Benchmark:
    """Any arms on any decoder, driven by a random stream; ratios are to the first arm."""
    return Benchmark(
        name="compare",
        arms=tuple(arms),
        job=random_job(folder, num_tokens),
        workload=f"{folder.rstrip('/').rpartition('/')[2]}; {RANDOM_STREAM}",
        pairs=tuple(Pair(arm.name, arms[0].name) for arm in arms[1:]),
    )


def chat_job(folder: str, num_tokens: int) -> Job:
    """A chat prompt that the model answers itself. Raises ConfigError for a model without tokenizer."""
    tokenizer = load_tokenizer(Checkpoint.open(folder).folder)
    if tokenizer is None:
        raise ConfigError(f"{folder} has no tokenizer; build the model with `pgmoe default-model`")
    prompt = ChatTemplate(tokenizer).render([ChatMessage("user", CHAT_PROMPT)])
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    return Job(tuple(ids), num_tokens)


def text_job(folder: str, num_tokens: int) -> Job:
    """A forced answer of the documents' beginnings that lie with a small model, one after another.

    Raises ConfigError if they are missing or too few.
    """
    path = Path(folder) / PROMPTS
    tokenizer = load_tokenizer(Path(folder))
    if tokenizer is None or not path.is_file():
        raise ConfigError(
            f"{folder} has no tokenizer and {PROMPTS}; `pgmoe bench small-moe` makes such a model"
        )
    ids: list[int] = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)
    if len(ids) < PROMPT_TOKENS + num_tokens:
        raise ConfigError(
            f"{path} has {len(ids)} tokens, {PROMPT_TOKENS + num_tokens} are needed; ask for fewer"
        )
    return Job(tuple(ids[:PROMPT_TOKENS]), num_tokens, tuple(ids[PROMPT_TOKENS : PROMPT_TOKENS + num_tokens]))


def random_job(folder: str, num_tokens: int) -> Job:
    """The stream for this model's vocabulary. Raises ConfigError for an encoder-decoder."""
    config = read_plan(folder).config
    if config.is_encoder_decoder:
        raise ConfigError(f"{folder} is an encoder-decoder model; the benchmarks drive decoders only")
    return Job.random_stream(config.get_text_config().vocab_size, PROMPT_TOKENS, num_tokens)


def parse_arm(text: str) -> Arm:
    """`resident`, a share or size such as `25%` or `600MiB`, `no-cache`, `eager`, `grouped_mm`, `accelerate`.

    A wrong size raises ConfigError only when the arm is loaded.
    """
    named: dict[str, Arm] = {"resident": RESIDENT, "no-cache": NO_CACHE, "accelerate": ACCELERATE}
    named |= {arm.experts: arm for arm in (EAGER, GROUPED)}
    if text in named:
        return named[text]
    if not text[:1].isdigit():
        raise ConfigError(f"unknown arm {text!r}; choose of {', '.join(named)}, or give a share such as 25%")
    return EngineArm(f"pgmoe, {text}", text)
