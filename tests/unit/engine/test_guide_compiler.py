from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pgmoe.engine import guide_compiler
from pgmoe.engine.guide_compiler import GuideCompiler
from pgmoe.errors import InvalidRequest
from pgmoe.request import ResponseFormat
from tests.support.chat_tokenizer import train_chat_tokenizer

BAD_SCHEMAS = [
    ("nonsense", "not JSON"),
    ("", "not JSON"),
    ("[" * 60_000, "not JSON"),
    ("[]", "must be an object or true, got []"),
    ("7", "must be an object or true, got 7"),
    ('{"type": 5}', "type must be a string"),
    ('{"type": "person"}', "person"),
    ('{"not": {"type": "string"}}', "not"),
    ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ('{"x-guidance": {"lenient": true}, "type": "array", "uniqueItems": true}', "uniqueItems"),
    ('{"$ref": "http://example.com/schema"}', "example.com"),
    ('{"$ref": "#/$defs/Missing"}', "Missing"),
    ('{"type": "integer", "minimum": 3, "maximum": 2}', "Unsatisfiable"),
    ('{"type": "string", "pattern": "(?=a)b"}', "look-ahead"),
    ('{"type": "string", "format": "no-such-format"}', "no-such-format"),
    ("false", "must be an object or true, got false"),
]
BAD_REGEXES = [
    ("a(", "unclosed group"),
    (r"(a)\1", "backreferences"),
    ("(?=a)b", "look-ahead"),
    ("[z-a]", "range"),
]


def small() -> GuideCompiler:
    tokenizer = train_chat_tokenizer()
    return GuideCompiler(tokenizer, len(tokenizer))


def refusal(compiler: GuideCompiler, form: ResponseFormat) -> str:
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(form)
    assert caught.value.param == "response_format"
    return str(caught.value)


@pytest.mark.parametrize(("schema", "why"), BAD_SCHEMAS)
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(schema: str, why: str) -> None:
    assert why in refusal(small(), ResponseFormat(json_schema=schema))


@pytest.mark.parametrize(("regex", "why"), BAD_REGEXES)
def test_a_regex_that_cannot_be_followed_is_refused_with_the_reason(regex: str, why: str) -> None:
    assert why in refusal(small(), ResponseFormat(regex=regex))


def test_a_schema_deeper_than_can_be_read_is_refused() -> None:
    schema = '{"items":' * 5000 + "{}" + "}" * 5000
    assert refusal(small(), ResponseFormat(json_schema=schema))


def test_without_a_tokenizer_there_is_no_form() -> None:
    compiler = GuideCompiler(None, 100)
    assert "needs a tokenizer" in refusal(compiler, ResponseFormat(json_object=True))


def test_a_tokenizer_without_an_end_cannot_guide() -> None:
    tokenizer = train_chat_tokenizer()
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert "end-of-sequence" in refusal(GuideCompiler(bare, 512), ResponseFormat(json_object=True))
    assert GuideCompiler(bare, 512, [2]).compile(ResponseFormat(json_object=True)).allowed(512).any()


def test_a_tokenizer_whose_bytes_are_unknown_cannot_guide() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    assert "this tokenizer" in refusal(GuideCompiler(fast, 3), ResponseFormat(json_object=True))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[ResponseFormat]:
    """The forms that were compiled, in order."""
    forms: list[ResponseFormat] = []

    def counting(form: ResponseFormat) -> str:
        forms.append(form)
        return original(form)

    original = guide_compiler._grammar
    monkeypatch.setattr(guide_compiler, "_grammar", counting)
    return forms


def test_forms_are_compiled_once_as_long_as_they_are_kept(compiled: list[ResponseFormat]) -> None:
    tokenizer = train_chat_tokenizer()
    compiler = GuideCompiler(tokenizer, len(tokenizer), max_grammars=2)
    for regex in ("a", "b", "a", "c", "a", "b"):
        compiler.compile(ResponseFormat(regex=regex))
    assert [form.regex for form in compiled] == ["a", "b", "c", "b"]


def test_guides_of_one_form_do_not_share_their_state() -> None:
    tokenizer = train_chat_tokenizer()
    compiler = GuideCompiler(tokenizer, len(tokenizer))
    one, other = (compiler.compile(ResponseFormat(regex="a")) for _ in range(2))
    one.accept(tokenizer.convert_tokens_to_ids("a"))
    assert (one.finished, other.finished) == (True, False)


def test_threads_may_compile_at_once(compiled: list[ResponseFormat]) -> None:
    compiler = small()
    items = {"type": "number"}
    schemas = [json.dumps({"type": "array", "maxItems": i % 5, "items": items}) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        guides = list(pool.map(compiler.compile, [ResponseFormat(json_schema=schema) for schema in schemas]))
    assert all(guide.allowed(512).any() for guide in guides)
    assert set(compiled) == {ResponseFormat(json_schema=schema) for schema in schemas}
    assert len(compiled) < 100  # several threads may compile what none of them finds
