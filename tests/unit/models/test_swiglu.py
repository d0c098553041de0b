"""Which families' experts are told to be SwiGLUs, by their real classes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.activations import ACT2FN

from pgmoe.models.loader import read_plan
from pgmoe.models.socket import _is_swiglu
from tests.conftest import TinyCheckpoints


@pytest.mark.parametrize(
    ("family", "told"),
    [("mixtral", True), ("olmoe", True), ("qwen2_moe", True), ("gpt_oss", False), ("smallthinker", False)],
)
def test_families_are_told_apart(tiny: TinyCheckpoints, family: str, told: bool) -> None:
    assert {layer.ffn.swiglu for layer in read_plan(str(tiny(family))).layers} == {told}


@pytest.mark.parametrize("limit", [7.0, 1000.0])
def test_a_gate_of_its_own_is_found_out(limit: float) -> None:
    def clamped(u: torch.Tensor) -> torch.Tensor:
        gate, up = u.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate.clamp(max=limit)) * up

    def interleaved(u: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(u[..., ::2]) * u[..., 1::2]

    for gate in (clamped, interleaved):
        module = SimpleNamespace(has_gate=True, act_fn=ACT2FN["silu"], _apply_gate=gate)
        assert not _is_swiglu(module)  # type: ignore[arg-type]
