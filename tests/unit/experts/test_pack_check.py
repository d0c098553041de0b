from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from pgmoe.errors import ExpertReadError
from pgmoe.experts.host_tier import HostTier
from pgmoe.experts.policies import make_policy
from pgmoe.experts.stores.pack import PackStore
from pgmoe.layout import ExpertId, ExpertLayer
from pgmoe.memory import page_aligned
from tests.support.damage import flip_bit
from tests.support.expert_files import PoolParts, write_packed_layers

CORRUPT = ExpertId(1, 2)


@pytest.fixture
def packed(layers: tuple[ExpertLayer, ...], tmp_path: Path) -> tuple[ExpertLayer, ...]:
    return write_packed_layers(tmp_path / "pack", layers)


def every(layers: tuple[ExpertLayer, ...]) -> list[ExpertId]:
    return [ExpertId(i, e) for i, layer in enumerate(layers) for e in range(layer.num_experts)]


def test_a_whole_pack_passes(packed: tuple[ExpertLayer, ...], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = PackStore(packed, check=True)
    store.check.wait()
    assert store.check.corrupt == {}
    assert caplog.messages == ["12 experts compared with their checksums, 0 corrupt"]
    store.close()


@pytest.mark.parametrize("place", ["first byte", "padding", "last byte"])
def test_a_corrupt_blob_is_logged_and_its_expert_refused_while_the_others_are_served(
    packed: tuple[ExpertLayer, ...], caplog: pytest.LogCaptureFixture, place: str
) -> None:
    layer = packed[CORRUPT.layer]
    blob, first = layer.blobs[CORRUPT.expert], layer.layout.regions[0]
    offsets = {"first byte": 0, "padding": first.nbytes, "last byte": blob.nbytes - 1}
    flip_bit(Path(blob.path), blob.offset + offsets[place])
    store = PackStore(packed, check=True)
    store.check.wait()
    name = f"expert 2 of layers.1.experts: {blob.path} from byte {blob.offset}: corrupt"
    slot = page_aligned(layer.layout.slot_bytes)
    for expert in every(packed):
        if expert == CORRUPT:
            with pytest.raises(ExpertReadError, match=f"{name}.*remove the pack and make it again"):
                store.read(expert, slot)
        else:
            store.read(expert, slot)
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == [store.check.corrupt[CORRUPT]]
    store.close()


def test_what_cannot_be_read_is_logged_and_the_pass_goes_on(
    packed: tuple[ExpertLayer, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    blob = packed[0].blobs[5]
    store = PackStore(packed)
    os.truncate(blob.path, blob.offset + blob.nbytes - 1)
    store.check.start()
    store.check.wait()
    assert store.check.corrupt == {}
    error, summary = caplog.messages
    assert error.startswith(
        f"expert 5 of layers.0.experts: {blob.path} from byte {blob.offset}: the file ends"
    )
    assert summary.startswith("12 experts")
    store.close()


@pytest.mark.parametrize("check", [True, False])
def test_what_is_kept_in_host_memory_is_compared_as_it_comes(
    packed: tuple[ExpertLayer, ...], check: bool
) -> None:
    blob = packed[CORRUPT.layer].blobs[CORRUPT.expert]
    flip_bit(Path(blob.path), blob.offset + 100)
    host = HostTier(12, blob.nbytes, make_policy("lru", [6, 6]), pinned=False)
    store = PackStore(packed, check=check)
    if check:
        assert host.fill(every(packed), store, num_readers=2) == [CORRUPT]
        assert len(host) == 11
        host.check_integrity()
        with pytest.raises(ExpertReadError, match="corrupt"):
            store.read(CORRUPT, page_aligned(blob.nbytes))
    else:
        assert host.fill(every(packed), store, num_readers=2) == []
    store.close()


def test_the_check_gives_way_to_everything_else(
    packed: tuple[ExpertLayer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(*args: object) -> int:
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))
        return 0

    before = os.getpriority(os.PRIO_PROCESS, 0)
    monkeypatch.setattr("pgmoe.experts.stores.pack_check.checksum", look)
    store = PackStore(packed, check=True)
    store.check.wait()
    assert set(seen) == {19}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    store.close()


@pytest.mark.parametrize("num_host_blobs", [0, 12])
def test_a_copy_made_before_its_blob_was_found_corrupt_is_not_used_again(
    packed: tuple[ExpertLayer, ...], num_host_blobs: int
) -> None:
    blob = packed[CORRUPT.layer].blobs[CORRUPT.expert]
    flip_bit(Path(blob.path), blob.offset + 100)
    store = PackStore(packed)
    parts = PoolParts(packed, store, 12, num_host_blobs=num_host_blobs)
    with parts.pool.lease(CORRUPT.layer, [CORRUPT.expert, 3]) as lent:
        assert sum(len(batch) for batch in lent) == 2
    store.check.start()
    store.check.wait()
    with (
        pytest.raises(ExpertReadError, match="corrupt"),
        parts.pool.lease(CORRUPT.layer, [CORRUPT.expert, 3]) as lent,
    ):
        for _ in lent:
            pass
    with parts.pool.lease(CORRUPT.layer, [3]) as lent:
        assert sum(len(batch) for batch in lent) == 1
    parts.pool.check_integrity()
    store.close()
