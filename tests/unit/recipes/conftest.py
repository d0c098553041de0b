from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from recipes.tokenizer import train_tokenizer

TEXT = (
    "A robin is a small songbird with a reddish breast. It builds its nest in spring, in hedges and in ivy. "
    "The fieldfare is a larger thrush; it comes from the north and stays until April. Köln and Zürich are "
    "cities on rivers, and both have old bridges. In 1792 the president spoke of peace with his neighbours. "
)


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT], vocab_size=500)
