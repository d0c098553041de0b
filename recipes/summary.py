"""The shortest of summaries: from an article's beginning to its short description."""

from __future__ import annotations

import re
from collections.abc import Iterable

from recipes.example import Example, Task, divide
from recipes.passage import passage, sentences
from recipes.wiki import Article

NAME = "summary"
NUM_TEST = 800
_LIFE = re.compile(r"\s*\((?:[^()]*\d[^()]*|born[^()]*)\)$")  # its years: the articles' beginnings lack them
_MIN_WORDS = 2


def summary(articles: Iterable[Article], num_test: int = NUM_TEST) -> Task:
    """Articles with a description of two words or more."""
    examples = (
        Example(f"summarize: {passage(sentences(article.text))}", told, (told,), article.title)
        for article in articles
        if len((told := _LIFE.sub("", article.description)).split()) >= _MIN_WORDS
    )
    return divide(NAME, examples, num_test)
