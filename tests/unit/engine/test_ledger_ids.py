"""The ledger keeps the ids that layers give it: no family's model writes to them before the pass is over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pgmoe.engine.llm import LLM
from pgmoe.experts.ledger import Ledger
from pgmoe.sampling_params import SamplingParams
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import FAMILIES


class Watched:
    """Ids as they were given, beside the tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_checked = 0
        self._given: list[tuple[Tensor, Tensor]] = []
        enter, count = Ledger.enter, Ledger._count

        def watched_enter(ledger: Ledger, layer: int, ids_NK: Tensor, missing: set[int]) -> None:
            self._given.append((ids_NK, ids_NK.clone()))
            enter(ledger, layer, ids_NK, missing)

        def watched_count(ledger: Ledger) -> None:
            self._check()
            count(ledger)
            self._check()  # nor does the ledger write to them
            self._given.clear()

        monkeypatch.setattr(Ledger, "enter", watched_enter)
        monkeypatch.setattr(Ledger, "_count", watched_count)

    def _check(self) -> None:
        for ids_NK, before_NK in self._given:
            assert torch.equal(ids_NK, before_NK)
            self.num_checked += 1


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_writes_to_ids_before_the_pass_is_over(
    tiny: TinyCheckpoints, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    with LLM(tiny(family), device="cpu", device_memory="100%") as llm:
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        answers = llm.generate([[5, 6, 7, 8], [9]], params)
    assert all(answer.usage.expert_hits + answer.usage.expert_misses > 0 for answer in answers)
    assert watched.num_checked > 0
