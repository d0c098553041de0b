"""Random logits, drawn under a guide, must give an answer of its form."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pgmoe.engine.batch_sampler import sample
from pgmoe.engine.guide_compiler import GuideCompiler
from pgmoe.engine.sampled_token import SampledToken
from pgmoe.engine.sampler import Sampler
from pgmoe.errors import GenerationFailed, InvalidRequest
from pgmoe.request import ResponseFormat, SamplingParams
from tests.support.chat_tokenizer import train_chat_tokenizer
from tests.unit.engine.trained_tokenizers import byte_level_bpe, llama_bpe, metaspace_unigram

PADDING = 37
"""Rows that the model's embeddings have and the tokenizer does not."""
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["größe", "色", "🙂"]}, "maxItems": 3},
        "of": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Place"}]},
    },
    "required": ["name", "age", "tags", "of"],
    "additionalProperties": False,
    "$defs": {
        "Place": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
            "additionalProperties": False,
        }
    },
}
REGEXES = [
    r"(yes|no|naïve 🙂)",
    r"[0-9]{3}-[a-f]{2,4}",
    r"^([a-z]+ ?){1,4}[.!?]$",
    r"日+本",
    r"(a|b)*c?",
    r"Hello,  world\n(the|it) end",
]

Tokenizers = dict[str, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    makers: list[Callable[[], PreTrainedTokenizerBase]] = [
        train_chat_tokenizer,
        byte_level_bpe,
        llama_bpe,
        metaspace_unigram,
    ]
    return {make.__name__: make() for make in makers}


@pytest.fixture(scope="module")
def compilers(tokenizers: Tokenizers) -> dict[str, GuideCompiler]:
    return {name: GuideCompiler(each, len(each) + PADDING) for name, each in tokenizers.items()}


NAMES = ["train_chat_tokenizer", "byte_level_bpe", "llama_bpe", "metaspace_unigram"]


def json_format(schema: object) -> ResponseFormat:
    return ResponseFormat(json_schema=json.dumps(schema))


def answers(
    compiler: GuideCompiler,
    tokenizer: PreTrainedTokenizerBase,
    form: ResponseFormat,
    count: int,
    **params: Any,
) -> list[str]:
    """Texts drawn at once from logits that are random but lean to what ends things; each ends by itself."""
    ends = [
        tokenizer.eos_token_id,
        *(i for i in range(len(tokenizer)) if tokenizer.decode([i]) in ('"', "]", "}")),
    ]
    samplers = [
        Sampler(SamplingParams(seed=seed, response_format=form, **params), (), guide=compiler.compile(form))
        for seed in range(count)
    ]
    generator = torch.Generator().manual_seed(count)
    said: list[list[int]] = [[] for _ in samplers]
    running = list(range(count))
    for _ in range(1000):
        logits_BV = 2 * torch.randn(len(running), len(tokenizer) + PADDING, generator=generator)
        logits_BV[:, ends] += 4
        for i, token in zip(running, sample(logits_BV, [samplers[i] for i in running]), strict=True):
            assert isinstance(token, SampledToken)
            assert token.token_id < len(tokenizer)
            said[i].append(token.token_id)
        running = [i for i in running if said[i][-1] != tokenizer.eos_token_id]
        if not running:
            return [tokenizer.decode(ids[:-1]) for ids in said]
    raise AssertionError("an answer has no end")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_p": 0.9, "top_k": 50, "min_p": 0.01}])
def test_answers_match_their_schema(
    name: str, params: dict[str, Any], compilers: dict[str, GuideCompiler], tokenizers: Tokenizers
) -> None:
    for text in answers(compilers[name], tokenizers[name], json_format(PERSON), 40, **params):
        jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_json_objects(
    name: str, compilers: dict[str, GuideCompiler], tokenizers: Tokenizers
) -> None:
    for text in answers(compilers[name], tokenizers[name], ResponseFormat(json_object=True), 40):
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("regex", REGEXES)
def test_answers_match_their_regex(
    name: str, regex: str, compilers: dict[str, GuideCompiler], tokenizers: Tokenizers
) -> None:
    texts = answers(compilers[name], tokenizers[name], ResponseFormat(regex=regex), 30)
    assert [text for text in texts if not re.fullmatch(regex, text)] == []


def test_characters_of_several_bytes_are_written_whole(
    compilers: dict[str, GuideCompiler], tokenizers: Tokenizers
) -> None:
    for name in NAMES:
        texts = answers(compilers[name], tokenizers[name], ResponseFormat(regex='"[^\\x00-\\x7f]{3,6}"'), 20)
        assert all(len(json.loads(text)) in range(3, 7) and "\ufffd" not in text for text in texts)


def test_an_end_is_allowed_where_the_answer_is_complete_and_only_there(
    compilers: dict[str, GuideCompiler], tokenizers: Tokenizers
) -> None:
    tokenizer = tokenizers["train_chat_tokenizer"]
    size, eos = len(tokenizer) + PADDING, tokenizer.eos_token_id
    guide = compilers["train_chat_tokenizer"].compile(ResponseFormat(regex="ab?c?|abcd"))
    ends, finished = [], []
    for letter in "abcd":
        ends.append(bool(guide.allowed(size)[eos]))
        guide.accept(tokenizer.convert_tokens_to_ids(letter))
        finished.append(guide.finished)
    assert ends == [False, True, True, True]
    assert finished == [False, False, False, True]
    assert guide.allowed(size).nonzero()[0].tolist() == [eos]


def test_every_end_of_the_model_is_allowed() -> None:
    tokenizer = train_chat_tokenizer()
    pad = tokenizer.pad_token_id
    guide = GuideCompiler(tokenizer, len(tokenizer), [pad, tokenizer.eos_token_id]).compile(
        ResponseFormat(regex="a*")
    )
    assert guide.allowed(len(tokenizer))[[pad, tokenizer.eos_token_id]].all()


@pytest.mark.parametrize("difference", [-300, 0, 1, 4096])
def test_a_mask_is_as_long_as_the_models_vocabulary(difference: int) -> None:
    tokenizer = train_chat_tokenizer()
    size = len(tokenizer) + difference
    guide = GuideCompiler(tokenizer, size).compile(ResponseFormat(regex="[a-z]+"))
    allowed = guide.allowed(size)
    assert allowed.shape == (size,)
    assert allowed.any()
    assert not allowed[len(tokenizer) :].any()


def test_an_answer_under_a_guide_is_taken_up_again(
    compilers: dict[str, GuideCompiler], tokenizers: Tokenizers
) -> None:
    name, form = "llama_bpe", json_format(PERSON)
    params = SamplingParams(seed=5, response_format=form)
    logits_TV = torch.randn(30, len(tokenizers[name]) + PADDING, generator=torch.Generator().manual_seed(1))
    one = Sampler(params, (), guide=compilers[name].compile(form))
    whole = [sample(logits_TV[[t]], [one])[0] for t in range(30)]
    ids = [token.token_id for token in whole if isinstance(token, SampledToken)]
    again = Sampler(params, (), guide=compilers[name].compile(form), answer_token_ids=ids[:13])
    assert [sample(logits_TV[[t]], [again])[0] for t in range(13, 30)] == whole[13:]


def test_guided_and_free_rows_share_a_batch_and_logprobs_are_the_models_own(
    compilers: dict[str, GuideCompiler], tokenizers: Tokenizers
) -> None:
    name, form = "byte_level_bpe", ResponseFormat(regex="[0-9]{40}")
    rng = random.Random(3)
    samplers = [
        Sampler(
            SamplingParams(seed=i, logprobs=3),
            (),
            guide=compilers[name].compile(form) if rng.random() < 0.5 else None,
        )
        for i in range(12)
    ]
    logits_BV = torch.randn(12, len(tokenizers[name]) + PADDING, generator=torch.Generator().manual_seed(2))
    expected_BV = logits_BV.log_softmax(dim=-1)
    free = []
    for row, token in enumerate(sample(logits_BV, samplers)):
        assert isinstance(token, SampledToken)
        assert token.logprob == pytest.approx(expected_BV[row, token.token_id].item())
        assert [id_ for id_, _ in token.top] == expected_BV[row].topk(3).indices.tolist()
        if samplers[row].guide is not None:
            assert tokenizers[name].decode([token.token_id]).isdigit()
        else:
            free.append(sample(logits_BV[[row]], [Sampler(samplers[row].params, ())])[0] == token)
    assert free
    assert all(free)


def test_a_token_that_does_not_fit_is_refused(
    compilers: dict[str, GuideCompiler], tokenizers: Tokenizers
) -> None:
    guide = compilers["byte_level_bpe"].compile(ResponseFormat(regex="a"))
    with pytest.raises(GenerationFailed, match="does not fit the response format"):
        guide.accept(tokenizers["byte_level_bpe"].convert_tokens_to_ids("b"))
    with pytest.raises(InvalidRequest, match="cannot be brought into the form"):
        guide.allowed(10)


def test_a_guide_that_is_stuck_ends_its_row_alone(
    compilers: dict[str, GuideCompiler], tokenizers: Tokenizers
) -> None:
    guide = compilers["byte_level_bpe"].compile(ResponseFormat(regex="a"))
    with pytest.raises(GenerationFailed):
        guide.accept(tokenizers["byte_level_bpe"].convert_tokens_to_ids("b"))
    samplers = [Sampler(SamplingParams(), (), guide=guide), Sampler(SamplingParams(), ())]
    stuck, token = sample(torch.zeros(2, len(tokenizers["byte_level_bpe"]) + PADDING), samplers)
    assert isinstance(stuck, InvalidRequest)
    assert isinstance(token, SampledToken)
    assert [one.num_tokens for one in samplers] == [0, 1]


@pytest.mark.parametrize("regex", ["hello {1}", "Z+", "he(Q|Z)", "(Q|Z){3}"])
def test_a_text_that_the_tokenizer_cannot_write_is_an_error_of_the_request(regex: str) -> None:
    """T5's vocabulary has no braces, say, and no tokens of bytes."""
    tokenizer = metaspace_unigram_without_bytes()
    form = ResponseFormat(regex=regex.replace("{1}", r"\{\}"))
    one = Sampler(
        SamplingParams(temperature=0), (), guide=GuideCompiler(tokenizer, len(tokenizer)).compile(form)
    )
    result = None
    for _ in range(20):
        (result,) = sample(torch.zeros(1, len(tokenizer)), [one])
        if not isinstance(result, SampledToken):
            break
    assert isinstance(result, InvalidRequest)
    assert result.param == "response_format"
    assert "no token that goes on" in str(result)


def metaspace_unigram_without_bytes() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(["hello world, the world says hello to you"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def test_a_tokenizer_of_t5s_kind_writes_spaces() -> None:
    tokenizer = metaspace_unigram_without_bytes()
    form = ResponseFormat(regex="(hello|you) world,? says( the)* hello")
    texts = answers(GuideCompiler(tokenizer, len(tokenizer) + PADDING), tokenizer, form, 20)
    assert [text for text in texts if not re.fullmatch(str(form.regex), text)] == []
