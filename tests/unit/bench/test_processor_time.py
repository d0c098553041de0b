from __future__ import annotations

import threading
import time

from pgmoe.bench.processor_time import ProcessorTime


def _spin(seconds: float) -> None:
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        pass


def test_readers_are_told_from_all_others_by_their_names() -> None:
    before = ProcessorTime.so_far()
    spun, leave = threading.Barrier(3), threading.Event()

    def work(seconds: float) -> None:
        _spin(seconds)
        spun.wait()
        leave.wait()

    threads = [
        threading.Thread(target=work, args=[0.2], name="pgmoe-disk_to_device-0"),
        threading.Thread(target=work, args=[0.05], name="another"),
    ]
    for thread in threads:
        thread.start()
    spun.wait()
    taken = ProcessorTime.so_far() - before
    leave.set()
    for thread in threads:
        thread.join()
    assert 0.2 <= taken.readers_s < 0.25
    assert 0.05 <= taken.compute_s < 0.2
