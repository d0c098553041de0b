"""Whatever is drawn (budget, tiers, policy, gating, requests at once, slow and failing reads), every answer
has the bits of the model with all experts resident, given the same requests in the same steps.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgmoe.config import EngineConfig
from pgmoe.engine import tiers
from pgmoe.engine.engine import Engine
from pgmoe.errors import ExpertReadError
from pgmoe.experts.policies import POLICIES
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.gating.make import GATINGS
from pgmoe.gating.recording import RecordingGating
from pgmoe.layout import ExpertId
from pgmoe.metrics.stats import ExpertStats
from pgmoe.pre_gating import Scope
from pgmoe.request import Request, SamplingParams, TokenLogprob
from pgmoe.routing import Gating
from pgmoe.trace import Trace
from pgmoe.training.pregate import pregate
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import EARLY_ROUTED_FAMILIES, ENCODER_DECODER_FAMILIES
from tests.support.expert_files import GatedStore
from tests.support.runs import all_logits, smallest_budget

PRE_GATED = {"pre-gated mixtral": ("mixtral", 2), "pre-gated switch": ("switch_transformers", 1)}
"""Of which family, and how far ahead; in a Switch the encoder, too."""
FAMILIES = ("mixtral", "olmoe", "gpt_oss", "deepseek_v3", "smallthinker", "switch_transformers", *PRE_GATED)
NUM_TOKENS = 6
"""Of the longest answer."""
LONGEST_DELAY_S = 0.002
_draw = random.Random(40)
PROMPTS = [tuple(_draw.randrange(5, 120) for _ in range(length)) for length in (1, 7, 12)]
EVERY_PROMPT = tuple((number, NUM_TOKENS) for number in range(len(PROMPTS)))

Answer = tuple[TokenLogprob, ...]
Batch = tuple[tuple[int, int], ...]
"""Requests at once: number of the prompt, tokens of the answer."""


@dataclass(frozen=True)
class Schedule:
    """One engine's life."""

    options: dict[str, object]
    batches: tuple[Batch, ...]
    delayed: float
    """Share of the reads that take longer."""
    failing: float
    """Share of the reads that fail, a few times in all."""
    seed: int


class Weather(GatedStore):
    """Reads that may be slow or fail, once that is wanted."""

    def __init__(self, store: ExpertStore, schedule: Schedule) -> None:
        super().__init__(store)
        self._schedule = schedule
        self._draw = random.Random(schedule.seed)
        self._lock = threading.Lock()
        self.failures_left = 0

    def enter(self, expert: ExpertId) -> None:
        with self._lock:
            delay, failure = self._draw.random(), self._draw.random()
            fails = failure < self._schedule.failing and self.failures_left > 0
            self.failures_left -= fails
        if delay < self._schedule.delayed:
            time.sleep(LONGEST_DELAY_S * delay)
        if fails:
            raise ExpertReadError(f"{expert}: bad weather")

    def close(self) -> None:
        self.store.close()


@dataclass(frozen=True)
class Resident:
    """A family's checkpoint, what it answers with all experts resident, and the routing on the way."""

    folder: Path
    logits: tuple[Tensor, ...]
    """(1, S, V) of each prompt."""
    trace: Path
    known: dict[tuple[Batch, int], list[Answer | None]] = field(default_factory=dict)
    """Answers to batches, by how many requests run at once."""

    def answers(self, batch: Batch, max_running: int) -> list[Answer | None]:
        """What a fresh engine with all experts resident says."""
        if (batch, max_running) not in self.known:
            engine = Engine(EngineConfig(model=str(self.folder), device="cpu", max_running=max_running))
            self.known[batch, max_running] = answers(engine, batch)
            engine.close()
        return self.known[batch, max_running]


def answers(engine: Engine, batch: Batch) -> list[Answer | None]:
    """Of these requests together, greedy; None where reading an expert failed. Other errors are raised."""
    found: list[Answer | None] = [() for _ in batch]
    for number, (prompt, num_tokens) in enumerate(batch):
        params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True, logprobs=5)
        engine.add(
            engine.accept(Request(request_id=str(number), prompt_token_ids=PROMPTS[prompt], params=params))
        )
    while engine.has_work:
        for output in engine.step():
            number = int(output.request_id)
            if output.error is not None:
                if not isinstance(output.error, ExpertReadError):
                    raise output.error
                found[number] = None
            elif output.piece is not None:
                found[number] = (*(found[number] or ()), *output.piece.logprobs)
    return found


def logits(engine: Engine, prompt: int) -> Tensor:
    """(1, S, V) of a prompt."""
    engine.gating.begin(["logits"])
    return all_logits(engine.loaded.model, [PROMPTS[prompt]])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices are tiny: on a busy machine, threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def resident(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Resident]:
    """`resident(family)`, computed once."""
    done: dict[str, Resident] = {}

    def get(family: str) -> Resident:
        if family not in done:
            work = tmp_path_factory.mktemp("traces")
            base, level = PRE_GATED.get(family, (family, 0))
            folder = tiny(base, torch.bfloat16)
            if level:
                scope: Scope = "both" if base in ENCODER_DECODER_FAMILIES else "decoder"
                folder = pregate(str(folder), work / "pre-gated", level=level, scope=scope).folder
            done[family] = record(folder, work / family)
        return done[family]

    return get


