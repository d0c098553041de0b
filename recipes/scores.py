"""How good answers are, in per cent, and how sure that is over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF
from scipy.stats import t
from torchmetrics.functional.text import squad

from pgmoe.errors import ConfigError

_ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class AnswerScore:
    """Of short answers, after SQuAD 1.1: case, punctuation and articles do not count."""

    exact_match: float
    f1: float
    """Of the words of an answer and those of its most similar reference."""


@dataclass(frozen=True)
class SummaryScore:
    """Of summaries; of several references the best one counts."""

    rouge1: float
    """F of single words, stemmed."""
    rouge2: float
    """F of pairs of words."""
    rouge_l: float
    """F of the longest common sequence of words."""
    chrf: float
    """F of character sequences, over all answers together (sacrebleu's chrF2): sees half-right words, too."""


@dataclass(frozen=True)
class Interval:
    """A mean and what is between its 95 % limits."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """By Student's t. Raises ConfigError for less than two values."""
        if len(values) < 2:
            raise ConfigError(
                f"an interval needs the results of two seeds or more, and there are {len(values)}"
            )
        error = stdev(values) / len(values) ** 0.5
        return cls(fmean(values), float(t.ppf(0.975, len(values) - 1)) * error)

    def text(self, digits: int = 1) -> str:
        """`41.3 ± 0.8`."""
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"


def score_answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> AnswerScore:
    """Exact match and F1, each against the best of a prediction's references. Raises ConfigError."""
    _check(predictions, references)
    scores = squad(
        [{"id": str(index), "prediction_text": text} for index, text in enumerate(predictions)],
        [{"id": str(index), "answers": {"text": list(texts)}} for index, texts in enumerate(references)],
    )
    return AnswerScore(float(scores["exact_match"]), float(scores["f1"]))


def score_summaries(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> SummaryScore:
    """ROUGE (means over the answers) and chrF. Raises ConfigError."""
    _check(predictions, references)
    scorer = RougeScorer(_ROUGE, use_stemmer=True)
    scores = [scorer.score_multi(texts, text) for text, texts in zip(predictions, references, strict=True)]
    rouge1, rouge2, rouge_l = (100 * fmean(score[name].fmeasure for score in scores) for name in _ROUGE)
    most = max(map(len, references))
    columns = [[texts[at] if at < len(texts) else texts[0] for texts in references] for at in range(most)]
    return SummaryScore(rouge1, rouge2, rouge_l, CHRF().corpus_score(predictions, columns).score)


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not predictions or len(predictions) != len(references):
        raise ConfigError(
            f"{len(predictions)} predictions and {len(references)} lists of references cannot be scored; "
            "give as many of both, and one at least"
        )
    if not all(references):
        raise ConfigError("a prediction without any reference cannot be scored; give each one or more")
