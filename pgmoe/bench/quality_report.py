"""Quality by level as Markdown, in the form of Table II of arXiv 2308.12066."""

from __future__ import annotations

from pgmoe.bench.quality_result import QualityCell, QualityResult
from pgmoe.bench.tables import conditions, heading, table

NAMES = {
    "exact_match": "EM",
    "f1": "F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "loss": "loss, nats a token",
}
_NOTE = (
    "Mean and 95 % interval over seeds (Student's t). The difference is between runs with the same seed. The "
    "last column is what the paper says of Switch-Base-8, on its own tasks: conventional, then pre-gated."
)


def render_quality(result: QualityResult) -> str:
    """A row a task and metric, a column a level; below it the starts of new gates, if compared."""
    parts = [heading(result), _levels(result), _NOTE]
    if len(result.starts) > 1:
        parts += ["Starts of new gates, level 1:", _starts(result)]
    return "\n\n".join([*parts, conditions(result)])


def _levels(result: QualityResult) -> str:
    ahead = [level for level in result.levels if level]
    columns = ["task", "metric", "conventional", *(f"level {level}" for level in ahead)]
    first = ahead[0] if ahead else 0
    columns += [f"level {first} less conventional", "the paper's Base-8"]
    rows = []
    for task, metrics in result.metrics.items():
        for metric in metrics:
            cells = {level: result.cell(task, metric, level) for level in (0, *ahead)}
            gain = getattr(cells[first], "gain", None)
            rows.append(
                [
                    task,
                    NAMES.get(metric, metric),
                    *(_score(cell) for cell in cells.values()),
                    "" if gain is None else gain.text(_digits(metric), "+"),
                    _paper(result, task) if metric == metrics[0] else "",
                ]
            )
    return table(columns, rows)


def _starts(result: QualityResult) -> str:
    pairs = [
        (task, metric)
        for task, metrics in result.metrics.items()
        for metric in metrics
        if all(result.cell(task, metric, 1, start) for start in result.starts)
    ]
    columns = ["start", *(f"{task}, {NAMES.get(metric, metric)}" for task, metric in pairs)]
    rows = [
        [start, *(_score(result.cell(task, metric, 1, start)) for task, metric in pairs)]
        for start in result.starts
    ]
    return table(columns, rows)


def _paper(result: QualityResult, task: str) -> str:
    told = next((figure for figure in result.paper if figure.task == task), None)
    return "" if told is None else f"{told.label}: {told.conventional:.1f}, {told.pre_gated:.1f}"


def _score(cell: QualityCell | None) -> str:
    return "" if cell is None else cell.score.text(_digits(cell.metric))


def _digits(metric: str) -> int:
    return 3 if metric == "loss" else 1
