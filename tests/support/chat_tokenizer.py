"""A real tokenizer, small enough to train in a test: byte-level BPE with a chat template."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 512
BOS, END, START, PAD = "<|bos|>", "<|im_end|>", "<|im_start|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = """
A lighthouse keeper counts the ships that pass at night. Every hour she writes their number in a book, and
in the morning she adds the numbers up. On some nights there are none, and then she reads instead, or mends
a net, or looks at the stars and tries to remember what they are called.

The system answers questions. The user asks: how far is the moon? The assistant says: about three hundred
and eighty thousand kilometres, which light crosses in little more than a second. And how far is the sun?
Much farther, says the assistant; light needs more than eight minutes for the way.

To bake bread, mix flour, water, salt and a little yeast. Let the dough rest until it has doubled, then fold
it, shape it and let it rest again. The oven should be hot before the bread goes in. Do not cut it while it
is warm, however good it smells.

Words such as naïve, café, straße and señor have letters beyond the plain alphabet; so have привет and
日本語. A tokenizer that works on bytes takes them all, and takes emoji 🙂 and every other character as well.
"""


def train_chat_tokenizer() -> PreTrainedTokenizerFast:
    """Train on CORPUS. All 256 bytes are tokens, so any text survives encode and decode.

    Encoding adds the bos token, as Llama's and Mixtral's tokenizers do, and the template writes one too:
    who encodes a templated prompt must not add it twice.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.split("\n\n"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
