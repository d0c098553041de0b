"""What the ingress reads from a model folder: sampling defaults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deployments.sampling_defaults import load_defaults
from pgmoe.errors import CorruptCheckpoint


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder without its weights."""
    target = tmp_path / "model"
    return Path(shutil.copytree(model_folder, target, ignore=shutil.ignore_patterns("*.safetensors")))


def test_a_model_without_recommendations_has_no_sampling_defaults(copy: Path) -> None:
    (copy / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert load_defaults(copy) == {}
    (copy / "generation_config.json").unlink()
    assert load_defaults(copy) == {}


def test_a_model_whose_makers_do_not_sample_is_greedy_by_default(copy: Path) -> None:
    file = copy / "generation_config.json"
    file.write_text(json.dumps({"do_sample": False, "repetition_penalty": 1.1}))
    assert load_defaults(copy) == {"temperature": 0.0, "repetition_penalty": 1.1}
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.7}))
    assert load_defaults(copy) == {"temperature": 0.7}


@pytest.mark.parametrize("text", ["{", json.dumps({"temperature": 50.0, "do_sample": True})])
def test_recommendations_that_cannot_be_followed_are_named_with_their_file(copy: Path, text: str) -> None:
    (copy / "generation_config.json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match=r"generation_config\.json"):
        load_defaults(copy)
