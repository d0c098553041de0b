from __future__ import annotations

import pytest
import torch

from pgmoe.models.early import early_blocks
from pgmoe.models.loader import load_model, read_plan
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import EARLY_ROUTED_FAMILIES, FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_choose_before_attention_are_found_by_their_layer(
    tiny: TinyCheckpoints, family: str
) -> None:
    loaded = load_model(read_plan(str(tiny(family))), dtype=torch.float32, device=torch.device("cpu"))
    found = early_blocks(loaded.model, loaded.sockets)
    assert list(found) == (list(range(len(loaded.sockets))) if family in EARLY_ROUTED_FAMILIES else [])
    for index, block in found.items():
        assert block is loaded.model.get_submodule(loaded.sockets[index].block)


def test_a_layer_says_what_it_chose_before_its_attention(tiny: TinyCheckpoints) -> None:
    loaded = load_model(read_plan(str(tiny("smallthinker"))), dtype=torch.float32, device=torch.device("cpu"))
    said: list[tuple[str, torch.Tensor]] = []

    class Experts:
        def __call__(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            said.append(("experts", ids))
            return hidden

    loaded.plug(lambda index, layer: Experts())
    for block in early_blocks(loaded.model, loaded.sockets).values():
        block.announce = lambda ids: said.append(("chosen", ids))
    for name, module in loaded.model.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_pre_hook(lambda *_: said.append(("attention", torch.empty(0))))
    with torch.inference_mode():
        loaded.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert [what for what, _ in said] == ["chosen", "attention", "experts"] * 3
    assert all(said[i][1] is said[i + 2][1] for i in range(0, 9, 3))
