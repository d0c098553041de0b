"""What each running sequence used in its last layers, and which layer and which sequence follow."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Seen:
    """The selection of one MoE layer in one forward pass."""

    layer: int
    rows: Sequence[Sequence[int]]
    """(N, K) expert ids."""
    step: int
    """Which forward pass, counted over all sequences."""
    apart: bool = False
    """Whether each row is another sequence's; else only the last row goes on."""

    @property
    def newest(self) -> Sequence[Sequence[int]]:
        """The rows that a later pass follows."""
        return self.rows if self.apart else self.rows[-1:]


@dataclass
class _Track:
    """Sequences that run together, most often a single one or all."""

    seen: deque[Seen]
    """Newest first."""
    follower: tuple[str, ...]
    """Those that ran after them the last time."""

    def cut(self) -> None:
        """Keep the rows alone that a later pass follows: a prompt has many."""
        for index, seen in enumerate(self.seen):
            self.seen[index] = replace(seen, rows=seen.newest)


@dataclass(frozen=True)
class Context:
    """What is known when a layer is to be guessed."""

    seen: tuple[Seen, ...]
    """The newest selections of the sequences whose layer comes, newest first; never empty."""
    coming: int
    """The layer that comes after these."""
    next_step: bool
    """Whether it begins a forward pass."""


class Histories:
    """Follows interleaved passes, those of the same sequences for their last `length` layers. Sequences that
    have not run together for longest are forgotten as such.

    The order of layers is learned: an encoder's come once, then a decoder's come again and again. What comes
    before the first `begin` belongs to a sequence without a name.
    """

    def __init__(self, length: int, num_sequences: int) -> None:
        """`num_sequences`: how many companies are remembered. Nobody tells when one has ended."""
        self._length = length
        self._num_sequences = num_sequences
        self._tracks: OrderedDict[tuple[str, ...], _Track] = OrderedDict()
        self._after: dict[int, int] = {}
        self._last_layers: set[int] = set()
        self._running: tuple[str, ...] = ()
        self._step = 0
        self.begin(())

    def begin(self, sequences: Sequence[str]) -> None:
        """A forward pass of these sequences begins."""
        running = tuple(sequences)
        if (before := self._tracks.get(self._running)) is not None:
            before.follower = running
            if before.seen:
                self._last_layers.add(before.seen[0].layer)
                before.cut()
        self._step += 1
        self._running = running
        if running not in self._tracks:
            self._tracks[running] = _Track(deque(maxlen=self._length), follower=running)
        self._tracks.move_to_end(running)
        if len(self._tracks) > self._num_sequences:
            self._tracks.popitem(last=False)

    def add(self, layer: int, rows: Sequence[Sequence[int]]) -> tuple[Seen, ...]:
        """The running sequences' next layer. Returns it and those before it, newest first."""
        seen = self._tracks[self._running].seen
        if seen:
            self._after[seen[0].layer] = layer
            if seen[0].step == self._step:
                self._last_layers.discard(seen[0].layer)
        apart = len(rows) == len(self._running) > 1
        seen.appendleft(Seen(layer, rows, self._step, apart))
        return tuple(seen)

    def context(self) -> Context | None:
        """What comes after the layer that was added last; None if that cannot be told.

        After the last layer of a pass it is the first one of the sequences which followed the last time.
        """
        track = self._tracks[self._running]
        ends = track.seen[0].layer in self._last_layers
        if ends:
            track = self._tracks.get(track.follower, track)
        if not track.seen:
            return None
        coming = self._after.get(track.seen[0].layer)
        return None if coming is None else Context(tuple(track.seen), coming, next_step=ends)
