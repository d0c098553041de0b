"""Where control groups may be made, and where not."""

from __future__ import annotations

import pytest

from pgmoe.bench.control_group import memory_limit
from pgmoe.errors import ConfigError


def _permitted() -> bool:
    try:
        with memory_limit(2**30):
            return True
    except ConfigError:
        return False


needs_limits = pytest.mark.skipif(not _permitted(), reason="control groups may not be made here")
