from __future__ import annotations

from pathlib import Path

import pytest

from recipes.closed_book import closed_book
from recipes.extractive import extractive
from recipes.passage import passage, sentences
from recipes.summary import summary
from recipes.wiki import Article
from recipes.wordnet import read_senses, read_synsets
from tests.unit.recipes.packages import wordnet_package

LEEDS = Article(
    "Leeds",
    "Leeds is a city in West Yorkshire, England. It lies on the River Aire. It was awarded a charter in 1893 "
    "by Queen Victoria. It has a population of 536,280.",
    "City in West Yorkshire, England",
    "Geography",
)
WRITER = Article(
    "Anna Holm (writer)",
    "Anna Holm, also known as the Owl, was a Danish writer. She was born in Odense. The Moon was written by "
    "the Danish poet Karl Lund.",
    "Danish writer (1805–1875)",
    "People",
)
CHESS = Article("Chess", "Chess is a game in which two players move pieces.", "", "")


@pytest.mark.parametrize(
    ("article", "question", "answer"),
    [
        (LEEDS, "Where is Leeds?", "West Yorkshire"),
        (LEEDS, "What is Leeds?", "a city in West Yorkshire"),
        (LEEDS, "Where is Leeds located?", "the River Aire"),
        (LEEDS, "In which year: It was awarded a charter? (Leeds)", "1893"),
        (LEEDS, "What is the population of Leeds?", "536,280"),
        (WRITER, "Of what nation or culture is Anna Holm?", "Danish"),
        (WRITER, "Where was Anna Holm born?", "Odense"),
        (WRITER, "By what other name is Anna Holm known?", "the Owl"),
        (CHESS, "What is Chess?", "a game"),
        (WRITER, "By whom: The Moon was written? (Anna Holm)", "Karl Lund"),
    ],
)
def test_questions_find_their_answers(article: Article, question: str, answer: str) -> None:
    task = extractive([article], num_test=0)
    found = {item.prompt.partition(" context: ")[0]: item for item in task.train}
    item = found[f"question: {question}"]
    assert item.completion == answer
    assert item.references == (answer,)
    assert answer in item.prompt.partition(" context: ")[2]


def test_no_question_is_put_on_what_is_said_of_something_else() -> None:
    text = "Leeds is a city. Mount Ore is located in Wales. Its rival was born in Hull."
    asked = [item.prompt for item in extractive([Article("Leeds", text, "", "")], num_test=0).train]
    assert not [prompt for prompt in asked if "located" in prompt.partition(" context")[0]]


@pytest.mark.parametrize(
    "text", ["A canoe is a long, narrow boat.", "A canoe is a vessel for, at best, two."]
)
def test_no_question_is_put_whose_answer_would_be_cut_short(text: str) -> None:
    assert extractive([Article("Canoe", text, "", "")], num_test=0).train == ()


def test_no_question_is_put_where_two_numbers_would_answer_it() -> None:
    article = Article("Owls", "They have 3 genera. They had 5 genera.", "", "")
    assert extractive([article], num_test=0).train == ()


def test_one_article_is_not_parted() -> None:
    task = extractive([LEEDS, WRITER], num_test=1)
    names = [{name for name in ("Leeds", "Anna Holm") if any(name in i.prompt for i in part)} for part in (
        task.train, task.test)]  # fmt: skip
    assert sorted(map(len, names)) == [1, 1]


def test_sentences_do_not_end_at_initials_and_abbreviations() -> None:
    assert sentences("J. S. Bach met Dr. Ott in St. Ives. He left! \"Why?\" In c. 1720.") == [
        "J. S. Bach met Dr. Ott in St. Ives.", "He left!", "\"Why?\" In c. 1720.",
    ]  # fmt: skip


def test_a_passage_holds_its_sentence_and_its_neighbours() -> None:
    parts = ["aaaa.", "bbbb.", "cccc.", "dddd."]
    assert passage(parts, 2, 17) == "aaaa. bbbb. cccc."
    assert passage(parts, 0, 11) == "aaaa. bbbb."
    assert passage(["aaa bbb ccc"], 0, 8) == "aaa bbb"


def test_a_word_is_answered_by_its_hypernym_and_all_its_names_are_right(tmp_path: Path) -> None:
    package = wordnet_package(tmp_path)
    task = closed_book(read_synsets(package), read_senses(package), min_frequency=3, num_test=0)
    items = {item.prompt: item for item in task.train}
    assert set(items) == {
        f'What kind of thing is "{word}"?' for word in ("robin", "redbreast", "fieldfare", "blackbird")
    }
    robin = items['What kind of thing is "robin"?']
    assert robin.completion == "thrush"
    assert robin.references == ("thrush", "song thrush", "entity")  # the last of its second meaning


def test_synonyms_are_not_parted(tmp_path: Path) -> None:
    package = wordnet_package(tmp_path)
    for num_test in (1, 2, 3):
        task = closed_book(read_synsets(package), read_senses(package), 3, num_test)
        for part in (task.train, task.test):
            assert len([item for item in part if "robin" in item.prompt or "redbreast" in item.prompt]) in (
                0,
                2,
            )


def test_rare_hypernyms_are_not_asked_for(tmp_path: Path) -> None:
    package = wordnet_package(tmp_path)
    assert closed_book(read_synsets(package), read_senses(package), min_frequency=4, num_test=0).train == ()


def test_summaries_are_descriptions_without_years_of_life() -> None:
    short = Article("Owl", "An owl is a bird.", "Bird", "")
    task = summary([LEEDS, WRITER, short], num_test=0)
    assert {item.completion: item.prompt for item in task.train} == {
        "City in West Yorkshire, England": f"summarize: {LEEDS.text}",
        "Danish writer": f"summarize: {WRITER.text}",
    }
