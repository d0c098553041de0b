"""Attention that reads blocks where they lie: kernels in Triton, for one tile of queries at a time.

A tile is some consecutive tokens of one sequence, with the query heads that share a head of keys and values,
and a run of positions to look at. Keys come in steps of fixed size, at multiples of it, in ascending order,
and a key that a token does not see adds exactly nothing to it, as long as its value is finite. So a token's
result does not depend on what else is in the pass, not in a single bit.

Scores are exponents of two. Sums are float32, whatever the type of keys and values.
Shape letters: T tokens of the pass, Q query heads, H heads of keys and values, P places of the pool, D width
of keys, V of values, W of either, padded to a power of two; M lanes of a tile (token after token, the heads
of each side by side), N keys of a step; S parts, X what is known of one: V sums, the maximum, the total.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit  # type: ignore[untyped-decorator]
def attend_tile(
    queries_TQD: tl.tensor,
    keys_PHD: tl.tensor,
    values_PHV: tl.tensor,
    sinks_Q: tl.tensor,
    table: tl.tensor,
    tiles: tl.tensor,
    spans_T2: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    VALUE_PADDED: tl.constexpr,
    LANES: tl.constexpr,
    KEYS: tl.constexpr,
    SINKS: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """Program (tile, head): `out` is (T, Q, V), or with PARTS (S, Q, X): a part for each tile of one token.

    `tiles` has five numbers for each: first row in the pass, number of tokens, where its sequence's blocks
    begin in `table`, the first position that one of its tokens looks at, the end of those. `spans` has first
    and end for each token. `scale` brings its log2(e).
    """
    row, num_tokens, table_at, first, end = _tile(tiles + tl.program_id(0) * 5)
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    lane_M = tl.arange(0, LANES)
    real_M = lane_M < num_tokens * GROUPS
    row_M, query_head_M = row + lane_M // GROUPS, head * GROUPS + lane_M % GROUPS
    query_M = row_M.to(tl.int64) * num_heads * GROUPS + query_head_M
    query_MW = _load(queries_TQD, query_M * WIDTH, real_M, WIDTH, PADDED)
    first_M = tl.load(spans_T2 + row_M * 2, mask=real_M, other=0)
    end_M = tl.load(spans_T2 + row_M * 2 + 1, mask=real_M, other=0)
    maximum_M, total_M = _nothing(sinks_Q, query_head_M, real_M, SINKS and not PARTS)
    sum_MW = tl.zeros((LANES, VALUE_PADDED), tl.float32)
    for step in range(first // KEYS * KEYS, end, KEYS):
        position_N = step + tl.arange(0, KEYS)
        there_N = (position_N >= first) & (position_N < end)
        key_N = _places(table + table_at, position_N, there_N, BLOCK) * num_heads + head
        key_NW = _load(keys_PHD, key_N * WIDTH, there_N, WIDTH, PADDED)
        score_MN = tl.dot(query_MW, tl.trans(key_NW), input_precision="ieee") * scale
        sees_MN = (position_N[None, :] >= first_M[:, None]) & (position_N[None, :] < end_M[:, None])
        score_MN = tl.where(sees_MN & there_N[None, :], score_MN, float("-inf"))
        weight_MN, kept_M, maximum_M = _weights(score_MN, maximum_M)
        total_M = total_M * kept_M + tl.sum(weight_MN, 1)
        value_NW = _load(values_PHV, key_N * VALUE_WIDTH, there_N, VALUE_WIDTH, VALUE_PADDED)
        weight_MN = weight_MN.to(value_NW.dtype)
        sum_MW = sum_MW * kept_M[:, None] + tl.dot(weight_MN, value_NW, input_precision="ieee")
    if PARTS:
        part_M = (tl.program_id(0) * num_heads * GROUPS + query_head_M) * (VALUE_WIDTH + 2)
        _store(out, part_M, real_M, sum_MW, VALUE_WIDTH, VALUE_PADDED)
        tl.store(out + part_M + VALUE_WIDTH, maximum_M, mask=real_M)
        tl.store(out + part_M + VALUE_WIDTH + 1, total_M, mask=real_M)
    else:
        _store(out, query_M * VALUE_WIDTH, real_M, _divided(sum_MW, total_M), VALUE_WIDTH, VALUE_PADDED)


@triton.jit  # type: ignore[untyped-decorator]
def merge_parts(
    parts_SQX: tl.tensor,
    sinks_Q: tl.tensor,
    merges: tl.tensor,
    out_TQV: tl.tensor,
    VALUE_WIDTH: tl.constexpr,
    VALUE_PADDED: tl.constexpr,
    SINKS: tl.constexpr,
) -> None:
    """Program (merge, query head): one token's parts, in their order.

    `merges` has three numbers for each: row in the pass, first part, end of the parts.
    """
    merge = merges + tl.program_id(0) * 3
    row, first, end = tl.load(merge), tl.load(merge + 1), tl.load(merge + 2)
    head_1, num_heads = tl.program_id(1) + tl.arange(0, 1), tl.num_programs(1)
    real_1 = head_1 < num_heads
    maximum_1, total_1 = _nothing(sinks_Q, head_1, real_1, SINKS)
    sum_1W = tl.zeros((1, VALUE_PADDED), tl.float32)
    for part in range(first, end):
        part_1 = (part * num_heads + head_1) * (VALUE_WIDTH + 2)
        score_1 = tl.load(parts_SQX + part_1 + VALUE_WIDTH)
        weight_11, kept_1, maximum_1 = _weights(score_1[:, None], maximum_1)
        part_total_1 = tl.load(parts_SQX + part_1 + VALUE_WIDTH + 1)
        total_1 = total_1 * kept_1 + part_total_1 * tl.sum(weight_11, 1)
        part_1W = _load(parts_SQX, part_1, real_1, VALUE_WIDTH, VALUE_PADDED)
        sum_1W = sum_1W * kept_1[:, None] + part_1W * weight_11
    out_1 = (row.to(tl.int64) * num_heads + head_1) * VALUE_WIDTH
    _store(out_TQV, out_1, real_1, _divided(sum_1W, total_1), VALUE_WIDTH, VALUE_PADDED)


@triton.jit  # type: ignore[untyped-decorator]
def _tile(at: tl.tensor) -> tl.tensor:
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)


@triton.jit  # type: ignore[untyped-decorator]
def _nothing(sinks_Q: tl.tensor, head_M: tl.tensor, real_M: tl.tensor, SINKS: tl.constexpr) -> tl.tensor:
    """Maximum and total of the softmax before the first key: of the sinks alone."""
    total_M = tl.zeros(head_M.shape, tl.float32)
    maximum_M = total_M + float("-inf")
    if SINKS:
        sink_M = tl.load(sinks_Q + head_M, mask=real_M, other=0.0).to(tl.float32)
        maximum_M = sink_M * 1.4426950408889634  # log2(e)
        total_M += 1.0
    return maximum_M, total_M


@triton.jit  # type: ignore[untyped-decorator]
def _places(blocks: tl.tensor, position_N: tl.tensor, there_N: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """In the pool, whose numbers may be more than 32 bits count."""
    block_N = tl.load(blocks + position_N // BLOCK, mask=there_N, other=0)
    return block_N.to(tl.int64) * BLOCK + position_N % BLOCK


@triton.jit  # type: ignore[untyped-decorator]
def _weights(score_MN: tl.tensor, maximum_M: tl.tensor) -> tl.tensor:
    """Unnormalised weights, what earlier sums are multiplied by, and the new maximum."""
    new_M = tl.maximum(maximum_M, tl.max(score_MN, 1))
    base_M = tl.where(new_M == float("-inf"), 0.0, new_M)  # nothing is seen yet
    return tl.exp2(score_MN - base_M[:, None]), tl.exp2(maximum_M - base_M), new_M


@triton.jit  # type: ignore[untyped-decorator]
def _divided(sum_MW: tl.tensor, total_M: tl.tensor) -> tl.tensor:
    """Zeros for a lane that sees nothing."""
    return sum_MW / tl.where(total_M == 0.0, 1.0, total_M)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _load(
    numbers: tl.tensor, at_N: tl.tensor, there_N: tl.tensor, WIDTH: tl.constexpr, PADDED: tl.constexpr
) -> tl.tensor:
    """(N, W) from rows that begin at these; zeros where nothing is, as what nobody wrote may be NaN."""
    lane_W = tl.arange(0, PADDED)
    wanted_NW = there_N[:, None] & (lane_W < WIDTH)[None, :]
    return tl.load(numbers + at_N[:, None] + lane_W[None, :], mask=wanted_NW, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _store(
    numbers: tl.tensor,
    at_M: tl.tensor,
    there_M: tl.tensor,
    rows_MW: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    lane_W = tl.arange(0, PADDED)
    wanted_MW = there_M[:, None] & (lane_W < WIDTH)[None, :]
    tl.store(numbers + at_M[:, None] + lane_W[None, :], rows_MW, mask=wanted_MW)
