"""How an expert is read past the page cache: which pages go straight to their place, which through a scratch.

O_DIRECT moves whole pages between page-aligned places of a file and of memory. Where a tensor lies in its
slot as far from a page boundary as in its file, its whole pages can go there directly. The rest goes through
a scratch buffer and is copied: pages shared by two tensors, and tensors that cannot be so placed. Ranges that
follow one another in a file are read by one vectored call: most checkpoints give an expert in a single read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgmoe.layout import PAGE, Extent, round_up


@dataclass(frozen=True)
class Segment:
    """Consecutive pages of a file and where they are read to."""

    start: int
    """In the slot if `direct`, else in the scratch; a multiple of PAGE."""
    nbytes: int
    direct: bool


@dataclass(frozen=True)
class Patch:
    """Bytes to copy from the scratch to the slot after the read."""

    slot: int
    scratch: int
    nbytes: int


@dataclass(frozen=True)
class Run:
    """One vectored read of a consecutive range of one file."""

    path: str
    offset: int
    """Where the read starts in the file, a multiple of PAGE."""
    needed: int
    """Bytes that must come; the last page may be cut short by the end of the file."""
    segments: tuple[Segment, ...]
    patches: tuple[Patch, ...]
    pieces: tuple[tuple[int, int, int], ...]
    """(file offset, place in the slot, bytes) of each range, for reading them one by one instead."""

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory that the read needs."""
        return sum(s.nbytes for s in self.segments if not s.direct)


def plan_reads(extents: Sequence[Extent], starts: dict[str, int]) -> tuple[Run, ...]:
    """The reads that fill a slot; `starts` says where in it each tensor begins."""
    return tuple(_run(group, starts) for group in _consecutive(extents))


def _consecutive(extents: Sequence[Extent]) -> Iterator[list[Extent]]:
    group: list[Extent] = []
    for extent in sorted(extents, key=lambda e: (e.path, e.offset)):
        last = group[-1] if group else None
        if last and (last.path, last.offset + last.nbytes) != (extent.path, extent.offset):
            yield group
            group = []
        group.append(extent)
    yield group


def _run(group: list[Extent], starts: dict[str, int]) -> Run:
    begin = group[0].offset // PAGE * PAGE
    end = group[-1].offset + group[-1].nbytes
    pieces = tuple((e.offset, starts[e.tensor] + e.tensor_offset, e.nbytes) for e in group)
    segments: list[Segment] = []
    patches: list[Patch] = []
    done, scratch = begin, 0  # file offset and scratch bytes laid out so far
    gap: list[tuple[int, int, int]] = []  # pieces or parts of them in the pages between direct segments
    for offset, place, nbytes in pieces:
        first, last = round_up(offset), (offset + nbytes) // PAGE * PAGE
        if first >= last or (place - offset) % PAGE:
            gap.append((offset, place, nbytes))
            continue
        if offset < first:
            gap.append((offset, place, first - offset))
        if done < first:
            segments.append(Segment(scratch, first - done, direct=False))
            patches += [Patch(p, scratch + o - done, n) for o, p, n in gap]
            scratch += first - done
        segments.append(Segment(place + first - offset, last - first, direct=True))
        done = last
        gap = [(last, place + last - offset, offset + nbytes - last)] if last < offset + nbytes else []
    if gap:
        segments.append(Segment(scratch, round_up(end) - done, direct=False))
        patches += [Patch(p, scratch + o - done, n) for o, p, n in gap]
    return Run(group[0].path, begin, end - begin, tuple(segments), tuple(patches), pieces)
