"""Random input that is another in each run."""

from __future__ import annotations

import random


def fresh_seed() -> int:
    """Printed, which pytest shows where a test fails."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return seed
