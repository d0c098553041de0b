"""Fields of OpenAI's requests that have a shape of their own."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pgmoe.checks import check
from pgmoe.models.chat_template import ChatMessage
from pgmoe.request import ResponseFormat


class Strict(BaseModel):
    """Takes its own fields, each of its own type, and nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: bool = False


class TextPart(Strict):
    """One text part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One chat message; `name` is accepted and not shown to the model."""

    role: str = Field(min_length=1)
    content: str | list[TextPart]
    name: str | None = None

    def flat(self) -> ChatMessage:
        """The message with its parts joined."""
        if isinstance(self.content, str):
            return ChatMessage(self.role, self.content)
        return ChatMessage(self.role, "".join(part.text for part in self.content))


class JsonSchema(Strict):
    """A schema by name. Answers always follow it, whatever `strict` says; the model sees none of this."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormatField(Strict):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema belongs to the type "json_schema", and is needed there')
        return self

    def format(self) -> ResponseFormat | None:
        """The form it asks for, if any. Raises InvalidRequest for a schema that is too long."""
        if self.json_schema is not None:
            return ResponseFormat(json_schema=json.dumps(self.json_schema.schema_, ensure_ascii=False))
        return ResponseFormat(json_object=True) if self.type == "json_object" else None


class StructuredOutputs(Strict):
    """`structured_outputs`, with vLLM's name: what `response_format` has no word for."""

    regex: str
    """The whole answer matches it (Rust's syntax)."""

    def format(self) -> ResponseFormat:
        """The form it asks for. Raises InvalidRequest for an expression that is too long."""
        return ResponseFormat(regex=self.regex)


def logit_bias(biases: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """OpenAI's object of biases by token id as SamplingParams has it. Raises InvalidRequest for a key."""
    for key in biases:
        ok = key.isascii() and key.isdigit() and len(key) < 20
        check(ok, "logit_bias", key, "by token ids, as strings of digits")
    return tuple((int(key), bias) for key, bias in biases.items())
