"""What form an answer must have: a JSON schema, a regular expression, or any JSON object."""

from __future__ import annotations

from dataclasses import dataclass

from pgmoe.checks import check
from pgmoe.errors import InvalidRequest

MAX_SCHEMA_BYTES = 64 * 1024
MAX_REGEX_BYTES = 4 * 1024
PARAM = "response_format"
"""The parameter that InvalidRequest names, here and where a format is compiled."""


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    """Exactly one of its fields is given; raises InvalidRequest else, or for a text that is too long.

    Whether the text is a schema or an expression that can be followed is found when it is compiled.
    """

    json_schema: str | None = None
    """JSON Schema, as JSON text of at most MAX_SCHEMA_BYTES bytes."""
    regex: str | None = None
    """The whole answer matches it (Rust's syntax: no look-around, no back references); at most
    MAX_REGEX_BYTES bytes."""
    json_object: bool = False
    """Any JSON object."""

    def __post_init__(self) -> None:
        check(isinstance(self.json_object, bool), PARAM, self.json_object, "true or false for json_object")
        _check_text("json_schema", self.json_schema, MAX_SCHEMA_BYTES)
        _check_text("regex", self.regex, MAX_REGEX_BYTES)
        if (self.json_schema is not None) + (self.regex is not None) + self.json_object != 1:
            raise InvalidRequest("give exactly one of json_schema, regex and json_object", PARAM)


def _check_text(name: str, text: str | None, limit: int) -> None:
    if text is None:
        return
    check(isinstance(text, str), PARAM, text, f"a string for {name}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} is not valid Unicode: {error}", PARAM) from error
    check(size <= limit, PARAM, size, f"at most {limit} bytes for {name}")
