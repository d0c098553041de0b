"""Small real tokenizers of the three kinds that models use, trained on a few sentences."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_TEXT = ["Hello world, the world says hello to you. It isn't 12 o'clock yet; naïve café déjà vu.\n"] * 20
_SPECIAL = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _edited(tokenizer: Tokenizer, **model: Any) -> Tokenizer:
    content = json.loads(tokenizer.to_str())
    content["model"].update(model)
    return Tokenizer.from_str(json.dumps(content))


def byte_level_bpe() -> PreTrainedTokenizerBase:
    """GPT-2, Qwen, SmolLM: a token is any run of bytes, often a part of a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*_TEXT, "你好 🌶️ 你 🌶️"], trainer)
    return _wrap(tokenizer)


def llama_bpe() -> PreTrainedTokenizerBase:
    """Llama 2, Mixtral: spaces are `▁`, one is put before the text; what is unknown becomes bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    text = [word for line in _TEXT for word in line.replace(" ", " ▁").split()]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=_SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    vocab = tokenizer.get_vocab()
    vocab |= {token: len(vocab) + i for i, token in enumerate(_BYTES)}
    return _wrap(_edited(tokenizer, vocab=vocab, byte_fallback=True))


def metaspace_unigram() -> PreTrainedTokenizerBase:
    """T5, Switch, NLLB: a Unigram model whose decoder drops the `▁` that the pre-tokenizer put first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"] + [[token, -20.0] for token in _BYTES]
    return _wrap(_edited(tokenizer, vocab=vocab, byte_fallback=True))
