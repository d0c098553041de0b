"""One pass over a pack's blobs while it is served: which of them are no longer what was packed."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

from pgmoe.experts.stores.checksum import checksum
from pgmoe.experts.stores.files import ExpertFiles, place_of
from pgmoe.layout import Blob, ExpertId, ExpertLayer

_logger = logging.getLogger(__name__)

PAUSE_FACTOR = 4.0
"""Seconds of rest for each second of reading and summing up: at most a fifth of disk and core is taken."""
_NICE = 19


class PackCheck:
    """Compares every blob with its checksum once, in a thread that gives way to everything else.

    A corrupt one is logged and stands in `corrupt`; one that cannot be read is logged alone, for whoever
    demands it meets the same error.
    """

    def __init__(self, layers: tuple[ExpertLayer, ...], files: ExpertFiles) -> None:
        """Nothing is read before `start`; `files` stay open until `stop`."""
        self.corrupt: dict[ExpertId, str] = {}
        """What is wrong and what to do, by expert; only grows."""
        self._layers = layers
        self._files = files
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pgmoe-pack-check", daemon=True)

    def start(self) -> None:
        """Begin the pass. Once only."""
        self._thread.start()

    def wait(self) -> None:
        """Return when the pass is over."""
        self._thread.join()

    def stop(self) -> None:
        """End the pass where it is."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        if sys.platform == "linux":  # elsewhere this is the whole process's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        rest = _Rest(self._stopped)
        num_blobs = 0
        try:
            for index, layer in enumerate(self._layers):
                for expert in range(layer.num_experts):
                    self._check(ExpertId(index, expert), rest)
                    num_blobs += 1
        except _Stopped:
            return
        _logger.info("%d experts compared with their checksums, %d corrupt", num_blobs, len(self.corrupt))

    def compare(self, expert: ExpertId, crc32: int) -> bool:
        """Whether this is its blob's checksum; if not, it is logged and known to be corrupt from now on."""
        if crc32 == self._blob(expert).crc32:
            return True
        fault = "corrupt, its checksum is not that of pack.json; remove the pack and make it again"
        self.corrupt[expert] = f"{self._place(expert)}: {fault}"
        _logger.error("%s", self.corrupt[expert])
        return False

    def _check(self, expert: ExpertId, rest: _Rest) -> None:
        blob = self._blob(expert)
        file = self._files[blob.path]
        try:
            crc32 = checksum(file, blob.offset, blob.nbytes, rest.take)
            change = file.stamp.change()
            if change is not None and crc32 != blob.crc32:  # it may be put back: every read looks for itself
                raise OSError(change)
            self.compare(expert, crc32)
        except OSError as error:
            _logger.error("%s: %s", self._place(expert), error)

    def _blob(self, expert: ExpertId) -> Blob:
        return self._layers[expert.layer].blobs[expert.expert]

    def _place(self, expert: ExpertId) -> str:
        blob = self._blob(expert)
        return place_of(expert, self._layers[expert.layer], blob.path, blob.offset)


class _Stopped(Exception):
    pass


class _Rest:
    """Rests in proportion to the time since the last rest."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._begin = time.perf_counter()

    def take(self) -> None:
        if self._stopped.wait((time.perf_counter() - self._begin) * PAUSE_FACTOR):
            raise _Stopped
        self._begin = time.perf_counter()
