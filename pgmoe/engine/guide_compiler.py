"""From the form that a request asks for to a guide of its answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from threading import Lock

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pgmoe.engine.guide import Guide, reason
from pgmoe.errors import InvalidRequest
from pgmoe.response_format import PARAM, ResponseFormat

_MAX_GRAMMARS = 64
_MAX_LEXER_STATES = 50_000
"""Of one answer, of 1 to 2 kB each: the largest part of what a hostile pattern can make a guide take."""
_WHITESPACE = r"[ \t\n]{1,32}"
"""Between the tokens of JSON; without a bound, a small model may write nothing else up to its last token."""

_METASPACE = {
    "normalizer": None,
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}
"""What takes the place of these parts of a tokenizer of T5's kind."""


class GuideCompiler:
    """Compiles response formats for one model and keeps the last ones. Any thread may use it."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        vocab_size: int,
        eos_token_ids: Iterable[int] = (),
        *,
        max_grammars: int = _MAX_GRAMMARS,
    ) -> None:
        """`vocab_size` of the logits may be above or below the tokenizer's.

        `eos_token_ids` end the model's answers: the tokenizer's own if none are given.
        """
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocabulary: LLTokenizer | None = None
        self._lock = Lock()
        self._prototype = lru_cache(max_grammars)(self._compile)

    def compile(self, response_format: ResponseFormat) -> Guide:
        """A guide at its beginning. Raises InvalidRequest if the format cannot be followed, saying why.

        The first call for a model takes part of a second (it reads the vocabulary), others milliseconds.
        """
        return Guide(self._prototype(response_format).deep_copy())

    def _compile(self, response_format: ResponseFormat) -> LLMatcher:
        grammar = _grammar(response_format)
        limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        matcher = LLMatcher(self._read_vocabulary(), grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _refused(reason(matcher))
        return matcher

    def _read_vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._new_vocabulary()
            return self._vocabulary

    def _new_vocabulary(self) -> LLTokenizer:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InvalidRequest("a response_format needs a tokenizer, and the model has none", PARAM)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            kind = type(tokenizer).__name__
            raise InvalidRequest(f"response_format is not available for a tokenizer of kind {kind}", PARAM)
        eos = self._eos_token_ids or [i for i in (tokenizer.eos_token_id,) if i is not None]
        if not eos:
            raise InvalidRequest(
                "a response_format needs an end-of-sequence token, the model has none", PARAM
            )
        try:
            return LLTokenizer(_readable(tokenizer), max(self._vocab_size, len(tokenizer)), eos)
        except ValueError as error:
            raise InvalidRequest(
                f"response_format is not available with this tokenizer: {error}", PARAM
            ) from error


def _readable(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokenizer as JSON that llguidance reads aright.

    It knows `▁` for a space from a Replace decoder alone, and what must follow it tokenises as it stands: so
    nothing may be put before the text, or changed in it.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None
    decoder = content["decoder"] or {}
    if "Metaspace" in [step.get("type") for step in decoder.get("decoders", [decoder])]:
        content |= _METASPACE
    return json.dumps(content)


def _grammar(response_format: ResponseFormat) -> str:
    if response_format.regex is not None:
        return LLMatcher.grammar_from_regex(response_format.regex)
    schema: object = {"type": "object"}
    if response_format.json_schema is not None:
        try:
            schema = json.loads(response_format.json_schema)
        except (ValueError, RecursionError) as error:
            raise _refused(f"the schema is not JSON: {error}") from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise _refused(f"a schema must be an object or true, got {json.dumps(schema)[:50]}")
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema),
        # which come after what a schema itself may ask of llguidance ("x-guidance")
        overrides={"whitespace_flexible": True, "whitespace_pattern": _WHITESPACE, "lenient": False},
    )


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"response_format cannot be followed: {why}", PARAM)
