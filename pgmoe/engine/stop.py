"""Stop strings over text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextStep:
    """Text of an answer that is new and final; `stopped` if a stop string follows it."""

    text: str
    stopped: bool = False


class StopStrings:
    """Cuts a text before the stop string that begins first, however the text is split into pieces.

    Holds back only what may still become a stop string. One that begins earlier is waited for, even when
    a later one is complete already, so the answer does not depend on the pieces. Of two that begin at the
    same place the shorter ends the text: it is complete first, and what stands before it is the same.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        assert all(self._stops), "an empty stop string would stop everything"
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, piece: str) -> TextStep:
        """Take the next piece; return what is final now. Not to be called after a stop."""
        text = self._held + piece
        stop = self._first_stop(text)
        open_from = self._first_open(text)
        if stop is not None and stop <= open_from:
            self._held = ""
            return TextStep(text[:stop], stopped=True)
        self._held = text[open_from:]
        return TextStep(text[:open_from])

    def flush(self) -> TextStep:
        """The text has ended: return what was held back, up to a stop string if it has one."""
        text, self._held = self._held, ""
        stop = self._first_stop(text)
        return TextStep(text) if stop is None else TextStep(text[:stop], stopped=True)

    def _first_stop(self, text: str) -> int | None:
        return min((at for s in self._stops if (at := text.find(s)) >= 0), default=None)

    def _first_open(self, text: str) -> int:
        """Where the earliest stop string that reaches the end begins; the end of the text if none does."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            rest = text[at:]
            if any(stop.startswith(rest) for stop in self._stops):
                return at
        return len(text)
