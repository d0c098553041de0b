"""Keys and values in pages on an accelerator: many requests at once get what each gets alone."""

from __future__ import annotations

import pytest
import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import ENCODER_DECODER_FAMILIES
from tests.support.mixtures import alone, first_difference, play, random_mixture

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "switch_transformers", "nllb_moe"])
@pytest.mark.parametrize("kv_swap_memory", [0, "1MiB"])
def test_paged_requests_get_what_each_gets_alone(
    tiny: TinyCheckpoints, family: str, kv_swap_memory: int | str
) -> None:
    folder = tiny(family, torch.float32)
    kv_memory = "768KiB" if family in ENCODER_DECODER_FAMILIES else "384KiB"
    options = {"model": str(folder), "device": "cuda", "device_memory": "50%", "prefill_chunk": 64}
    engine = Engine(EngineConfig.parse({**options, "kv_memory": kv_memory, "kv_swap_memory": kv_swap_memory}))
    try:
        arrivals = random_mixture(5, 32, 120, 80, 24)
        played = play(engine, arrivals)
        for arrival in arrivals:
            tokens = played.tokens(arrival.request.request_id)
            expected = alone(engine, arrival.request)
            place = first_difference(tokens, expected.token_ids)
            if place is not None:  # two tokens that were equally likely
                (_, _, best), (second, _, next_best) = expected.logprobs[place].top
                assert tokens[place] == second
                assert best - next_best < 1e-3
        engine._scheduler.check_integrity()
    finally:
        engine.close()
