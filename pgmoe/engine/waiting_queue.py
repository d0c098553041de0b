"""Who waits, in which order, and how long others may go first."""

from __future__ import annotations

from collections.abc import Iterator

from pgmoe.engine.scheduled_sequence import ScheduledSequence


def _rank(sequence: ScheduledSequence) -> tuple[int, int, int]:
    """The class, lower ones first; in it, arrival decides. All that are out of patience are in the first."""
    if not sequence.patience:
        return (0, 0, 0)
    return (1, sequence.new.priority, 0 if sequence.preempted else 1)


class WaitingQueue:
    """First come, first served in each class; nobody is passed over more often than their patience lasts."""

    def __init__(self) -> None:
        self._waiting: dict[str, ScheduledSequence] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[ScheduledSequence]:
        """In no order of use."""
        return iter(self._waiting.values())

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._waiting

    def push(self, sequence: ScheduledSequence) -> None:
        """Let one wait; it may have run before."""
        assert sequence.sequence_id not in self._waiting, f"{sequence.sequence_id!r} waits already"
        self._waiting[sequence.sequence_id] = sequence

    def head(self) -> ScheduledSequence | None:
        """Who is to be admitted before all others, None where nobody waits."""
        return min(self, key=lambda sequence: (_rank(sequence), sequence.arrival), default=None)

    def peers(self, head: ScheduledSequence) -> list[ScheduledSequence]:
        """Who may be admitted in place of the head, itself first: those of its class if it has patience."""
        if not head.patience:
            return [head]
        peers = (sequence for sequence in self if _rank(sequence) == _rank(head))
        return sorted(peers, key=lambda sequence: sequence.arrival)

    def remove(self, sequence_id: str) -> None:
        """Let one go that gives up."""
        del self._waiting[sequence_id]

    def admit(self, sequence: ScheduledSequence) -> None:
        """Let one go that gets its places; those who came before it and still wait lose patience."""
        self.remove(sequence.sequence_id)
        for other in self:
            if other.arrival < sequence.arrival:
                assert other.patience, f"{other.sequence_id!r} was to be admitted first"
                other.patience -= 1
