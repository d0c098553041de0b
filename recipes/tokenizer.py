"""The tokenizer of the models that are trained here: a byte-level BPE with T5's special tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pgmoe.new_folder import new_folder

VOCAB_SIZE = 8_192
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
"""At ids 0, 1, 2, as T5 has them."""
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
_NEED_BYTES = 2_000_000


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Learn the merges from `texts`. Every encoding ends with `</s>`, and none loses a byte of its text.

    The vocabulary is smaller than asked for where the texts have too few different words.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, UNKNOWN, *SENTINELS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = (END, tokenizer.token_to_id(END))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[end]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=list(SENTINELS),
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder that `AutoTokenizer` loads. Raises ConfigError if it is taken."""
    with new_folder(folder, _NEED_BYTES) as partial:
        tokenizer.save_pretrained(partial)
