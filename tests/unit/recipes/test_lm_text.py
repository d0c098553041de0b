from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pgmoe.errors import ConfigError
from recipes.document import Document
from recipes.lm_text import HELD_OUT, TRAIN, LmText, lm_text, read_documents

SIZES = {"large": 3_000, "middle": 600, "small": 400, "least": 200}
DOCUMENTS = [
    Document(f"{source} text {number:06}", source) for source, size in SIZES.items() for number in range(size)
]


@pytest.fixture(scope="module")
def made() -> LmText:
    return lm_text(DOCUMENTS, max_share=0.4)


def test_no_document_is_in_both_parts(made: LmText) -> None:
    train, held_out = ({document.text for document in part} for part in (made.train, made.held_out))
    assert train
    assert held_out
    assert not train & held_out


def test_one_in_fifty_is_held_out_of_every_source(made: LmText) -> None:
    share = len(made.held_out) / (len(made.held_out) + len(made.train))
    assert 0.01 < share < 0.03
    assert {document.source for document in made.held_out} == set(SIZES)


def test_no_source_has_more_than_its_share_and_the_others_stay_whole(made: LmText) -> None:
    chars: Counter[str] = Counter()
    for document in made.train + made.held_out:
        chars[document.source] += len(document.text)
    assert 0.399 < chars["large"] / chars.total() <= 0.4
    for source in ("middle", "small", "least"):
        assert chars[source] == sum(len(item.text) for item in DOCUMENTS if item.source == source)


def test_several_sources_can_be_capped(made: LmText) -> None:
    capped = lm_text(DOCUMENTS, max_share=0.3)
    chars = Counter(document.source for document in capped.train + capped.held_out for _ in document.text)
    assert [round(chars[source] / chars.total(), 2) for source in SIZES] == [0.3, 0.3, 0.27, 0.13]


def test_a_share_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match="4 sources cannot have at most 20%"):
        lm_text(DOCUMENTS, max_share=0.2)


def test_the_result_does_not_depend_on_the_order(made: LmText) -> None:
    assert lm_text(reversed(DOCUMENTS), max_share=0.4) == made


def test_sources_are_mixed(made: LmText) -> None:
    changes = sum(a.source != b.source for a, b in zip(made.train, made.train[1:], strict=False))
    assert changes > 1_000


def test_duplicates_are_dropped_whatever_their_white_space() -> None:
    twice = [*DOCUMENTS, *(Document(item.text.replace(" ", "\n "), item.source) for item in DOCUMENTS)]
    made = lm_text(twice, max_share=0.8)
    assert len(made.train) + len(made.held_out) == len(DOCUMENTS)


def test_files_hold_what_was_made(made: LmText, tmp_path: Path) -> None:
    made.save(tmp_path / "new")
    assert tuple(read_documents(tmp_path / "new" / TRAIN)) == made.train
    assert tuple(read_documents(tmp_path / "new" / HELD_OUT)) == made.held_out


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*; `make data` writes it"):
        read_documents(tmp_path / TRAIN)
