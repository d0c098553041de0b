"""Whether an open file still is what it was when it was opened."""

from __future__ import annotations

import os
import time

from pgmoe.units import format_bytes


class FileStamp:
    """The size of an open file and the time of the last write to it.

    The kernel sets that time before it lets a write through, so bytes that were read before the stamp was
    found unchanged are the old ones. A write within the same tick of its clock as the last one before, a few
    milliseconds, does not show, nor one after which the time was set back, nor one through a mapping of which
    the page was written before; a network's file system may tell of writes elsewhere seconds late. A file
    that another has taken the place of is still the one that is open.
    """

    def __init__(self, descriptor: int) -> None:
        """Take it now. Raises OSError."""
        self._descriptor = descriptor
        stat = os.fstat(descriptor)
        self._size, self._time_ns = stat.st_size, stat.st_mtime_ns

    def change(self) -> str | None:
        """What is wrong and what to do, if it has changed; takes a microsecond. Raises OSError."""
        stat = os.fstat(self._descriptor)
        if (stat.st_size, stat.st_mtime_ns) == (self._size, self._time_ns):
            return None
        return (
            f"the file was changed while it is open, from {_text(self._size, self._time_ns)} to "
            f"{_text(stat.st_size, stat.st_mtime_ns)}; put back what it was, with its time (cp -p), or start "
            "anew with what it is now"
        )


def _text(size: int, time_ns: int) -> str:
    seconds, rest_ns = divmod(time_ns, 10**9)
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    return f"{format_bytes(size)} written at {written}.{rest_ns // 10**6:03} UTC"
