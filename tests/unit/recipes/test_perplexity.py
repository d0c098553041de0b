from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pgmoe.bench.perplexity_result import TOTAL
from pgmoe.bench.result_file import draw_result, load_result, render_result
from pgmoe.errors import ConfigError
from pgmoe.training.pregate import pregate
from recipes.document import Document
from recipes.perplexity import load, measure, perplexities
from tests.support.checkpoints import save_tiny_chat

DOCUMENTS = [
    Document("The quick brown fox jumps over the lazy dog.", "a"),
    Document("Sphinx of black quartz, judge my vow! " * 5, "b"),
    Document("How vexingly quick daft zebras jump.", "a"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("perplexity") / "tiny-chat")


def of_each(folder: Path) -> list[tuple[float, int]]:
    """Loss and predicted tokens of every document, by transformers, one at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for document in DOCUMENTS:
        ids = tokenizer(document.text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append((float(model(input_ids=ids, labels=ids).loss), ids.shape[1] - 1))
    return found


def test_it_is_the_mean_over_tokens_whatever_is_batched(model: Path) -> None:
    sums = perplexities(*load(str(model)), DOCUMENTS, lambda *_: None)
    each = of_each(model)
    for source, places in {"a": [0, 2], "b": [1], TOTAL: [0, 1, 2]}.items():
        count = sum(each[place][1] for place in places)
        nats = sum(each[place][0] * each[place][1] for place in places)
        assert sums[source].num_tokens == count
        assert sums[source].perplexity == pytest.approx(math.exp(nats / count), rel=1e-4)


def test_a_pre_gated_model_is_routed_as_its_config_says(model: Path, tmp_path: Path) -> None:
    twin = pregate(str(model), tmp_path / "twin").folder
    both = [perplexities(*load(str(f)), DOCUMENTS, lambda *_: None)[TOTAL].perplexity for f in (model, twin)]
    assert both[0] != both[1]


def test_models_that_cannot_be_compared_are_refused(model: Path, tmp_path: Path) -> None:
    from recipes.lm_text import LmText

    LmText(tuple(DOCUMENTS), ()).save(tmp_path)
    twin = Path(shutil.copytree(model, tmp_path / "other" / "tiny-chat"))
    with pytest.raises(ConfigError, match="several models are called tiny-chat"):
        measure("try", tmp_path / "train.parquet", [str(model), str(twin)])
    other = twin.rename(tmp_path / "other-chat")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="compare models of one tokenizer"):
        measure("try", tmp_path / "train.parquet", [str(model), str(other)])


def test_a_result_names_models_and_sources(model: Path, tmp_path: Path) -> None:
    from recipes.lm_text import LmText

    LmText(tuple(DOCUMENTS), ()).save(tmp_path)
    result = measure("try", tmp_path / "train.parquet", [str(model)])
    path = result.save(tmp_path / "out")
    assert path.name.startswith("perplexity-try-")
    assert load_result(path) == result
    assert result.sources == ["a", "b", TOTAL]
    assert "| source | tokens | tiny-chat |" in render_result(result)
    draw_result(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000
