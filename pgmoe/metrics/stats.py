"""What the engine counts: plain numbers, only ever growing. Readers take differences.

The step thread writes, anyone may read; nothing here blocks.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field


@dataclass
class ExpertStats:
    """The expert slots and the link that fills them."""

    hits: Counter[int] = field(default_factory=Counter)
    """Experts found in a slot, by MoE layer."""
    misses: Counter[int] = field(default_factory=Counter)
    evictions: Counter[int] = field(default_factory=Counter)
    transfer_bytes: Counter[str] = field(default_factory=Counter)
    """Bytes copied, by link: `disk_to_host`, `disk_to_device`, `host_to_device`.

    From disk, of the weights; from host memory, of whole slots, which have padding between the tensors.
    """
    transfer_s: deque[float] = field(default_factory=lambda: deque(maxlen=65536), repr=False)
    """Seconds each expert's copy took; readers pop from the left."""
    stall_s: float = 0.0
    """Seconds that compute waited for copies."""
    resident: int = 0
    """Experts in slots now."""
    slots: int = 0

    @property
    def num_hits(self) -> int:
        """Of all layers."""
        return self.hits.total()

    @property
    def num_misses(self) -> int:
        """Of all layers."""
        return self.misses.total()

    @property
    def num_bytes(self) -> int:
        """Over all links."""
        return self.transfer_bytes.total()


@dataclass
class EngineStats:
    """One engine's life so far."""

    experts: ExpertStats = field(default_factory=ExpertStats)
    num_running: int = 0
    num_waiting: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    """Requests ended, by reason: `stop`, `length`, `cancelled`, `error`, `timeout`, `rejected`."""
    time_to_first_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=65536), repr=False)
    inter_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=65536), repr=False)
    queue_s: deque[float] = field(default_factory=lambda: deque(maxlen=65536), repr=False)
    """Seconds from submission to the first step."""
    e2e_s: deque[float] = field(default_factory=lambda: deque(maxlen=65536), repr=False)
    """Readers of the deques pop from the left, one reader at most."""
