"""Whole models with attention by kernels, interpreted: the logits that they have with gathering."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="there is no Triton for this system")
if torch.cuda.is_available():
    pytest.skip("kernels are compiled here: tests/gpu tests them", allow_module_level=True)

from pgmoe.attention_rule import AttentionRule
from pgmoe.engine.paged_runner import PagedRunner
from pgmoe.engine.part import Part
from pgmoe.kv.attention import Attention
from pgmoe.kv.block_attention import BlockAttention
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.pages import Pages
from pgmoe.kv.pool import KvPool
from pgmoe.models.paged import PagedModel
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import ENCODER_DECODER_FAMILIES
from tests.support.fresh import fresh_seed
from tests.support.interpreted import mend_interpreter
from tests.support.stepping import load

BLOCK, NUM_BLOCKS = 16, 48
CPU = torch.device("cpu")
OFTEN_GATHERED = {"deepseek_v3", "switch_transformers"}
"""Latent attention, and scores with a bias."""


@pytest.fixture(autouse=True)
def _mended(monkeypatch: pytest.MonkeyPatch) -> None:
    mend_interpreter(monkeypatch)


class Counted(GatheredAttention):
    """Counts how often it is asked."""

    num_asked = 0

    def own(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        self.num_asked += 1
        return super().own(layer, queries_TQD, rule)


def parts(family: str, draw: random.Random) -> list[list[Part]]:
    """Passes with chunks, then with lone tokens beside a chunk, then with lone tokens alone."""
    blocks = list(range(NUM_BLOCKS))
    draw.shuffle(blocks)
    seq2seq = family in ENCODER_DECODER_FAMILIES
    lengths: list[tuple[int, ...]] = [(draw.randint(2, 45), 1, 1), (45, 1, 1), (1, draw.randint(2, 45), 1)]
    if seq2seq:  # two attentions, and no groups of heads: it is long enough with less
        lengths = [(draw.randint(2, 6),), (1,)]
    passes: list[list[Part]] = [[] for _ in lengths[0]]
    for number, counts in enumerate(lengths):
        own, context = (tuple(blocks.pop() for _ in range(8)) for _ in range(2))
        prompt = tuple(draw.randrange(4, 120) for _ in range(draw.randint(1, 20))) if seq2seq else ()
        start = 0
        for parts_of_pass, num_tokens in zip(passes, counts, strict=True):
            token_ids = tuple(draw.randrange(4, 120) for _ in range(num_tokens))
            part = Part(
                sequence_id=f"s{number}",
                token_ids=token_ids,
                start=start,
                blocks=own,
                context_blocks=context if prompt else (),
                prompt_token_ids=prompt,
                all_logits=True,
            )
            parts_of_pass.append(part)
            start += num_tokens
    return passes


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "smallthinker", "deepseek_v3", "nllb_moe"])
def test_a_model_gives_the_logits_that_it_gives_with_gathering(tiny: TinyCheckpoints, family: str) -> None:
    seed = fresh_seed()
    engine = load(tiny(family, torch.float32))
    runner = engine._stepper._runner
    assert isinstance(runner, PagedRunner)

    def logits(attention: Callable[[KvPool], Attention]) -> list[Tensor]:
        pool = KvPool(runner._pool.shapes, NUM_BLOCKS, BLOCK, CPU)
        pages = Pages(pool, attention(pool))
        model = PagedModel(runner._model._model, pages)
        fresh = PagedRunner(model, pages, pool, CPU, runner._begin_pass)
        passes = parts(family, random.Random(seed))
        out = [outcome for parts_of_pass in passes for outcome in fresh.run(parts_of_pass)]
        for one in out:
            assert isinstance(one, Tensor), one
        return out

    asked: list[Counted] = []

    def kernels(pool: KvPool) -> Attention:
        asked.append(Counted(pool))
        return BlockAttention(pool, asked[0])

    for found, expected in zip(logits(kernels), logits(GatheredAttention), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (asked[0].num_asked > 0) == (family in OFTEN_GATHERED)
    engine.close()
