"""Which models keep a cache for each sequence, and that they answer as transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from pgmoe.engine.sequence_runner import SequenceRunner
from pgmoe.models.attention import NotPaged, PagedCache, paged_attention
from pgmoe.request import SamplingParams
from tests.support.checkpoints import DECODER, tiny_model
from tests.support.stepping import add, load, run, whole


@pytest.fixture(scope="module")
def stretching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral whose positions are stretched by the length of what it reads."""
    config = transformers.MixtralConfig(
        **{**DECODER, "max_position_embeddings": 64},
        head_dim=16,
        intermediate_size=96,
        num_local_experts=8,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
    )
    folder = tmp_path_factory.mktemp("stretching")
    tiny_model(config, torch.float32).save_pretrained(folder)
    return folder


def test_positions_that_depend_on_the_length_are_not_packed(stretching: Path) -> None:
    engine = load(stretching)
    assert isinstance(engine._stepper._runner, SequenceRunner)
    assert not engine.memory.paged
    model = transformers.AutoModelForCausalLM.from_pretrained(stretching, dtype=torch.float32)
    prompts = {"long": tuple(range(5, 45)), "short": (9, 8, 7)}
    for name, prompt in prompts.items():
        add(
            engine,
            name,
            SamplingParams(max_tokens=12, temperature=0, ignore_eos=True),
            prompt_token_ids=prompt,
        )
    told = run(engine)
    for name, prompt in prompts.items():
        ids = torch.tensor([prompt])
        expected = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert whole(told[name]).token_ids == tuple(expected[0, len(prompt) :].tolist())
    engine.close()


def test_several_answers_of_such_a_model_begin_with_that_of_one(stretching: Path) -> None:
    engine = load(stretching)
    params = SamplingParams(max_tokens=6, seed=4, n=2, ignore_eos=True)
    add(engine, "two", params)
    pieces = [output.piece for output in run(engine)["two"] if output.piece is not None]
    first, second = (tuple(t for p in pieces if p.index == i for t in p.token_ids) for i in (0, 1))
    assert len(first) == len(second) == 6
    assert first != second
    add(engine, "one", SamplingParams(max_tokens=6, seed=4, ignore_eos=True))
    assert whole(run(engine)["one"]).token_ids == first
    engine.close()


def test_what_is_asked_of_pages_beyond_tokens_is_told() -> None:
    query = torch.zeros(1, 1, 1, 8)
    with pytest.raises(NotPaged, match="softcap"):
        paged_attention(torch.nn.Module(), query, query, query, None, softcap=30.0)
    with pytest.raises(NotPaged, match="no pages"):
        paged_attention(torch.nn.Module(), query, query, query, None)
    assert not hasattr(PagedCache, "update_conv_state")
