from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgmoe.errors import ConfigError
from pgmoe.training.finetune import finetune
from pgmoe.training.finetune_config import FinetuneConfig
from tests.support.finetuning import save_text, save_trainable, small_run


def config_with(**options: Any) -> FinetuneConfig:
    return FinetuneConfig(**{"model": "m", "data": (Path("d"),), "out": Path("o"), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "some"}, "train 'some' is none of all, gates"),
        ({"length": 1}, "length is 1; give 2 or more"),
        ({"rank": 0}, "rank is 0; give more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; give more than 0"),
        ({"distil_weight": 1.5}, "distil_weight is 1.5; give 0 to 1"),
        ({"aux_weight": -1.0}, "aux_weight is -1.0; give 0 or more"),
        ({"data": ()}, "no data; name one"),
        ({"evaluate_steps": 5}, "name a file to evaluate on"),
        ({"evaluate": Path("x/../d")}, "is trained on, too; evaluate on another"),
        ({"train": "gates", "rank": 2}, "train gates and rank 2: .*leave one out"),
        ({"alpha": 4.0}, "alpha is 4.0, .*give a rank, too"),
        ({"temperature": 2.0}, "temperature is 2.0, but there is no teacher"),
        ({"distil_weight": 0.0}, "distil_weight is 0.0, but there is no teacher"),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_with(**options)


def test_alpha_is_twice_the_rank_unless_given() -> None:
    assert config_with(rank=8).scale == 2.0
    assert config_with(rank=8, alpha=4.0).scale == 0.5


def test_where_the_result_goes_is_no_part_of_the_command() -> None:
    assert config_with().command() == config_with(out=Path("p"), checkpoint_steps=7).command()
    assert config_with().command() != config_with(seed=1).command()


def test_several_workers_are_not_started_by_the_library(tmp_path: Path) -> None:
    model, data = save_trainable("mixtral", tmp_path / "m"), save_text(tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"workers is 2, but 1 train; .*deployments\.train"):
        finetune(small_run(model, data, tmp_path / "out", workers=2))


def test_an_encoder_decoder_keeps_its_activations_where_several_train(tmp_path: Path) -> None:
    model, data = save_trainable("switch_transformers", tmp_path / "m"), save_text(tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"is an encoder-decoder: .* leave it out, or train with one"):
        finetune(small_run(model, data, tmp_path / "out", workers=2, gradient_checkpointing=True))


def test_a_balance_weight_is_refused_where_there_is_no_such_loss(tmp_path: Path) -> None:
    model, data = save_trainable("deepseek_v3", tmp_path / "m"), save_text(tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="has no load-balance loss"):
        finetune(small_run(model, data, tmp_path / "out", aux_weight=0.1))
    finetune(small_run(model, data, tmp_path / "out2", steps=1))
