"""The parts of a decoded token, and which of the engine's methods they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pgmoe.bench.part_timer import PartTimer
from pgmoe.cpu.kernel_tokens import KernelTokens
from pgmoe.experts.compute import PooledExperts
from pgmoe.experts.pool import ExpertPool
from pgmoe.experts.prefetcher import Prefetcher
from pgmoe.experts.tokens import LoneToken

DENSE = "dense layers"
COMPUTE = "expert compute"
WAITING = "waiting for experts"
ORDERING = "ordering demands"
STOCK = "taking stock"
GUESSING = "guessing"
REST = "rest of the experts' call"
PARTS = (DENSE, COMPUTE, WAITING, ORDERING, STOCK, GUESSING, REST)

_METHODS: tuple[tuple[type, str, str], ...] = (
    (PooledExperts, "__call__", REST),
    (LoneToken, "apply", COMPUTE),
    (LoneToken, "weighted_sum", COMPUTE),
    (KernelTokens, "apply", COMPUTE),
    (KernelTokens, "weighted_sum", COMPUTE),
    (ExpertPool, "wait", WAITING),
    (ExpertPool, "demand", ORDERING),
    (ExpertPool, "take_stock", STOCK),
    (ExpertPool, "take_at_once", STOCK),
    (Prefetcher, "look_ahead", GUESSING),
    (Prefetcher, "follow", GUESSING),
)


def part_timer() -> PartTimer:
    """A timer of these parts; the dense layers have what no method of the experts takes."""
    return PartTimer(PARTS)


@contextmanager
def timed_parts(timer: PartTimer) -> Iterator[None]:
    """Let the timer see into every engine of this process, which must compute in this thread alone."""
    with ExitStack() as restore:
        for owner, name, part in _METHODS:
            plain = vars(owner)[name]
            setattr(owner, name, timer.around(part, plain))
            restore.callback(setattr, owner, name, plain)
        yield
