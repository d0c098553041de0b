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


@dataclass
class _Track:
    """One sequence."""

    seen: deque[Seen]
    """Newest first."""
    follower: str
    """The sequence that ran after it the last time."""

    def cut(self) -> None:
        """Keep the last token's rows alone, which is all that a later pass follows: a prompt has many."""
        for index, seen in enumerate(self.seen):
            self.seen[index] = replace(seen, rows=seen.rows[-1:])


@dataclass(frozen=True)
class Context:
    """What is known when a layer is to be guessed."""

    seen: tuple[Seen, ...]
    """The newest selections of the sequence whose layer comes, newest first; never empty."""
    coming: int
    """The layer that comes after these."""
    next_step: bool
    """Whether it begins a forward pass."""


class Histories:
    """Follows interleaved sequences, each for its last `length` layers. Whoever paused longest is forgotten.

    The order of layers is learned: an encoder's come once, then a decoder's come again and again. What comes
    before the first `begin` belongs to a sequence without a name.
    """

    def __init__(self, length: int, num_sequences: int) -> None:
        """`num_sequences`: how many are remembered. Nobody tells when one has ended."""
        self._length = length
        self._num_sequences = num_sequences
        self._tracks: OrderedDict[str, _Track] = OrderedDict()
        self._after: dict[int, int] = {}
        self._last_layers: set[int] = set()
        self._running = ""
        self._step = 0
        self.begin("")

    def begin(self, sequence: str) -> None:
        """A forward pass of this sequence begins."""
        if (before := self._tracks.get(self._running)) is not None:
            before.follower = sequence
            if before.seen:
                self._last_layers.add(before.seen[0].layer)
                before.cut()
        self._step += 1
        self._running = sequence
        if sequence not in self._tracks:
            self._tracks[sequence] = _Track(deque(maxlen=self._length), follower=sequence)
        self._tracks.move_to_end(sequence)
        if len(self._tracks) > self._num_sequences:
            self._tracks.popitem(last=False)

    def add(self, layer: int, rows: Sequence[Sequence[int]]) -> tuple[Seen, ...]:
        """The running sequence's next layer. Returns it and those before it, newest first."""
        seen = self._tracks[self._running].seen
        if seen:
            self._after[seen[0].layer] = layer
            if seen[0].step == self._step:
                self._last_layers.discard(seen[0].layer)
        seen.appendleft(Seen(layer, rows, self._step))
        return tuple(seen)

    def context(self) -> Context | None:
        """What comes after the layer that was added last; None if that cannot be told.

        After the last layer of a pass it is the first one of the sequence which followed the last time.
        """
        track = self._tracks[self._running]
        ends = track.seen[0].layer in self._last_layers
        if ends:
            track = self._tracks.get(track.follower, track)
        if not track.seen:
            return None
        coming = self._after.get(track.seen[0].layer)
        return None if coming is None else Context(tuple(track.seen), coming, next_step=ends)
