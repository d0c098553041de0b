from __future__ import annotations

from recipes.document import Document
from recipes.mixture import SHARES, mix


def test_each_source_has_its_share_in_the_documents_order() -> None:
    documents = [Document(f"{n:03} " + "x" * 96, source) for n in range(100) for source in ("a", "b", "c")]
    kept = mix(documents, 4000, {"a": 0.75, "b": 0.25})
    by_source = {s: [d for d in kept if d.source == s] for s in "abc"}
    assert {s: len(members) for s, members in by_source.items()} == {"a": 30, "b": 10, "c": 0}
    assert by_source["a"] == [d for d in documents if d.source == "a"][:30]
    assert list(kept) == [d for d in documents if d in kept]


def test_a_source_that_is_too_small_gives_all_it_has() -> None:
    documents = [Document("x" * 10, "a"), Document("y" * 10, "b")]
    assert mix(documents, 1000, {"a": 0.9, "b": 0.1}) == tuple(documents)


def test_the_shares_are_a_whole() -> None:
    assert abs(sum(SHARES.values()) - 1) < 1e-9
