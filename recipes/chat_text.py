"""Chats of the dense model with itself: what keeps a model able to chat while it learns from other text.

`python -m recipes.chat_text OUT --corpora FOLDER` writes Parquet, column `text`: a question and the answer
sampled from SmolLM2-135M-Instruct, as its chat template has them. Questions that are too long, and answers
that did not end within the limit, are left out: they would teach to stop in the middle of a sentence. The
data of the model that ships still had them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import torch
from rich.progress import track
from transformers import AutoModelForCausalLM

from pgmoe.training.default_model import packaged_gguf
from pgmoe.training.dense_model import read_dense_model
from recipes.corpora import CACHE, WIKI, WORDNET
from recipes.packages import fetch
from recipes.table_file import write_table
from recipes.wiki import Article, read_articles
from recipes.wordnet import read_synsets

OF_THINGS = (
    "What does the word {} mean?",
    "Write a sentence with the word {}.",
    "Explain to a child what {} is.",
    "Write a short story about {}.",
    "Give me three facts about {}.",
    "Write a short poem about {}.",
    "What comes to your mind when you hear the word {}?",
    "Name some things that have to do with {}, and say why.",
)
OF_ARTICLES = (
    "Tell me about {title}.",
    "What do you know about {title}?",
    "Summarise this in one sentence: {text}",
    "Say this in simpler words: {text}",
    "Ask a question about this text, and answer it: {text}",
)
BATCH, MAX_PROMPT_TOKENS, MAX_NEW_TOKENS = 48, 384, 128
TEMPERATURE, TOP_K = 0.7, 40


def questions(articles: Sequence[Article], nouns: Sequence[str], count: int, seed: int) -> list[str]:
    """Half of them about articles, half about nouns; distinct."""
    draw = random.Random(seed)
    asked: dict[str, None] = {}
    while len(asked) < count:
        if len(asked) % 2:
            article = draw.choice(articles)
            asked[draw.choice(OF_ARTICLES).format(title=article.title, text=article.text)] = None
        else:
            asked[draw.choice(OF_THINGS).format(draw.choice(nouns))] = None
    return list(asked)


class DenseChat:
    """A dense model answering many questions at once."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._tokenizer.padding_side = "left"

    @classmethod
    def packaged(cls) -> Self:
        """SmolLM2-135M-Instruct as its package has it."""
        dense = read_dense_model(str(packaged_gguf()))
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(dense.config, dtype=dense.dtype).eval()
        model.load_state_dict(dense.weights)
        return cls(model, dense.tokenizer)

    def texts(self, asked: Sequence[str]) -> Iterator[str]:
        """Question and sampled answer, of those questions that fit and answers that end; see the module."""
        chats = [[{"role": "user", "content": question}] for question in asked]
        prompts = self._tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        lengths = [len(ids) for ids in self._tokenizer(prompts, add_special_tokens=False)["input_ids"]]
        prompts = [p for p, length in zip(prompts, lengths, strict=True) if length <= MAX_PROMPT_TOKENS]
        if not prompts:
            return
        given = self._tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            ids = self._model.generate(
                **given, do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, max_new_tokens=MAX_NEW_TOKENS
            )
        for prompt, row in zip(prompts, ids[:, given["input_ids"].shape[1] :], strict=True):
            if (row == self._tokenizer.eos_token_id).any():
                yield prompt + self._tokenizer.decode(row, skip_special_tokens=True) + "<|im_end|>\n"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpora", type=Path, default=CACHE)
    parser.add_argument("--count", type=int, default=288)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    articles = read_articles(fetch(WIKI, args.corpora))
    synsets = read_synsets(fetch(WORDNET, args.corpora))
    nouns = sorted({s.words[0] for s in synsets.values() if s.key.startswith("n") and s.words[0].isalpha()})
    asked = questions(articles, nouns, args.count, args.seed)
    torch.manual_seed(args.seed)
    chat = DenseChat.packaged()
    batches = [asked[at : at + BATCH] for at in range(0, len(asked), BATCH)]
    rows: list[dict[str, object]] = [
        {"text": text} for batch in track(batches, "Chatting") for text in chat.texts(batch)
    ]
    write_table(rows, pa.schema([("text", pa.string())]), args.out)


if __name__ == "__main__":
    main()