def record(folder: Path, trace: Path) -> Resident:
    recorders: list[RecordingGating] = []

    def recording(inner: Gating) -> Gating:
        recorders.append(RecordingGating(inner))
        return recorders[0]

    engine = Engine(EngineConfig(model=str(folder), device="cpu"), wrap_gating=recording)
    answers(engine, EVERY_PROMPT)
    layers = engine.loaded.layers
    sizes = tuple(layer.num_experts for layer in layers)
    Trace("tiny", sizes, layers[0].top_k, 1, recorders[0].steps(sizes)).save(trace)
    whole = tuple(logits(engine, number) for number in range(len(PROMPTS)))
    engine.close()
    return Resident(folder, whole, trace)


@contextmanager
def engine_of(model: Resident, schedule: Schedule) -> Iterator[tuple[Engine, list[Weather]]]:
    """An engine whose reads the schedule has in hand."""
    stores: list[Weather] = []
    open_store = tiers.open_disk_store

    def under_weather(*args: object, **options: object) -> Weather:
        stores.append(Weather(open_store(*args, **options), schedule))  # type: ignore[arg-type]
        return stores[-1]

    config = {"model": str(model.folder), "device": "cpu", **schedule.options}
    if config.get("gating") == "oracle":
        config["gating_trace"] = str(model.trace)
    if config.get("device_memory") == "smallest":
        config["device_memory"] = smallest_budget(
            model.folder, num_readers=schedule.options.get("num_readers", EngineConfig(model="").num_readers)
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiers, "open_disk_store", under_weather)
        engine = Engine(EngineConfig.parse(config))
    try:
        yield engine, stores
    finally:
        engine.close()


def play(model: Resident, schedule: Schedule) -> ExpertStats:
    """Assert that this schedule changes no bit."""
    with engine_of(model, schedule) as (engine, stores):
        for store in stores:
            store.failures_left = 5
        for batch in schedule.batches:
            todo = batch
            while todo:  # what failed is asked again
                found = answers(engine, todo)
                expected = model.answers(todo, engine.config.max_running)
                for answer, wanted in zip(found, expected, strict=True):
                    assert answer is None or answer == wanted
                todo = tuple(one for one, answer in zip(todo, found, strict=True) if answer is None)
        for store in stores:
            store.failures_left = 0
        for number, whole in enumerate(model.logits):
            assert torch.equal(logits(engine, number), whole)
        return engine.stats.experts


requests = st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(1, NUM_TOKENS))
batches = st.lists(st.lists(requests, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)
tier_options = st.one_of(
    st.fixed_dictionaries({"host_memory": st.sampled_from(["0", "10%", "40%", "75%", "100%"])}),
    st.fixed_dictionaries({"emulated_link": st.sampled_from(["200MB/s", "25GB/s"])}),
)


def gatings_of(family: str) -> list[str]:
    """Those that this family takes: a model that selects its experts ahead needs no guesses of them."""
    selects = family in EARLY_ROUTED_FAMILIES or family in PRE_GATED
    return sorted(GATINGS.keys() - {"speculative" if selects else "pregated"})


def schedules(family: str) -> st.SearchStrategy[Schedule]:
    other_options = st.fixed_dictionaries(
        {
            "device_memory": st.sampled_from(["smallest", "30%", "45%", "70%", "100%"]),
            "policy": st.sampled_from(sorted(POLICIES)),
            "gating": st.sampled_from(gatings_of(family)),
            "whole_layers": st.sampled_from(["auto", "off"]),
            "num_readers": st.integers(1, 4),
            "direct_io": st.booleans(),
            "max_running": st.integers(1, 3),
        }
    )
    options = st.builds(lambda tier, other: {**tier, **other}, tier_options, other_options)
    lives = st.tuples(
        options,
        st.one_of(st.just((EVERY_PROMPT,)), batches),
        st.sampled_from([0.0, 0.3]),
        st.sampled_from([0.0, 0.1, 0.5]),
        st.integers(0, 1 << 30),
    )
    return lives.map(lambda life: _schedule(*life))


def _schedule(
    options: dict[str, object], batches: tuple[Batch, ...], delayed: float, failing: float, seed: int
) -> Schedule:
    """What fails beside others runs again alone, in another step: then requests run one at a time."""
    alone = {"max_running": 1} if failing else {}
    return Schedule({**options, **alone}, batches, delayed, failing, seed)


def drawn(num_schedules: int) -> settings:
    return settings(
        max_examples=num_schedules,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an engine a try: too slow to shrink
        suppress_health_check=list(HealthCheck),
    )


def play_drawn(num_schedules: int, family: str, resident: Resident) -> None:
    """So many schedules, each of which must give what the resident engine gave."""

    @drawn(num_schedules)
    @given(schedules(family))
    def run(schedule: Schedule) -> None:
        play(resident, schedule)

    run()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_schedule_changes_a_bit(resident: Callable[[str], Resident], family: str) -> None:
    play_drawn(4, family, resident(family))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_schedule_of_many_changes_a_bit(resident: Callable[[str], Resident], family: str) -> None:
    play_drawn(400, family, resident(family))


@pytest.mark.parametrize("gating", sorted(GATINGS))
def test_every_gating_prefetches_what_it_knows_and_changes_no_bit(
    resident: Callable[[str], Resident], gating: str
) -> None:
    options: dict[str, object] = {"gating": gating, "device_memory": "45%", "emulated_link": "1GB/s"}
    family = next(f for f in ("olmoe", "pre-gated mixtral") if gating in gatings_of(f))
    stats = play(resident(family), Schedule(options, (EVERY_PROMPT,), 0.0, 0.0, 0))
    known = stats.prefetch_bytes["useful"] + stats.prefetch_bytes["late"]
    assert (known > 0) == (gating != "on_demand")
    assert (stats.links["emulated"].num_bytes["prefetch"] > 0) == (gating != "on_demand")
    assert stats.evictions.total() > 0
