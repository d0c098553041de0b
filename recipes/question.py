"""Questions that a pattern finds in a sentence together with their answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_PRONOUN = r"(?:It|He|She|They|Its|His|Her|Their|The (?:city|town|country|state|island|region|river|lake))\b"
_UNFINISHED = re.compile(r"(?:['’]s| (?:in|by|of|to|for|from|on|with|at|between))$")
_MIN_CLAUSE_WORDS, _MAX_CLAUSE_WORDS = 4, 12


@dataclass(frozen=True)
class Question:
    """A question on a text and its answer, a literal part of that text."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Kind:
    """A kind of question: a pattern with a group `answer`, and how the question is put."""

    name: str
    pattern: re.Pattern[str]
    put: Callable[[str, re.Match[str]], str]
    """From the article's title and the match; empty if it makes no question."""
    first_only: bool = False
    """Whether only an article's first sentence, which says what it is about, has the pattern."""
    of_subject: bool = False
    """Whether the sentence must begin with the title or a pronoun, as other things have the pattern, too."""
    once: bool = False
    """Whether a passage with a second match leaves open which one is meant."""
    max_words: int = 8
    """Of an answer."""

    def ask(self, title: str, sentence: str, passage: str) -> Question | None:
        """The question on this sentence of the passage, or None."""
        title = re.sub(r" \([^()]*\)$", "", title)
        match = self.pattern.search(sentence)
        if match is None or (self.once and len(self.pattern.findall(passage)) > 1):
            return None
        if self.of_subject and not re.match(rf"(?:The |An? )?{re.escape(title)}|{_PRONOUN}", sentence):
            return None
        answer, text = _trimmed(match["answer"]), self.put(title, match)
        fits = 0 < len(answer.split()) <= self.max_words and not _UNFINISHED.search(answer)
        return Question(self.name, text, answer) if text and fits and answer in passage else None


def about(template: str) -> Callable[[str, re.Match[str]], str]:
    """A question from a template with {title} and the pattern's groups."""
    return lambda title, match: template.format(title=title, **match.groupdict())


def clause(ask: str) -> Callable[[str, re.Match[str]], str]:
    """A question from group `lead`, the words before the answer: 'In which year: it was given a charter?'"""

    def put(title: str, match: re.Match[str]) -> str:
        words = re.split(r"[,;:]\s", match["lead"])[-1].split()[-_MAX_CLAUSE_WORDS:]
        return f"{ask}: {' '.join(words)}? ({title})" if len(words) >= _MIN_CLAUSE_WORDS else ""

    return put


def when_or_where(asks: str) -> Callable[[str, re.Match[str]], str]:
    """A question that begins with When if the answer is a number, else with Where."""
    return lambda title, match: (
        f"{'When' if match['answer'].isdecimal() else 'Where'} {asks.format(title=title)}?"
    )


def _trimmed(answer: str) -> str:
    """Without quotation marks and the sentence's full stop; that of 'U.S.' stays."""
    answer = answer.strip('"“” ')
    return answer if re.search(r"\b[A-Z]\.$", answer) else answer.rstrip(".")
