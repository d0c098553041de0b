"""The text of one answer: detokenised, and cut before a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from pgmoe.engine.detokenizer import Detokenizer
from pgmoe.engine.stop import StopStrings, TextStep
from pgmoe.errors import InvalidRequest


class AnswerText:
    """Takes an answer's tokens, gives its text; see `Detokenizer` and `StopStrings` for what is held back.

    Raises InvalidRequest for stop strings without a tokenizer: they would never be met.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        stop: Sequence[str] = (),
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        if stop and tokenizer is None:
            raise InvalidRequest(f"stop {list(stop)!r} needs a tokenizer, and this model has none", "stop")
        self._detokenizer = Detokenizer(tokenizer, prompt_token_ids)
        self._stops = StopStrings(stop)

    def push(self, token_id: int) -> TextStep:
        """Take the next token. After a step that stopped, the answer is complete: call nothing more."""
        return self._stops.push(self._detokenizer.push(token_id))

    def finish(self) -> TextStep:
        """The answer ended without a stop: return the rest of its text, in which a stop may yet be found."""
        last = self._stops.push(self._detokenizer.finish())
        if last.stopped:
            return last
        rest = self._stops.flush()
        return TextStep(last.text + rest.text, rest.stopped)
