from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import OlmoeForCausalLM

from pgmoe.errors import CorruptCheckpoint, WeightReadError
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.loader import load_model, read_plan
from pgmoe.models.stored_embedding import StoredEmbedding, find_embedding
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import FAMILIES, tiny_config
from tests.support.damage import WEIGHTS, Original, age, edit_config, edit_weights, flip_bit
from tests.support.left_over import open_files

CPU = torch.device("cpu")
KEY = "model.embed_tokens.weight"


@pytest.fixture
def folder(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("olmoe"), tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 9), (1, 300), (3, 0)], ids=str)
def test_rows_are_those_of_an_embedding_in_memory(
    folder: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    stored = Checkpoint.open(str(folder)).tensors[KEY]
    ids = torch.randint(stored.shape[0], shape, generator=torch.Generator().manual_seed(0))
    expected = nn.Embedding.from_pretrained(stored[...].to(dtype))(ids)
    found = StoredEmbedding(stored, dtype)(ids)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_stays_in_its_file_unless_other_layers_use_it(
    tiny: TinyCheckpoints, family: str
) -> None:
    plan = read_plan(str(tiny(family, torch.bfloat16)))
    config = tiny_config(family)
    shared = config.is_encoder_decoder or config.tie_word_embeddings
    model = load_model(plan, dtype=torch.bfloat16, device=CPU).model
    assert isinstance(model.get_input_embeddings(), StoredEmbedding) != shared
    kept = 0 if shared else config.vocab_size * config.hidden_size * 2
    assert plan.dense_bytes - plan.loaded_bytes(CPU) == kept


def test_a_tied_embedding_is_loaded(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    plan = read_plan(str(folder))
    assert plan.embedding is None
    model = load_model(plan, dtype=torch.float32, device=CPU).model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_an_embedding_that_another_module_uses_is_loaded_whatever_the_config_says(folder: Path) -> None:
    checkpoint = Checkpoint.open(str(folder))
    with torch.device("meta"):
        model = OlmoeForCausalLM(tiny_config("olmoe"))
    assert not model.config.tie_word_embeddings
    assert find_embedding(model, checkpoint) is not None
    model.model.again = nn.Linear(1, 1, bias=False)
    model.model.again.weight = model.model.embed_tokens.weight
    assert find_embedding(model, checkpoint) is None


def test_an_accelerator_gets_the_whole_embedding(folder: Path) -> None:
    plan = read_plan(str(folder))
    assert plan.loaded_bytes(torch.device("cuda")) == plan.dense_bytes > plan.loaded_bytes(CPU)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_without_a_row_is_an_error(folder: Path, token: int) -> None:
    embedding = StoredEmbedding(Checkpoint.open(str(folder)).tensors[KEY], torch.float32)
    with pytest.raises(IndexError, match=str(token)):
        embedding(torch.tensor([[3, token]]))


def test_a_file_cut_short_is_named_and_gives_no_row_until_it_is_whole(folder: Path) -> None:
    stored = Checkpoint.open(str(folder)).tensors[KEY]
    embedding = StoredEmbedding(stored, torch.float32)
    whole, before = Original(folder / WEIGHTS), embedding(torch.arange(9))
    row = stored.nbytes // stored.shape[0]
    os.truncate(folder / WEIGHTS, stored.offset + 5 * row + 1)
    with pytest.raises(WeightReadError, match=rf"{KEY}: {folder / WEIGHTS} ends inside it"):
        embedding(torch.tensor([5]))
    with pytest.raises(WeightReadError, match=rf"{KEY}: {folder / WEIGHTS}: the file was changed"):
        embedding(torch.tensor([4]))
    whole.put_back()
    assert torch.equal(embedding(torch.arange(9)), before)


def test_no_row_is_taken_from_a_file_that_was_written_to(folder: Path) -> None:
    stored = Checkpoint.open(str(folder)).tensors[KEY]
    age(folder / WEIGHTS)
    embedding = StoredEmbedding(stored, torch.float32)
    flip_bit(folder / WEIGHTS, stored.offset)
    with pytest.raises(WeightReadError, match=rf"{KEY}: {folder / WEIGHTS}: the file was changed"):
        embedding(torch.tensor([0]))


def test_a_file_that_is_replaced_stays_the_one_it_was(folder: Path) -> None:
    stored = Checkpoint.open(str(folder)).tensors[KEY]
    embedding = StoredEmbedding(stored, torch.float32)
    before = embedding(torch.arange(9))
    path = folder / WEIGHTS
    (folder / "other").write_bytes(b"\0" * path.stat().st_size)
    (folder / "other").replace(path)
    assert torch.equal(embedding(torch.arange(9)), before)


def test_a_file_that_is_gone_is_named(folder: Path) -> None:
    stored = Checkpoint.open(str(folder)).tensors[KEY]
    (folder / WEIGHTS).unlink()
    with pytest.raises(CorruptCheckpoint, match=str(folder / WEIGHTS)):
        StoredEmbedding(stored, torch.float32)


def test_a_load_that_fails_leaves_no_file_open(folder: Path) -> None:
    plan = read_plan(str(folder))
    os.truncate(folder / WEIGHTS, plan.checkpoint.tensors["model.norm.weight"].offset)
    with pytest.raises(CorruptCheckpoint):
        load_model(plan, dtype=torch.float32, device=CPU)
    assert not open_files(folder)


def test_the_file_is_closed_with_the_model(folder: Path) -> None:
    stored = Checkpoint.open(str(folder)).tensors[KEY]
    embedding = StoredEmbedding(stored, torch.float32)
    assert open_files(folder)
    del embedding
    assert not open_files(folder)
    embedding = StoredEmbedding(stored, torch.float32)
    embedding.close()
    embedding.close()
    assert not open_files(folder)
    with pytest.raises(WeightReadError):
        embedding(torch.tensor([1]))
