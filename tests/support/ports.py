"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

PORTS = range(20_000, 32_768)
"""Above those that Ray's workers use, below those that Linux gives to whoever names none."""


def free_port() -> int:
    """A port that nothing listens on now."""
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """So many different ports that nothing listens on now."""
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(PORTS, len(PORTS)):
            if len(found) == count:
                break
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("", port))
            except OSError:
                continue  # somebody has it
            found.append(port)
    assert len(found) == count, f"{len(found)} of {PORTS} are free"
    return found
