"""Cache policies beside the offline optimum on recorded traces, as a result file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from pgmoe.bench.result import current_commit, now
from pgmoe.errors import ConfigError
from pgmoe.experts.policies import POLICIES
from pgmoe.new_file import write_new_file
from pgmoe.simulation.pools import Pools, parse_slots
from pgmoe.simulation.report import Outcome, Simulation, simulate
from pgmoe.trace import Trace

BUDGETS = ("10%", "25%", "50%", "75%")
BANDWIDTH = 2e9
"""Bytes a second, of the seconds in the result; a good disk's."""


@dataclass(frozen=True)
class PolicyRow:
    """One trace. Prompts take turns in being chosen for the two halves."""

    trace: str
    """The file's name, without its ending."""
    tuned_on: Simulation
    """The half of the prompts that policies' constants may be chosen on."""
    reported: Simulation
    """The other half."""


@dataclass(frozen=True)
class PolicyResult:
    """All policies on some traces."""

    date: str
    """UTC, ISO 8601."""
    commit: str
    """Of the code that replayed; see `pgmoe.bench.result.Result`."""
    about: str
    """What the traces are of, in words."""
    rows: tuple[PolicyRow, ...]

    def save(self, folder: Path) -> Path:
        """Write `policies-<day>-<commit>.json` and return its path; see `write_new_file`."""
        stem = f"policies-{self.date[:10]}-{self.commit.rstrip('+')}"
        content = TypeAdapter(PolicyResult).dump_json(self, indent=1) + b"\n"
        return write_new_file(folder, stem, ".json", content)


def compare_policies(traces: Sequence[Path], about: str = "") -> PolicyResult:
    """Replay all policies over both halves of each trace; `about` says what they are of.

    Raises ConfigError for a file that is no trace, or of fewer than two prompts.
    """
    rows = []
    for path in traces:
        trace = Trace.load(path)
        if len({step.sequence for step in trace.steps}) < 2:
            raise ConfigError(f"{path} is of one prompt; record two or more, as one half is tuned on")
        tuned_on, reported = (_simulate(half) for half in halves(trace))
        rows.append(PolicyRow(path.stem, tuned_on, reported))
    return PolicyResult(now(), current_commit(), about, tuple(rows))


def halves(trace: Trace) -> tuple[Trace, Trace]:
    """The first, third, … sequence to begin, and the others; each a trace of its own."""
    order = list(dict.fromkeys(step.sequence for step in trace.steps))
    first = set(order[::2])
    one = tuple(step for step in trace.steps if step.sequence in first)
    other = tuple(step for step in trace.steps if step.sequence not in first)
    return replace(trace, steps=one), replace(trace, steps=other)


def _simulate(trace: Trace) -> Simulation:
    """One pool for all budgets, and a pool for each layer where every layer gets a slot."""
    num_experts, num_layers = sum(trace.experts_per_layer), len(trace.experts_per_layer)
    enough = [budget for budget in BUDGETS if parse_slots(budget, num_experts) >= num_layers]
    result = _run(trace, BUDGETS, "global")
    return replace(result, outcomes=result.outcomes + _run(trace, enough, "per-layer").outcomes)


def _run(trace: Trace, budgets: Sequence[str], pools: Pools) -> Simulation:
    return simulate(trace, sorted(POLICIES), budgets, BANDWIDTH, [pools])


def render(result: PolicyResult) -> str:
    """The reported halves as Markdown: misses over the optimum's, a line for each policy and pools."""
    parts = []
    for row in result.rows:
        simulation = row.reported
        slots = sorted({o.num_slots for o in simulation.outcomes})
        total = sum(simulation.experts_per_layer)
        parts += [
            f"**{row.trace}** ({simulation.model}: {simulation.num_sequences} sequences, "
            f"{simulation.num_steps} forward passes, {simulation.uses} uses of {total} experts)",
            "",
            "| misses / Belady's | " + " | ".join(f"{n / total:.0%}" for n in slots) + " |",
            "|---|" + "--:|" * len(slots),
        ]
        lines = dict.fromkeys((o.policy, o.pools) for o in simulation.outcomes)
        for policy, pools in lines:
            cells = [_cell(simulation.outcomes, policy, pools, n) for n in slots]
            name = policy if pools == "global" else f"{policy}, a pool per layer"
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _cell(outcomes: Sequence[Outcome], policy: str, pools: Pools, num_slots: int) -> str:
    found = [o for o in outcomes if (o.policy, o.pools, o.num_slots) == (policy, pools, num_slots)]
    return f"{found[0].over_belady:.2f}" if found else ""
