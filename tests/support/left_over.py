"""What this process holds of ours: it must hold no more when a thing is closed than before it was made."""

from __future__ import annotations

import threading
from pathlib import Path


def open_files(folder: Path) -> set[Path]:
    """Files of this folder that this process has open."""
    return {p for fd in Path("/proc/self/fd").iterdir() if (p := fd.resolve()).parent == folder.resolve()}


def own_threads() -> set[threading.Thread]:
    """Threads of the engine's, by their names."""
    return {t for t in threading.enumerate() if t.name.startswith("pgmoe")}
