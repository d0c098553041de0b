"""The `pgmoe` section of a config.json: how a checkpoint is pre-gated, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

from pgmoe.errors import ConfigError, CorruptCheckpoint

SECTION = "pgmoe"
Scope = Literal["decoder", "encoder", "both"]


@dataclass(frozen=True, kw_only=True)
class PreGating:
    """Which gates read which block's input."""

    level: int
    """A gate selects for the block so many MoE blocks further on."""
    scope: Scope = "decoder"
    gates: Mapping[str, str] = field(default_factory=dict)
    """From the module path of each gate, which is named for the block that it selects for, to that of the
    block whose input it reads."""
    made_from: Mapping[str, Any] = field(default_factory=dict)
    """Provenance: the source's name, how new gates were initialised, the version that wrote it."""

    def __post_init__(self) -> None:
        if not isinstance(self.level, int) or self.level < 1:
            raise ConfigError(f"level {self.level!r}: a gate looks 1 block ahead or more")
        if not isinstance(self.gates, Mapping) or not all(
            isinstance(name, str) for pair in self.gates.items() for name in pair
        ):
            raise ConfigError("gates: from the module path of each gate to that of a block, both text")
        if self.scope not in get_args(Scope):
            raise ConfigError(f"scope {self.scope!r} is none of {', '.join(get_args(Scope))}")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """What a config.json says; None where it has no such section. Raises CorruptCheckpoint."""
        section = config.get(SECTION)
        if section is None:
            return None
        try:
            return cls(**section)
        except (TypeError, ConfigError) as error:
            raise CorruptCheckpoint(f"config.json, section {SECTION!r}: {error}") from error

    def covers(self, kind: str) -> bool:
        """Whether the encoder's or decoder's blocks are pre-gated."""
        return self.scope in (kind, "both")

    def check(self, expected: Mapping[str, str]) -> None:
        """Raise CorruptCheckpoint if the gates are not those that level and scope give for this model."""
        odd = sorted(set(self.gates.items()) - set(expected.items()))
        lost = sorted(set(expected.items()) - set(self.gates.items()))
        if odd or lost:
            gate, block = (odd or lost)[0]
            raise CorruptCheckpoint(
                f"config.json, section {SECTION!r}: level {self.level} of the {self.scope} "
                f"{'does not let' if odd else 'lets'} gate {gate} read {block}; make the checkpoint again "
                "with `pgmoe pregate`"
            )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.json."""
        return asdict(self)
