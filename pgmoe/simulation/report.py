"""Policies beside the offline optimum, on one trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from pgmoe.experts.policies import check_policy, make_policy
from pgmoe.simulation.belady import belady_misses
from pgmoe.simulation.demand import Demand, demands
from pgmoe.simulation.pools import Pools, count_misses, parse_slots
from pgmoe.simulation.replay import replay_misses
from pgmoe.trace import Trace

BELADY = "belady"


@dataclass(frozen=True)
class Outcome:
    """What one policy makes of one budget."""

    policy: str
    """`belady` is the offline optimum."""
    pools: Pools
    num_slots: int
    share: float
    """Of all experts."""
    misses: int
    hit_rate: float
    over_belady: float
    """Misses over those of the optimum with one pool for all layers."""
    num_bytes: int
    """Read for the misses."""
    least_s: float
    """The seconds that the link takes for them: no run is faster."""


@dataclass(frozen=True)
class Simulation:
    """All outcomes of one trace."""

    model: str
    experts_per_layer: tuple[int, ...]
    top_k: int
    expert_bytes: int
    bandwidth: float
    """Bytes a second."""
    num_steps: int
    num_sequences: int
    uses: int
    """Experts demanded, each once a layer and step."""
    outcomes: tuple[Outcome, ...]

    def json(self) -> str:
        """As JSON."""
        return TypeAdapter(Simulation).dump_json(self, indent=1).decode()


def simulate(
    trace: Trace, policies: Sequence[str], budgets: Sequence[str], bandwidth: float, pools: Sequence[Pools]
) -> Simulation:
    """Replay each policy with each budget, the optimum first. The caches begin empty.

    Raises ConfigError for an unknown policy, or a budget that cannot be had; see `parse_slots`.
    """
    for name in policies:
        check_policy(name)
    all_slots = [parse_slots(budget, sum(trace.experts_per_layer)) for budget in budgets]
    replay = _Replay(trace, demands(trace), bandwidth)
    outcomes = []
    for num_slots in all_slots:
        best = belady_misses(replay.wanted, num_slots)
        for kind in pools:
            outcomes += [replay.run(name, num_slots, kind, best) for name in (BELADY, *policies)]
    return Simulation(
        model=trace.model,
        experts_per_layer=trace.experts_per_layer,
        top_k=trace.top_k,
        expert_bytes=trace.expert_bytes,
        bandwidth=bandwidth,
        num_steps=len(trace.steps),
        num_sequences=len({step.sequence for step in trace.steps}),
        uses=replay.uses,
        outcomes=tuple(outcomes),
    )


@dataclass(frozen=True)
class _Replay:
    trace: Trace
    wanted: tuple[Demand, ...]
    bandwidth: float

    @property
    def uses(self) -> int:
        return sum(map(len, self.wanted))

    def run(self, name: str, num_slots: int, pools: Pools, best: int) -> Outcome:
        """`best` is the optimum's misses."""
        experts_per_layer = self.trace.experts_per_layer

        def misses_of(wanted: Sequence[Demand], slots: int) -> int:
            if name == BELADY:
                return belady_misses(wanted, slots)
            return replay_misses(wanted, slots, make_policy(name, experts_per_layer))

        misses = count_misses(self.wanted, num_slots, len(experts_per_layer), pools, misses_of)
        num_bytes = misses * self.trace.expert_bytes
        return Outcome(
            policy=name,
            pools=pools,
            num_slots=num_slots,
            share=num_slots / sum(experts_per_layer),
            misses=misses,
            hit_rate=1 - misses / max(1, self.uses),
            over_belady=misses / max(1, best),
            num_bytes=num_bytes,
            least_s=num_bytes / self.bandwidth,
        )
