"""What the gRPC client refuses before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deployments.client import PgmoeClient
from pgmoe.errors import InvalidRequest
from pgmoe.request import SamplingParams


@pytest.fixture
def nobody() -> Iterator[PgmoeClient]:
    """A client whose server is not there: what raises InvalidRequest here was never sent."""
    with PgmoeClient("127.0.0.1:1") as client:
        yield client


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"messages": [{"role": "user", "contents": "x"}]},
            "missing 'content', unknown 'contents'",
        ),
        ({"messages": [{"content": "x"}]}, "missing 'role'"),
        ({"messages": [{"role": "user", "content": 3}]}, "bad argument type"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogates not allowed"),
        ({"prompt": "half \ud83d"}, "surrogates not allowed at position 5"),
        ({"prompt": "x", "params": SamplingParams(stop=("\udfff",))}, "surrogates not allowed"),
        ({"prompt": [1, 2**70]}, "range"),
        ({}, "exactly one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_sent_is_an_invalid_request(
    nobody: PgmoeClient, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        nobody.generate(**arguments)
    with pytest.raises(InvalidRequest, match=message):
        next(nobody.stream(**arguments))
