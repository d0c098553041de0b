"""A result as Markdown."""

from __future__ import annotations

from statistics import median

from pgmoe.bench.compare import Series
from pgmoe.bench.machine import Machine
from pgmoe.bench.result import Result
from pgmoe.bench.statistics import Spread, first_difference, paired_ratio
from pgmoe.units import format_bytes

_COLUMNS = (
    "arm",
    "tokens/s",
    "first token, s",
    "hit rate",
    "read per token",
    "waited",
    "RSS",
    "files",
    "peak",
    "tokens",
)


def render(result: Result) -> str:
    """Tables of speeds, ratios and loads, and the conditions they hold under."""
    dirty = ", with uncommitted changes" if result.commit.endswith("+") else ""
    return "\n\n".join(
        [
            f"### {result.name}, {result.date[:10]}, commit {result.commit.rstrip('+')}{dirty}",
            _table(_COLUMNS, [_speed_row(result, s) for s in result.series]),
            _ratios(result),
            *([f"> {result.texts[0]}".replace("\n", "\n> ")] if result.texts else []),
            *_cold_starts(result),
            "\n".join(f"- {key}: {value}" for key, value in result.conditions.items()),
            _machine(result.machine),
        ]
    )


def speeds(series: Series) -> list[float]:
    """Decode tokens/s of each round."""
    return [m.answer.tokens_per_s for m in series.rounds]


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(columns), ["---", *(["--:"] * (len(columns) - 1))], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _speed_row(result: Result, series: Series) -> list[str]:
    answers = [m.answer for m in series.rounds]
    cells = [series.name, Spread.of(speeds(series)).text(2)]
    cells.append(Spread.of([a.first_token_s for a in answers]).text(2))
    traffic = [a.traffic for a in answers if a.traffic is not None]
    if traffic:
        hits = median(t.hits / max(t.hits + t.misses, 1) for t in traffic)
        read = median(t.num_bytes for t in traffic) / (len(answers[0].tokens) - 1)
        waited = median(t.stall_s / a.decode_s for t, a in zip(traffic, answers, strict=True))
        cells += [f"{hits:.1%}", format_bytes(int(read)), f"{waited:.0%}"]
    else:
        cells += ["", "", ""]
    last = series.rounds[-1].memory
    sizes = [last.rss_bytes, last.file_bytes, last.peak_rss_bytes]
    return [*cells, *(_gb(size) for size in sizes), _agreement(result, series)]


def _agreement(result: Result, series: Series) -> str:
    """How the arm's tokens in every round compare to the first arm's in its first."""
    expected = result.series[0].rounds[0].answer.tokens
    found = [first_difference(m.answer.tokens, expected) for m in series.rounds]
    differing = [position for position in found if position is not None]
    length = len(series.rounds[0].answer.tokens)
    if not differing:
        return f"{length} the same"
    return f"{length}, differ from number {min(differing) + 1}"


def _ratios(result: Result) -> str:
    lines = []
    for pair in result.pairs:
        ratio = paired_ratio(speeds(result.of(pair.arm)), speeds(result.of(pair.baseline)))
        lines.append(f"- **{pair.arm}** decodes {ratio.text(2)} times as fast as **{pair.baseline}**")
    return "\n".join(lines)


def _cold_starts(result: Result) -> list[str]:
    loaded = [s for s in result.series if s.loads]
    columns = ("cold start", "s", "peak RSS", "times")
    return [_table(columns, [_load_row(s) for s in loaded])] if loaded else []


def _load_row(series: Series) -> list[str]:
    seconds = Spread.of([load.seconds for load in series.loads])
    peak = max(load.memory.peak_rss_bytes for load in series.loads)
    return [series.name, seconds.text(2), _gb(peak), str(len(series.loads))]


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _machine(machine: Machine) -> str:
    disk = machine.disk_bytes_per_s
    parts = [
        f"{machine.num_cores} cores of {machine.processor} ({', '.join(machine.flags)})",
        f"{machine.ram_bytes / 2**30:.0f} GiB RAM",
        f"accelerator: {machine.accelerator or 'none'}",
        "disk: no direct reads" if disk is None else f"disk: {disk / 1e9:.2f} GB/s in direct reads of 4 MiB",
        f"Linux {machine.kernel}, Python {machine.python}",
        ", ".join(f"{name} {number}" for name, number in machine.libraries.items()),
    ]
    return "Machine: " + "; ".join(parts) + "."
