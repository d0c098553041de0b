"""What the engine counts: plain numbers, only ever growing. Readers take differences.

The step thread writes, anyone may read; nothing here blocks.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

DISK_TO_DEVICE, DISK_TO_HOST, HOST_TO_DEVICE = "disk_to_device", "disk_to_host", "host_to_device"
"""Names of links."""


@dataclass
class LinkStats:
    """One link between two tiers. Its threads write, under its queue's lock."""

    num_bytes: Counter[str] = field(default_factory=Counter)
    """Bytes copied, by reason: `demand`, `prefetch`, or `start` before any request. Of the weights from disk;
    from host memory of whole slots, which may have padding between the tensors."""
    busy_s: float = 0.0
    """Seconds in which at least one expert was on its way."""
    transfer_s: deque[float] = field(default_factory=lambda: deque(maxlen=65536), repr=False)
    """Seconds each expert's copy took; readers pop from the left."""
    bandwidth: float = 0.0
    """Bytes per second that it carried when it was measured, at the start; 0 where it was not."""


@dataclass
class ExpertStats:
    """The expert slots and the link that fills them."""

    hits: Counter[int] = field(default_factory=Counter)
    """Experts found in a slot, by MoE layer."""
    misses: Counter[int] = field(default_factory=Counter)
    evictions: Counter[int] = field(default_factory=Counter)
    links: defaultdict[str, LinkStats] = field(default_factory=lambda: defaultdict(LinkStats))
    """By name: `disk_to_host`, `disk_to_device`, `host_to_device`, `emulated`."""
    layer_stall_s: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds that compute waited for copies, by MoE layer."""
    prefetch_bytes: Counter[str] = field(default_factory=Counter)
    """Bytes of experts ordered before they were asked for, by outcome: `useful` (ready in time), `late`
    (asked for while under way), `wasted` (evicted unused)."""
    prefetch_on: bool = False
    """Whether guesses are followed now."""
    prefetch_switches: int = 0
    """How often guessing was switched off or on again."""
    resident: int = 0
    """Experts in slots now."""
    slots: int = 0
    policy: str = ""
    """Name of the eviction policy."""

    @property
    def num_hits(self) -> int:
        """Of all layers."""
        return self.hits.total()

    @property
    def num_misses(self) -> int:
        """Of all layers."""
        return self.misses.total()

    @property
    def transfer_bytes(self) -> dict[str, int]:
        """Bytes copied over each link so far, where there were any."""
        found = {name: link.num_bytes.total() for name, link in list(self.links.items())}
        return {name: num_bytes for name, num_bytes in found.items() if num_bytes}

    @property
    def num_bytes(self) -> int:
        """Moved into slots: over every link but that from disk to host memory."""
        return sum(num_bytes for link, num_bytes in self.transfer_bytes.items() if link != DISK_TO_HOST)

    @property
    def stall_s(self) -> float:
        """Of all layers."""
        return sum(list(self.layer_stall_s.values()))


@dataclass
class EngineStats:
    """One engine's life so far."""

    experts: ExpertStats = field(default_factory=ExpertStats)
    num_running: int = 0
    num_waiting: int = 0
    kv_used_blocks: int = 0
    """Of the KV cache, held by running answers now."""
    kv_blocks: int = 0
    num_preemptions: int = 0
    num_preferred: int = 0
    """Requests admitted before earlier ones because of their experts."""
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
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
