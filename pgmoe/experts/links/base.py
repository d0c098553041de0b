"""What moves and who moves it: one transfer, its end, and the link that the pool orders from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from pgmoe.experts.host_tier import HostBlob
from pgmoe.layout import ExpertId


class Urgency(IntEnum):
    """Who goes first on a link: the smaller value."""

    DEMAND = 0
    """Compute waits for it."""
    EXACT = 1
    """A coming layer will use it."""
    GUESS = 2
    """A coming layer may use it."""


@dataclass(eq=False)
class Transfer:
    """One expert on its way to a slot. Links own it from `order` until its Arrival."""

    expert: ExpertId
    slot: Tensor
    """Where it goes: uint8 (slot_bytes,)."""
    urgency: Urgency
    reason: str
    """Why it was ordered, as metrics say it: `demand` or `prefetch`; being promoted does not change it."""
    host: HostBlob | None = None
    """Host memory that it passes through, if there is a host tier."""
    from_disk: bool = True
    """Whether it has to be read first; else it lies in `host` already."""
    released: torch.Event | None = None
    """On an accelerator: when the slot's former expert is no longer read."""


@dataclass(frozen=True)
class Arrival:
    """The end of one transfer. With `error` the slot's content is undefined."""

    transfer: Transfer
    blob: Tensor
    """The memory that holds the expert now: its slot, but on an emulated link."""
    event: torch.Event | None = None
    """On an accelerator: what the compute stream has to wait for before it uses the slot."""
    error: Exception | None = None
    in_host: bool = False
    """Whether the transfer's host blob holds the expert, too."""


class Link(Protocol):
    """Carries experts into slots, the most urgent first. Called by the computing thread alone."""

    def order(self, transfer: Transfer) -> None:
        """Take a transfer and return; one Arrival follows, failed or not, unless it is cancelled."""
        ...

    def promote(self, transfer: Transfer, urgency: Urgency) -> None:
        """Make a transfer under way more urgent. Nothing is moved twice."""
        ...

    def cancel(self, transfer: Transfer) -> bool:
        """Drop a transfer of which nothing has moved yet: True, and no Arrival follows; else False."""
        ...

    def wait(self) -> Arrival:
        """The next Arrival. Some transfer has to be under way."""
        ...

    def arrived(self) -> list[Arrival]:
        """Those that came since, without waiting."""
        ...

    def close(self) -> None:
        """Drop what waits, end what runs, and stop."""
        ...
