"""T5's pre-training task: fill the gaps in a text (Raffel et al., arXiv 1910.10683, section 3.1.4).

15 % of the tokens are cut out in spans of 3 on average. A sentinel marks each gap in the prompt; the
completion is the spans, each behind its sentinel, and one more sentinel as the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from recipes.document import Document, cut
from recipes.tokenizer import SENTINELS

MAX_TOKENS = 100
"""Of a piece before its corruption."""
_MAX_CHARS = 340
SCHEMA = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
_MIN_TOKENS = 16
_NOISE_DENSITY, _MEAN_SPAN = 0.15, 3.0


@dataclass(frozen=True)
class Gapped:
    """A text with gaps and what was in them."""

    prompt: str
    completion: str

    def restored(self) -> str:
        """The text before its corruption."""
        text = self.prompt
        for sentinel, following in pairwise(SENTINELS):
            if sentinel not in self.completion:
                break
            span = self.completion.partition(sentinel)[2].partition(following)[0]
            text = text.replace(sentinel, span, 1)
        return text


def corrupt_all(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, seed: int = 0
) -> Iterator[Gapped]:
    """Corrupt every document in pieces of whole sentences, if possible, of at most MAX_TOKENS.

    What a document gives depends on it and the seed alone. Left out are pieces below 16 tokens and those in
    which a gap would cut a character in two.
    """
    for document in documents:
        generator = random.Random(f"{seed} {document.digest.hex()}")
        for text in cut(document.text, _MAX_CHARS):
            ids = tokenizer.encode(text, add_special_tokens=False)[:MAX_TOKENS]
            if len(ids) >= _MIN_TOKENS:
                yield from _corrupt(ids, tokenizer, generator)


def _corrupt(
    ids: Sequence[int], tokenizer: PreTrainedTokenizerFast, generator: random.Random
) -> Iterator[Gapped]:
    texts = [_decoded(part, tokenizer) for part in spans(ids, generator)]
    if "".join(texts) != (whole := _decoded(ids, tokenizer)) or "\ufffd" in whole:
        return
    kept, cut_out = texts[::2], texts[1::2]
    prompt = "".join(f"{text}{sentinel}" for text, sentinel in zip(kept, SENTINELS, strict=False))
    completion = "".join(f"{sentinel}{text}" for sentinel, text in zip(SENTINELS, cut_out, strict=False))
    yield Gapped(prompt, f"{completion}{SENTINELS[len(cut_out)]}")


def _decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> str:
    text = tokenizer.decode(list(ids))
    assert isinstance(text, str)  # it gives a list for a list of lists
    return text


def spans(ids: Sequence[int], generator: random.Random) -> list[list[int]]:
    """The ids in parts, by turns kept and cut out, the first one kept and none empty; at least two ids.

    All ways to part them into so many spans are equally likely, as in T5's `random_spans_noise_mask`.
    """
    num_noise = min(max(round(len(ids) * _NOISE_DENSITY), 1), len(ids) - 1)
    num_spans = min(max(round(num_noise / _MEAN_SPAN), 1), len(ids) - num_noise)
    kept = _lengths(len(ids) - num_noise, num_spans, generator)
    noise = _lengths(num_noise, num_spans, generator)
    parts, at = [], 0
    for length in (length for pair in zip(kept, noise, strict=True) for length in pair):
        parts.append(list(ids[at : at + length]))
        at += length
    return parts


def _lengths(total: int, num_parts: int, generator: random.Random) -> list[int]:
    borders = [0, *sorted(generator.sample(range(1, total), num_parts - 1)), total]
    return [end - start for start, end in pairwise(borders)]
