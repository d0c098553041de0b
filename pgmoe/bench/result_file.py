"""A result file, of whichever kind: reading it, showing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pgmoe.bench.batches_plot import plot_batches
from pgmoe.bench.batches_report import render_batches
from pgmoe.bench.batches_result import BatchesResult
from pgmoe.bench.curve_plot import plot_curve
from pgmoe.bench.curve_report import render_curve
from pgmoe.bench.curve_result import CurveResult
from pgmoe.bench.guesses_plot import plot_guesses
from pgmoe.bench.guesses_report import render_guesses
from pgmoe.bench.guesses_result import GuessesResult
from pgmoe.bench.perplexity_plot import plot_perplexity
from pgmoe.bench.perplexity_report import render_perplexity
from pgmoe.bench.perplexity_result import PerplexityResult
from pgmoe.bench.plot import plot
from pgmoe.bench.policies import PolicyResult
from pgmoe.bench.policies import render as render_policies
from pgmoe.bench.profile_plot import plot_profile
from pgmoe.bench.profile_report import render_profile
from pgmoe.bench.profile_result import ProfileResult
from pgmoe.bench.quality_plot import plot_quality
from pgmoe.bench.quality_report import render_quality
from pgmoe.bench.quality_result import QualityResult
from pgmoe.bench.reads_plot import plot_reads
from pgmoe.bench.reads_report import render_reads
from pgmoe.bench.reads_result import ReadsResult
from pgmoe.bench.report import render
from pgmoe.bench.result import Result
from pgmoe.bench.stalls_plot import plot_stalls
from pgmoe.bench.throughput_plot import plot_throughput
from pgmoe.bench.throughput_report import render_throughput
from pgmoe.bench.throughput_result import ThroughputResult
from pgmoe.bench.variants_report import render_variants
from pgmoe.bench.variants_result import VariantsResult
from pgmoe.errors import ConfigError

AnyResult = (
    Result
    | CurveResult
    | ReadsResult
    | ProfileResult
    | PolicyResult
    | GuessesResult
    | QualityResult
    | PerplexityResult
    | BatchesResult
    | ThroughputResult
    | VariantsResult
)
# What sets them apart are the fields that each must have.
_ADAPTER: TypeAdapter[AnyResult] = TypeAdapter(AnyResult)
_RENDER: dict[type, Callable[[Any], str]] = {
    Result: render,
    CurveResult: render_curve,
    ReadsResult: render_reads,
    ProfileResult: render_profile,
    PolicyResult: render_policies,
    GuessesResult: render_guesses,
    QualityResult: render_quality,
    PerplexityResult: render_perplexity,
    BatchesResult: render_batches,
    ThroughputResult: render_throughput,
    VariantsResult: render_variants,
}
_DRAW: dict[type, Callable[[Any, Path], None]] = {
    Result: plot,
    CurveResult: plot_curve,
    ReadsResult: plot_reads,
    ProfileResult: plot_profile,
    GuessesResult: plot_guesses,
    QualityResult: plot_quality,
    PerplexityResult: plot_perplexity,
    BatchesResult: plot_batches,
    ThroughputResult: plot_throughput,
}


def load_result(path: Path) -> AnyResult:
    """Read what `save` wrote. Raises ConfigError for anything else."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(
            f"{path} is not a result of this version's `pgmoe bench` ({error.error_count()} faults)"
        ) from None


def render_result(result: AnyResult) -> str:
    """As Markdown."""
    return _RENDER[type(result)](result)


def draw_stalls(result: AnyResult, path: Path) -> None:
    """Of a curve, where in the model compute waits, as a PNG. Raises ConfigError for anything else."""
    if not isinstance(result, CurveResult):
        raise ConfigError(
            "this result is no curve; those of `pgmoe bench curve` and `prefetch` say where compute waits"
        )
    plot_stalls(result, path)


def draw_result(result: AnyResult, path: Path) -> None:
    """As a PNG. Raises ConfigError as pictures do, and for what has none."""
    if type(result) not in _DRAW:
        raise ConfigError(
            "comparisons of policies and of variants have no picture; `pgmoe simulate --plot` draws a trace's"
        )
    _DRAW[type(result)](result, path)
