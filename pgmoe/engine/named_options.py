"""Options that can be checked without a model: names, sizes, rates."""

from __future__ import annotations

from pgmoe.config import EngineConfig
from pgmoe.errors import ConfigError
from pgmoe.experts.policies import check_policy
from pgmoe.gating.make import check_gating
from pgmoe.units import parse_bytes, parse_rate


def check_options(config: EngineConfig) -> None:
    """Raise ConfigError for one that no model could be served with."""
    parse_bytes(config.device_memory, whole_bytes=0)
    if config.host_memory != "auto":
        parse_bytes(config.host_memory, whole_bytes=0)
    if config.kv_memory != "auto":
        parse_bytes(config.kv_memory)
    parse_bytes(config.kv_swap_memory)
    check_policy(config.policy)
    check_gating(config.gating)
    if config.gating == "oracle" and config.gating_trace is None:
        raise ConfigError("gating 'oracle' replays a trace; name its file in gating_trace (`pgmoe trace`)")
    if config.emulated_link is None:
        return
    parse_rate(config.emulated_link)
    if config.host_memory != "auto" and parse_bytes(config.host_memory, whole_bytes=2**63):
        raise ConfigError(
            f"emulated_link {config.emulated_link!r} keeps all experts in RAM and takes no host_memory; "
            f"leave out one of the two (host_memory is {config.host_memory!r})"
        )
