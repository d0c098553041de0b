from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgmoe.engine.block_manager import BLOCK_TOKENS, BlockManager


def compute(manager: BlockManager, token_ids: Sequence[int]) -> list[int]:
    """The blocks of a sequence that reuses what it can and has computed all its tokens."""
    blocks = manager.find_prefix(token_ids)
    manager.hold(blocks)
    num_reused = len(blocks)
    blocks += manager.take(manager.blocks_for(len(token_ids)) - num_reused)
    size = manager.block_tokens
    for i in range(num_reused, len(token_ids) // size):
        parent = blocks[i - 1] if i else None
        blocks[i] = manager.register(blocks[i], parent, token_ids[i * size : (i + 1) * size])
    return blocks


def test_a_block_has_sixteen_tokens_where_nobody_says_otherwise() -> None:
    assert BlockManager(1).block_tokens == BLOCK_TOKENS == 16


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_tokens_take_as_many_blocks_as_they_begin(num_tokens: int, num_blocks: int) -> None:
    assert BlockManager(8, block_tokens=4).blocks_for(num_tokens) == num_blocks


def test_blocks_are_taken_once_and_come_back() -> None:
    manager = BlockManager(4)
    first, second = manager.take(2), manager.take(2)
    assert sorted(first + second) == [0, 1, 2, 3]
    assert (manager.num_free, manager.num_used) == (0, 4)
    manager.release(first)
    assert (manager.num_free, manager.num_used) == (2, 2)
    assert sorted(manager.take(2)) == sorted(first)


def test_more_blocks_than_are_free_cannot_be_taken() -> None:
    manager = BlockManager(2)
    with pytest.raises(AssertionError):
        manager.take(3)
    assert manager.num_free == 2


def test_a_block_is_free_when_its_last_holder_releases_it() -> None:
    manager = BlockManager(1)
    (block,) = manager.take(1)
    manager.hold([block])
    assert manager.is_shared(block)
    manager.release([block])
    assert not manager.is_shared(block)
    assert manager.num_free == 0
    manager.release([block])
    assert manager.num_free == 1
    with pytest.raises(AssertionError, match="is free"):
        manager.release([block])


def test_a_free_block_without_content_cannot_be_held() -> None:
    with pytest.raises(AssertionError, match="holds nothing"):
        BlockManager(1).hold([0])


def test_full_blocks_of_the_same_prefix_are_found() -> None:
    manager = BlockManager(8, block_tokens=2)
    blocks = compute(manager, [1, 2, 3, 4, 5])
    assert manager.find_prefix([1, 2, 3, 4, 5, 6]) == blocks[:2], "the third was not full"
    assert manager.find_prefix([1, 2, 3, 5, 5, 6]) == blocks[:1]
    assert manager.find_prefix([2, 2, 3, 4]) == []


def test_a_prefix_leaves_one_token_to_compute() -> None:
    manager = BlockManager(8, block_tokens=2)
    blocks = compute(manager, [1, 2, 3, 4])
    assert manager.find_prefix([1, 2, 3, 4]) == blocks[:1]
    assert manager.find_prefix([1, 2, 3, 4, 5]) == blocks
    assert manager.find_prefix([]) == manager.find_prefix([1]) == manager.find_prefix([1, 2]) == []


def test_the_same_tokens_after_others_are_not_the_same_content() -> None:
    manager = BlockManager(8, block_tokens=2)
    compute(manager, [1, 2, 7, 7])
    other = compute(manager, [3, 4, 7, 7])
    assert manager.find_prefix([3, 4, 7, 7, 0]) == other
    assert manager.num_used == 4


def test_a_prefix_stays_after_its_sequence_until_its_blocks_are_needed() -> None:
    manager = BlockManager(4, block_tokens=2)
    blocks = compute(manager, [1, 2, 3, 4])
    manager.release(blocks)
    assert manager.num_free == 4
    assert not set(manager.take(2)) & set(blocks), "blocks without content are taken first"
    assert manager.find_prefix([1, 2, 3, 4, 5]) == blocks
    manager.take(1)
    assert manager.find_prefix([1, 2, 3, 4, 5]) == blocks[:1], "the child is forgotten first"
    manager.take(1)
    assert manager.find_prefix([1, 2, 3, 4, 5]) == []


def test_the_prefix_used_longest_ago_is_forgotten_first() -> None:
    manager = BlockManager(2, block_tokens=2)
    manager.release(compute(manager, [1, 1]))
    manager.release(compute(manager, [2, 2]))
    manager.hold(again := manager.find_prefix([1, 1, 0]))
    manager.release(again)
    manager.take(1)
    assert manager.find_prefix([1, 1, 0]) == again
    assert manager.find_prefix([2, 2, 0]) == []


def test_held_prefixes_count_as_free_only_once() -> None:
    manager = BlockManager(4, block_tokens=2)
    manager.release(compute(manager, [1, 2, 3, 4, 5]))
    found = manager.find_prefix([1, 2, 3, 4, 5])
    assert (manager.num_free, manager.num_free_of(found)) == (4, 2)
    manager.hold(found)
    assert (manager.num_free, manager.num_free_of(found)) == (2, 0)


def test_what_two_computed_at_once_is_kept_once() -> None:
    manager = BlockManager(4, block_tokens=2)
    mine, theirs = manager.take(2), manager.take(2)
    for i, tokens in enumerate([(1, 2), (3, 4)]):
        for blocks in (mine, theirs):
            blocks[i] = manager.register(blocks[i], blocks[i - 1] if i else None, tokens)
    assert mine == theirs
    assert (manager.num_used, manager.num_free) == (2, 2)
    manager.check_integrity(mine + theirs)


def test_a_shared_block_is_registered_by_either_holder_and_once() -> None:
    manager = BlockManager(4, block_tokens=2)
    (block,) = manager.take(1)
    manager.hold([block])
    assert manager.register(block, None, [1, 2]) == manager.register(block, None, [1, 2]) == block
    manager.check_integrity([block, block])


def test_a_block_that_is_not_full_cannot_be_registered() -> None:
    manager = BlockManager(1, block_tokens=2)
    with pytest.raises(AssertionError, match="do not fill"):
        manager.register(manager.take(1)[0], None, [1])


def test_who_writes_into_a_shared_block_gets_another() -> None:
    manager = BlockManager(2)
    (block,) = manager.take(1)
    manager.hold([block])
    copy = manager.replace_shared(block)
    assert copy != block
    manager.check_integrity([block, copy])
    with pytest.raises(AssertionError, match="not shared"):
        manager.replace_shared(block)


def test_integrity_is_broken_by_a_holder_that_nobody_counted() -> None:
    manager = BlockManager(2)
    blocks = manager.take(1)
    manager.check_integrity(blocks)
    with pytest.raises(AssertionError):
        manager.check_integrity([])
    with pytest.raises(AssertionError):
        manager.check_integrity([*blocks, 1])


def test_integrity_is_broken_by_a_parent_that_is_freed_before_its_child() -> None:
    manager = BlockManager(2, block_tokens=2)
    blocks = compute(manager, [1, 2, 3, 4])
    manager.release(blocks[::-1])
    with pytest.raises(AssertionError, match="before its child"):
        manager.check_integrity([])


class AnyUse(RuleBasedStateMachine):
    """Sequences of few distinct tokens come, fork and go; `contents` is what a device has in each block."""

    @initialize(num_blocks=st.integers(1, 12), block_tokens=st.integers(1, 3))
    def begin(self, num_blocks: int, block_tokens: int) -> None:
        self.manager = BlockManager(num_blocks, block_tokens)
        self.contents: dict[int, tuple[int, ...]] = {}
        self.sequences: list[tuple[list[int], list[int]]] = []  # blocks and tokens

    @rule(token_ids=st.lists(st.integers(0, 1), max_size=12))
    def come(self, token_ids: list[int]) -> None:
        manager, size = self.manager, self.manager.block_tokens
        blocks = manager.find_prefix(token_ids)
        assert len(blocks) * size < max(1, len(token_ids))
        for i, block in enumerate(blocks):
            assert self.contents[block] == tuple(token_ids[: (i + 1) * size]), "not its prefix"
        missing = manager.blocks_for(len(token_ids)) - len(blocks)
        if missing > manager.num_free - manager.num_free_of(blocks):
            return
        manager.hold(blocks)
        new = manager.take(missing)
        assert not set(new) & set(blocks)
        for i, block in enumerate(new, len(blocks)):
            self.contents[block] = tuple(token_ids[: (i + 1) * size])
        blocks += new
        for i in range(len(token_ids) // size):
            own = tuple(token_ids[i * size : (i + 1) * size])
            blocks[i] = manager.register(blocks[i], blocks[i - 1] if i else None, own)
            assert self.contents[blocks[i]] == tuple(token_ids[: (i + 1) * size])
        self.sequences.append((blocks, token_ids))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        blocks, token_ids = data.draw(st.sampled_from(self.sequences))
        self.manager.hold(blocks)
        copy = list(blocks)
        if len(token_ids) % self.manager.block_tokens and self.manager.num_free:
            copy[-1] = self.manager.replace_shared(blocks[-1])
            self.contents[copy[-1]] = self.contents[blocks[-1]]
        self.sequences.append((copy, token_ids))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        blocks, _ = self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1)))
        self.manager.release(blocks)

    @invariant()
    def blocks_are_held_by_these_sequences_and_have_their_tokens(self) -> None:
        self.manager.check_integrity(block for blocks, _ in self.sequences for block in blocks)
        size = self.manager.block_tokens
        for blocks, token_ids in self.sequences:
            for i, block in enumerate(blocks):
                assert self.contents[block] == tuple(token_ids[: (i + 1) * size])


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_free_blocks_that_are_forgotten_are_not_found_and_held_ones_are() -> None:
    manager = BlockManager(6, 2)
    first, second, third = manager.take(3)
    assert manager.register(first, None, [1, 2]) == first
    assert manager.register(second, first, [3, 4]) == second
    assert manager.register(third, second, [5, 6]) == third
    manager.hold([first, second])
    manager.release([first, second, third])
    manager.forget_free()
    assert manager.find_prefix([1, 2, 3, 4, 5, 6, 7]) == [first, second]
    manager.check_integrity([first, second])
    manager.release([first, second])
    manager.forget_free()
    assert manager.find_prefix([1, 2, 3, 4, 5, 6, 7]) == []
    manager.check_integrity([])
    assert len(manager.take(6)) == 6
