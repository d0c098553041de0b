"""The real link: from disk, through host memory where there is such a tier, into slots."""

from __future__ import annotations

from queue import SimpleQueue

from pgmoe.experts.links.base import Arrival, Transfer, Urgency
from pgmoe.experts.links.copiers import Copier
from pgmoe.experts.links.queue import TransferQueue
from pgmoe.experts.stores.base import ExpertStore
from pgmoe.metrics.stats import DISK_TO_DEVICE, DISK_TO_HOST, HOST_TO_DEVICE, ExpertStats


class TieredLink:
    """One queue for each hop. See Link for the contract of its methods."""

    def __init__(
        self, store: ExpertStore, num_readers: int, copier: Copier | None, stats: ExpertStats
    ) -> None:
        """Without `copier` experts go from disk straight into slots, which have to be RAM then."""
        self._store = store
        self._copier = copier
        self._arrivals: SimpleQueue[Arrival] = SimpleQueue()
        disk = DISK_TO_DEVICE if copier is None else DISK_TO_HOST
        self._disk = TransferQueue(disk, num_readers, self._read, self._after_read, stats.links[disk])
        self._host: TransferQueue | None = None
        if copier is not None:
            stats_of_host = stats.links[HOST_TO_DEVICE]
            self._host = TransferQueue(HOST_TO_DEVICE, 1, copier.copy, self._after_copy, stats_of_host)

    def order(self, transfer: Transfer) -> None:
        """See Link. On an accelerator: called by the thread whose current stream computes."""
        if self._copier is not None:
            transfer.released = self._copier.mark()
        self._first_hop(transfer).put(transfer)

    def promote(self, transfer: Transfer, urgency: Urgency) -> None:
        """See Link: on whichever hop it is, and on the next."""
        transfer.urgency = min(urgency, transfer.urgency)
        self._disk.reorder(transfer)
        if self._host is not None:
            self._host.reorder(transfer)

    def cancel(self, transfer: Transfer) -> bool:
        """See Link."""
        return self._first_hop(transfer).cancel(transfer)

    def wait(self) -> Arrival:
        """See Link."""
        return self._arrivals.get()

    def arrived(self) -> list[Arrival]:
        """See Link."""
        found = []
        while not self._arrivals.empty():  # nobody else takes any
            found.append(self._arrivals.get_nowait())
        return found

    def close(self) -> None:
        """See Link."""
        self._disk.close()
        if self._host is not None:
            self._host.close()
        if self._copier is not None:
            self._copier.close()

    def _first_hop(self, transfer: Transfer) -> TransferQueue:
        if transfer.from_disk:
            return self._disk
        assert self._host is not None
        return self._host

    def _read(self, transfer: Transfer) -> int:
        if transfer.host is None:
            return self._store.read(transfer.expert, transfer.slot)
        if transfer.host.copied is not None:
            transfer.host.copied.synchronize()
        return self._store.read(transfer.expert, transfer.host.memory)

    def _after_read(self, transfer: Transfer, error: Exception | None) -> None:
        if error is not None or self._host is None:
            self._arrivals.put(Arrival(transfer, transfer.slot, error=error))
            return
        try:
            self._host.put(transfer)
        except RuntimeError as closed:
            self._arrivals.put(Arrival(transfer, transfer.slot, error=closed, in_host=True))

    def _after_copy(self, transfer: Transfer, error: Exception | None) -> None:
        event = None if transfer.host is None else transfer.host.copied
        self._arrivals.put(Arrival(transfer, transfer.slot, event, error, in_host=True))
