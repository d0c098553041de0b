"""Chat messages as one prompt, by the template that comes with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from pgmoe.errors import InvalidRequest


@dataclass(frozen=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


class ChatTemplate:
    """Writes a conversation out as the model was taught to read it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """A model without a tokenizer is fine until someone chats with it."""
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt, up to where the answer begins; special tokens are in it.

        Raises InvalidRequest for an empty conversation, one that the template refuses, and a model that has
        no template.
        """
        if not messages:
            raise InvalidRequest("messages is empty; give at least one", "messages")
        if self._tokenizer is None or not self._tokenizer.chat_template:
            raise InvalidRequest(
                "this model has no chat template; send a plain prompt instead of messages", "messages"
            )
        turns = [asdict(message) for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (
            TemplateError,
            TypeError,
            ValueError,
        ) as error:  # templates add and cut strings in Python's way
            raise InvalidRequest(f"the chat template refuses the messages ({error})", "messages") from error
        assert isinstance(text, str)
        return text
