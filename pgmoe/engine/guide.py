"""Which tokens may come next in an answer that must have a given form."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from pgmoe.errors import GenerationFailed, InvalidRequest
from pgmoe.response_format import PARAM


class Guide:
    """The state of one answer in a compiled grammar. For one thread at a time.

    An end-of-sequence token is allowed exactly where what was said so far is complete.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, vocab_size: int) -> NDArray[np.bool_]:
        """(vocab_size,): whether each token may come next; those that the tokenizer lacks may not.

        Raises InvalidRequest if the grammar has become too complex, or no token can go on.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # the mask then allows an end, as if the answer were complete
            raise self._stuck(self._matcher.get_error())
        if self._matcher.is_stopped() and not self._matcher.is_accepting():
            raise self._stuck("the tokenizer has no token that goes on")
        return np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token_id: int) -> None:
        """The answer goes on with this token. Raises GenerationFailed if it may not."""
        if not self._matcher.consume_token(token_id):
            raise GenerationFailed(
                f"token {token_id} does not fit the response format: {self._matcher.get_error()}"
            )

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and only an end may follow; one that is not may be complete, too."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def fork(self) -> Guide:
        """Another answer that begins as this one stands now."""
        return Guide(self._matcher.deep_copy())

    def _stuck(self, why: str) -> InvalidRequest:
        return InvalidRequest(f"the answer cannot be brought into the form of response_format: {why}", PARAM)
