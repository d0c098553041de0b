"""Questions on a passage whose answer is a part of the passage, after SQuAD's form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from recipes.example import Example, Task, divide
from recipes.passage import passage, sentences
from recipes.question import Question
from recipes.question_kinds import kinds
from recipes.wiki import Article

NAME = "extractive"
NUM_TEST = 1_000


def extractive(articles: Iterable[Article], num_test: int = NUM_TEST) -> Task:
    """All questions that the patterns find; those on one article are all in train or all in test."""
    return divide(NAME, (item for article in articles for item in _examples(article)), num_test)


def prompt(question: Question, context: str) -> str:
    """As T5 puts SQuAD's questions."""
    return f"question: {question.text} context: {context}"


def _examples(article: Article) -> Iterator[Example]:
    parts = sentences(article.text)
    for at, sentence in enumerate(parts):
        context = passage(parts, at)
        for kind in kinds():
            asked = at == 0 or not kind.first_only
            question = kind.ask(article.title, sentence, context) if asked else None
            if question is not None:
                yield Example(prompt(question, context), question.answer, (question.answer,), article.title)
