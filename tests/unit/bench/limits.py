"""Where control groups may be made, and where not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pgmoe.bench.control_group import memory_limit
from pgmoe.errors import ConfigError

_JOIN = """
import sys
from pathlib import Path
from pgmoe.bench.control_group import ControlGroup
ControlGroup(Path(sys.argv[1])).join()
"""


def _permitted() -> bool:
    """Whether a group can be made, and a child process can join it."""
    try:
        with memory_limit(2**30) as group:
            joined = subprocess.run(
                [sys.executable, "-c", _JOIN, str(group.folder)], capture_output=True, check=False
            )
            return joined.returncode == 0
    except ConfigError:
        return False


needs_limits = pytest.mark.skipif(
    not _permitted(), reason="control groups may not be made here, or not be joined"
)
