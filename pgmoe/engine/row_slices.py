"""Rows in small groups, so that no copy of all logits is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

CPU_LOGITS = 2**18
"""On the CPU, larger temporaries are mapped and faulted in anew at each use, which takes several times as
long as computing them: 5 rows of a vocabulary of 50k."""
DEVICE_LOGITS = 2**21
"""8 MiB in fp32, 13 rows of a vocabulary of 150k: few launches."""


def row_slices(rows: Sequence[int], logits_BV: Tensor) -> Iterator[Sequence[int]]:
    """`rows` of `logits_BV` in order, as many at a time (one or more) as are computed at once."""
    most = CPU_LOGITS if logits_BV.device.type == "cpu" else DEVICE_LOGITS
    step = max(1, most // logits_BV.shape[1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
