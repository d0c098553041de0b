"""The blocks that keys and values live in: who holds which, and which may be read again. Knows no device.

A block has room for the keys and values of `block_tokens` consecutive tokens of a sequence. Sequences may
share blocks, so each is held so many times, and is free when nobody holds it.

Full blocks can be registered as prefixes. What a block holds depends on all the tokens before it, so it is
known by its own tokens and by what its parent holds (`_Content`); dictionaries compare the tokens themselves,
so two prefixes are never taken for each other. A registered block keeps its content when it is freed, until
it is taken for something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLOCK_TOKENS = 16
"""Tokens of a block, where nobody says otherwise."""


_Key = tuple[int | None, tuple[int, ...]]
"""The parent's serial, None for first blocks, and the block's own tokens."""


@dataclass(frozen=True)
class _Content:
    key: _Key
    serial: int
    """Never used twice: no child of something forgotten is taken for one of what has its place."""


class BlockManager:
    """Counts who holds each block, and finds the blocks of prefixes that were computed before.

    Free blocks without content are taken first, then those freed longest ago. Who holds a registered block
    holds its parents too, and `release` frees the last block first: so children are forgotten before their
    parents, and whatever is registered can be found.
    """

    def __init__(self, num_blocks: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._holders = [0] * num_blocks
        self._blank = list(range(num_blocks))[::-1]  # free, without content; the last is taken next
        self._reusable: dict[int, None] = {}  # free, with content; freed longest ago first
        self._contents: dict[int, _Content] = {}  # of registered blocks, held or free
        self._by_key: dict[_Key, int] = {}
        self._next_serial = 0

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, with content or without."""
        return len(self._blank) + len(self._reusable)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds; shared ones count once."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks so many tokens take."""
        return -(-num_tokens // self.block_tokens)

    def is_shared(self, block: int) -> bool:
        """Whether more than one holds it, so that nobody may write into it."""
        return self._holders[block] > 1

    def is_registered(self, block: int) -> bool:
        """Whether it can be found as part of a prefix, so that nobody may write into it."""
        return block in self._contents

    def num_free_of(self, blocks: Iterable[int]) -> int:
        """How many of these distinct blocks are free: holding them leaves so many less."""
        return sum(not self._holders[block] for block in blocks)

    def take(self, count: int) -> list[int]:
        """So many free blocks, held once from now on; what they contained is forgotten. Asserts there are."""
        assert count <= self.num_free, (count, self.num_free)
        return [self._take_one() for _ in range(count)]

    def _take_one(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block = next(iter(self._reusable))
            del self._reusable[block]
            del self._by_key[self._contents.pop(block).key]
        self._holders[block] = 1
        return block

    def hold(self, blocks: Iterable[int]) -> None:
        """Hold each once more: somebody else's, or free ones that `find_prefix` found."""
        for block in blocks:
            if not self._holders[block]:
                assert block in self._contents, f"block {block} is free and holds nothing"
                del self._reusable[block]
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Hold each once less. Those of a sequence are given in its order, and freed from the last."""
        for block in reversed(blocks):
            assert self._holders[block], f"block {block} is free"
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._contents:
                self._reusable[block] = None
            else:
                self._blank.append(block)

    def replace_shared(self, block: int) -> int:
        """Copy on write: another block for one holder of a shared one, who copies it, then writes."""
        assert self.is_shared(block), f"block {block} is not shared"
        self._holders[block] -= 1
        return self.take(1)[0]

    def find_prefix(self, token_ids: Sequence[int]) -> list[int]:
        """The blocks of the longest registered prefix, changing nothing.

        It leaves one token at least, whose logits have to be computed. The blocks are not held yet.
        """
        found: list[int] = []
        parent: int | None = None
        for end in range(self.block_tokens, len(token_ids), self.block_tokens):
            block = self._by_key.get((parent, tuple(token_ids[end - self.block_tokens : end])))
            if block is None:
                break
            found.append(block)
            parent = self._contents[block].serial
        return found

    def register(self, block: int, parent: int | None, token_ids: Sequence[int]) -> int:
        """Make a full block, whose tokens have been computed, part of the prefixes that are found.

        `parent` is the registered block before it, None for the first. Returns the
        block to hold from now on: where another had the same content already, that one, held once more in
        place of `block`.
        """
        assert len(token_ids) == self.block_tokens, f"{len(token_ids)} tokens do not fill a block"
        assert self._holders[block], f"block {block} is free"
        key = (None if parent is None else self._contents[parent].serial, tuple(token_ids))
        registered = self._by_key.setdefault(key, block)
        if registered != block:
            self.hold([registered])
            self.release([block])
        elif block not in self._contents:
            self._contents[block] = _Content(key, self._next_serial)
            self._next_serial += 1
        return registered

    def forget_free(self) -> None:
        """What free blocks contain is not found any more. Held ones are: their parents are held, too."""
        for block in self._reusable:
            del self._by_key[self._contents.pop(block).key]
        self._blank += self._reusable
        self._reusable.clear()

    def check_integrity(self, held: Iterable[int]) -> None:
        """Assert that all invariants hold, where `held` has each block as many times as somebody holds it."""
        counts = Counter(held)
        assert self._holders == [counts[block] for block in range(self.num_blocks)], "holders are not right"
        free = [*self._blank, *self._reusable]
        assert sorted(free) == [block for block in range(self.num_blocks) if not self._holders[block]]
        assert not any(block in self._contents for block in self._blank)
        assert all(block in self._contents for block in self._reusable)
        assert self._by_key == {content.key: block for block, content in self._contents.items()}
        serials = {content.serial: block for block, content in self._contents.items()}
        assert len(serials) == len(self._contents), "a serial was given twice"
        age = {block: position for position, block in enumerate(self._reusable)}
        for block, content in self._contents.items():
            if content.key[0] is not None:
                parent = serials[content.key[0]]  # a KeyError: it was forgotten before its child
                assert age.get(parent, self.num_blocks) >= age.get(block, self.num_blocks), (
                    "freed before its child"
                )
