"""Which tokens may come next in an answer that must have a given form."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from pgmoe.errors import GenerationFailed, InvalidRequest
from pgmoe.response_format import PARAM

_NO_TOKEN = "the tokenizer has no token that goes on"


class Guide:
    """The state of one answer in a compiled grammar. For one thread at a time.

    An end-of-sequence token is allowed exactly where what was said so far is complete.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, vocab_size: int) -> NDArray[np.bool_]:
        """(vocab_size,): whether each token may come next; those that the tokenizer lacks may not.

        Raises InvalidRequest if no token can go on, or the grammar has become too complex.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # the mask then allows an end, as if the answer were complete
            why = reason(self._matcher)
            raise _stuck(_NO_TOKEN if why == "NoExtensionBias" else why)
        allowed = np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)
        num_allowed = np.count_nonzero(allowed)
        if num_allowed == 0 or (num_allowed == 1 and not self._fits(int(allowed.argmax()))):
            raise _stuck(_NO_TOKEN)
        return allowed

    def _fits(self, token_id: int) -> bool:
        """Whether the only token of a mask is right: one that must come may have been encoded as `<unk>`."""
        return self._matcher.is_accepting() or self._matcher.validate_tokens([token_id]) == 1

    def accept(self, token_id: int) -> None:
        """The answer goes on with this token. Raises GenerationFailed if it may not."""
        if not self._matcher.consume_token(token_id):
            raise GenerationFailed(
                f"token {token_id} does not fit the response format: {reason(self._matcher)}"
            )

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and only an end may follow; one that is not may be complete, too."""
        return self._matcher.is_stopped() and not self._matcher.is_error()


def reason(matcher: LLMatcher) -> str:
    """What is wrong with a matcher, in llguidance's words."""
    return matcher.get_error().removesuffix("<non-verbose/>").strip()


def _stuck(why: str) -> InvalidRequest:
    return InvalidRequest(f"the answer cannot be brought into the form of response_format: {why}", PARAM)
