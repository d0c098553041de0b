"""In 16 bits: what each answer is alone, to the bit where that is asked for, else within rounding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.errors import InvalidRequest, UnsupportedModel
from pgmoe.request import Completion, Request, RequestOutput, SamplingParams
from tests.conftest import TinyCheckpoints
from tests.support.mixtures import Arrival, alone, first_difference, play, random_mixture

FAMILIES = ("mixtral", "olmoe", "deepseek_v3", "gpt_oss", "minimax")
NUM_REQUESTS, LONGEST_PROMPT, LONGEST_ANSWER = 24, 100, 16
ROUNDING, CHOICES = 0.005, 0.25
"""Nats. Half of the log-probabilities differ by less than the one: a rounding to 8 bits changes a value by up
to 0.4 %. Nine in ten by less than the other: it takes a router that chose another expert by a hair."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def engine(tiny: TinyCheckpoints, family: str, batch_invariant: bool) -> Iterator[Engine]:
    options = {"device": "cpu", "device_memory": "50%", "prefill_chunk": 64, "max_running": 12}
    folder = tiny(family, torch.bfloat16)
    built = Engine(EngineConfig.parse({"model": str(folder), **options, "batch_invariant": batch_invariant}))
    yield built
    built.close()


def mixture(engine: Engine) -> list[Arrival]:
    size = engine.loaded.model.config.get_text_config().vocab_size
    return random_mixture(3, NUM_REQUESTS, size, LONGEST_PROMPT, LONGEST_ANSWER)


def chosen(pieces: list[RequestOutput] | list[Completion]) -> list[tuple[int, float]]:
    """Tokens, each with its log-probability."""
    return [(entry.token_id, entry.logprob) for piece in pieces for entry in piece.logprobs]


@pytest.mark.parametrize("batch_invariant", [True])
def test_answers_have_the_bits_that_each_has_alone(engine: Engine) -> None:
    arrivals = mixture(engine)
    played = play(engine, arrivals)
    assert played.most_running >= 8
    for arrival in arrivals:
        together = chosen(played.pieces[arrival.request.request_id])
        assert together == chosen([alone(engine, arrival.request)])[: len(together)]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"], indirect=True)
@pytest.mark.parametrize("batch_invariant", [False])
def test_without_it_answers_differ_by_rounding_and_by_what_rounding_makes_a_router_choose(
    engine: Engine,
) -> None:
    differences = []
    arrivals = mixture(engine)
    played = play(engine, arrivals)
    for arrival in arrivals:
        together = chosen(played.pieces[arrival.request.request_id])
        expected = chosen([alone(engine, arrival.request)])
        tokens, wanted = ([token for token, _ in entries] for entries in (together, expected))
        place = first_difference(tokens, wanted)
        pairs = list(zip(together, expected, strict=False))[:place]
        differences += [abs(one - other) for (_, one), (_, other) in pairs]
    differences.sort()
    assert differences[len(differences) // 2] < ROUNDING
    assert differences[9 * len(differences) // 10] < CHOICES


def test_an_encoder_decoder_is_refused_with_the_way_out(tiny: TinyCheckpoints) -> None:
    with pytest.raises(UnsupportedModel, match="batch_invariant is for decoders; leave it out"):
        Engine(EngineConfig.parse({"model": str(tiny("switch_transformers")), "batch_invariant": True}))


@pytest.mark.parametrize(("family", "batch_invariant"), [("mixtral", True), ("minimax", False)])
def test_log_probabilities_of_prompts_are_refused_where_prompts_are_not_cut(engine: Engine) -> None:
    params = SamplingParams(max_tokens=1, prompt_logprobs=1)
    with pytest.raises(InvalidRequest, match=r"prompt_logprobs 1: .*batch_invariant"):
        engine.accept(Request(request_id="a", prompt_token_ids=(5, 6), params=params))
