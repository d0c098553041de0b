from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmoe.layout import LINE, PAGE, BlobLayout, Extent, round_up
from pgmoe.memory import page_aligned

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
shapes = st.dictionaries(
    st.sampled_from(["up", "down", "up_bias", "down_bias"]),
    st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple),
    min_size=1,
)


@given(st.integers(0, 2**50))
def test_rounding_up_gives_the_next_page(num_bytes: int) -> None:
    rounded = round_up(num_bytes)
    assert rounded % PAGE == 0
    assert 0 <= rounded - num_bytes < PAGE


@settings(deadline=None)
@given(shapes, st.sampled_from(DTYPES), st.data())
def test_tensors_lie_in_their_regions_wherever_the_file_has_them(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, data: st.DataObject
) -> None:
    layout = BlobLayout.pack(shapes, dtype)
    assert layout.slot_bytes % PAGE == 0
    assert layout.weight_bytes == sum(torch.zeros(s).numel() * dtype.itemsize for s in shapes.values())
    offsets = {name: data.draw(st.integers(0, 3 * PAGE), label=name) for name in shapes}
    extents = [Extent("file", offsets[r.name], r.nbytes, r.name, 0) for r in layout.regions]
    starts = layout.starts(extents)
    ends = [*(r.offset for r in layout.regions[1:]), layout.slot_bytes]
    for region, end in zip(layout.regions, ends, strict=True):
        assert region.offset <= starts[region.name] <= end - region.nbytes
        if offsets[region.name] % dtype.itemsize == 0:  # else no tensor can start there
            assert (starts[region.name] - offsets[region.name]) % PAGE == 0
    slot = page_aligned(layout.slot_bytes)
    views = layout.views(slot, starts)
    expected = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    for name, tensor in expected.items():
        views[name].copy_(tensor)
    for name, tensor in expected.items():  # after all of them: none lies over another
        assert views[name].data_ptr() == slot.data_ptr() + starts[name]
        assert torch.equal(views[name], tensor)


@settings(deadline=None)
@given(shapes, st.sampled_from(DTYPES), st.integers(0, 3 * PAGE))
def test_in_a_tight_layout_tensors_follow_one_another_at_cache_lines_wherever_the_file_has_them(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, file_offset: int
) -> None:
    roomy = BlobLayout.pack(shapes, dtype)
    layout = roomy.tightened()
    assert layout.tightened() == layout
    assert layout.weight_bytes == roomy.weight_bytes
    assert layout.slot_bytes % PAGE == 0
    assert layout.slot_bytes < roomy.slot_bytes
    starts = layout.starts([Extent("file", file_offset, r.nbytes, r.name, 0) for r in layout.regions])
    end = 0
    for region in layout.regions:
        assert starts[region.name] % LINE == 0
        assert 0 <= starts[region.name] - end < LINE
        end = starts[region.name] + region.nbytes
    assert 0 <= layout.slot_bytes - end < PAGE
