"""Reads planned for O_DIRECT fill a slot as plain reads would."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.experts.stores.read_plan import Run, plan_reads
from pgmoe.layout import PAGE, Extent, round_up


def carry_out(runs: tuple[Run, ...], files: dict[str, bytes], slot: bytearray) -> None:
    """What the kernel and the store do with a plan, a byte at a time."""
    for run in runs:
        scratch, at = bytearray(run.scratch_bytes), run.offset
        for segment in run.segments:
            target = slot if segment.direct else scratch
            assert at % PAGE == segment.start % PAGE == segment.nbytes % PAGE == 0, "O_DIRECT would refuse"
            data = files[run.path][at : at + segment.nbytes]
            target[segment.start : segment.start + len(data)] = data
            at += segment.nbytes
        for patch in run.patches:
            slot[patch.slot : patch.slot + patch.nbytes] = scratch[
                patch.scratch : patch.scratch + patch.nbytes
            ]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[Extent], dict[str, int]]:
    """Extents in two files, some one after another, and places in a slot, some of which suit O_DIRECT."""
    ends = {"a": draw(st.integers(0, 3 * PAGE)), "b": draw(st.integers(0, PAGE))}
    extents, starts, place = [], {}, 0
    for number in range(draw(st.integers(1, 6))):
        path = draw(st.sampled_from("ab"))
        offset = ends[path] + draw(st.sampled_from([0, 0, 1, 8, PAGE, PAGE + 24]))
        nbytes = draw(st.one_of(st.integers(1, 5 * PAGE), st.sampled_from([PAGE, 2 * PAGE])))
        ends[path] = offset + nbytes
        fits = draw(st.booleans())
        starts[str(number)] = place + (offset % PAGE if fits else draw(st.integers(0, PAGE - 1)))
        place += round_up(nbytes) + PAGE
        extents.append(Extent(path, offset, nbytes, str(number), 0))
    return draw(st.permutations(extents)), starts


@given(layouts(), st.integers(0, 2**32))
def test_a_plan_puts_every_byte_in_its_place_and_no_other(
    layout: tuple[list[Extent], dict[str, int]], seed: int
) -> None:
    extents, starts = layout
    source = random.Random(seed)
    files = {path: source.randbytes(64 * PAGE) for path in "ab"}
    size = max(starts[e.tensor] + round_up(e.nbytes) + PAGE for e in extents)
    untouched = source.randbytes(size)
    expected, slot = bytearray(untouched), bytearray(untouched)
    for e in extents:
        expected[starts[e.tensor] : starts[e.tensor] + e.nbytes] = files[e.path][
            e.offset : e.offset + e.nbytes
        ]
    carry_out(plan_reads(extents, starts), files, slot)
    assert slot == expected


def test_tensors_that_follow_one_another_in_a_file_take_one_read() -> None:
    extents = [
        Extent("f", 104 + i * 4 * PAGE, 4 * PAGE, name, 0) for i, name in enumerate(("down", "gate", "up"))
    ]
    starts = {e.tensor: i * 6 * PAGE + e.offset % PAGE for i, e in enumerate(extents)}
    (run,) = plan_reads(extents, starts)
    assert run.offset == 0
    assert sum(s.nbytes for s in run.segments if s.direct) == 9 * PAGE  # three whole pages of each
    assert run.scratch_bytes == 4 * PAGE  # the first, the last, and two that neighbours share


@pytest.mark.parametrize("gap", [1, PAGE])
def test_tensors_apart_in_a_file_take_a_read_each(gap: int) -> None:
    extents = [Extent("f", 0, PAGE, "up", 0), Extent("f", PAGE + gap, PAGE, "down", 0)]
    assert len(plan_reads(extents, {"up": 0, "down": 4 * PAGE})) == 2
