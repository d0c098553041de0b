from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pgmoe.errors import CheckpointError, CorruptCheckpoint, UnsupportedModel
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.loader import load_model, read_plan
from pgmoe.models.quantised_tensor import QuantisedTensor, join
from tests.conftest import QuantisedCheckpoints, TinyCheckpoints
from tests.support.damage import edit_config, edit_weights
from tests.support.quantised import FP8_ENTRY, FP8_KINDS, save_dequantised

Weights = dict[str, Tensor]
CPU = torch.device("cpu")
FP8_EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"
FP8_SCALES = f"{FP8_EXPERT}_scale_inv"
FP8_DENSE = "model.layers.0.self_attn.o_proj.weight"
MXFP4 = "model.layers.1.mlp.experts.down_proj"


@pytest.mark.parametrize("kind", FP8_KINDS)
def test_quantised_weights_are_read_as_transformers_dequantises_them(
    quantised: QuantisedCheckpoints, tmp_path: Path, kind: str
) -> None:
    folder = quantised(kind)
    expected = Checkpoint.open(str(save_dequantised(folder, tmp_path / "plain"))).tensors
    weights = join(Checkpoint.open(str(folder)))
    assert weights.keys() == expected.keys()
    assert any(isinstance(weight, QuantisedTensor) for weight in weights.values())
    for key, weight in weights.items():
        assert weight.shape == expected[key].shape
        assert torch.equal(weight[...].to(expected[key].dtype), expected[key][...])


@pytest.mark.parametrize("kind", FP8_KINDS)
def test_the_dense_part_is_loaded_in_the_computed_type(
    quantised: QuantisedCheckpoints, tmp_path: Path, kind: str
) -> None:
    plan = read_plan(str(quantised(kind)))
    loaded = load_model(plan, dtype=torch.bfloat16, device=CPU)
    plain = read_plan(str(save_dequantised(quantised(kind), tmp_path / "plain")))
    expected = load_model(plain, dtype=torch.bfloat16, device=CPU)
    assert plan.dense_bytes == plain.dense_bytes
    assert loaded.loaded_bytes == expected.loaded_bytes == plan.loaded_bytes(CPU)
    found = loaded.model.state_dict()
    for key, tensor in expected.model.state_dict().items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)
    loaded.close()
    expected.close()


def test_a_stored_matrix_of_several_experts_is_read_whole(quantised: QuantisedCheckpoints) -> None:
    weight = join(Checkpoint.open(str(quantised("mxfp4 gpt_oss"))))[MXFP4]
    assert isinstance(weight, QuantisedTensor)
    whole = weight[...]
    assert tuple(whole.shape) == weight.shape == (8, 64, 64)
    for expert in range(8):
        assert torch.equal(weight.part(expert)[...], whole[expert])
    with pytest.raises(IndexError, match="read whole"):
        weight[0]


def test_a_plain_checkpoint_is_left_as_it_is(tiny: TinyCheckpoints) -> None:
    checkpoint = Checkpoint.open(str(tiny("mixtral")))
    assert join(checkpoint) == checkpoint.tensors


def lose(key: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(key)


def change(key: str, by: Callable[[Tensor], Tensor]) -> Callable[[Weights], object]:
    return lambda weights: weights.update({key: by(weights[key]).contiguous()})


def lose_pair(weights: Weights) -> None:
    del weights[FP8_EXPERT], weights[FP8_SCALES]


def make_plain(weights: Weights) -> None:
    del weights[FP8_SCALES]
    weights[FP8_EXPERT] = weights[FP8_EXPERT].bfloat16()


def lose_rows(weights: Weights) -> None:
    change(FP8_EXPERT, lambda v: v[0])(weights)
    change(FP8_SCALES, lambda s: s[0])(weights)


Damage = tuple[Callable[[Weights], object], type[CheckpointError], str]
FP8_DAMAGE: dict[str, Damage] = {
    "an expert's scales lost": (
        lose(FP8_SCALES),
        CorruptCheckpoint,
        f"{FP8_EXPERT} is quantised, but there is no {FP8_SCALES}",
    ),
    "dense scales lost": (
        lose(f"{FP8_DENSE}_scale_inv"),
        CorruptCheckpoint,
        f"{FP8_DENSE} is quantised, but there is no {FP8_DENSE}_scale_inv",
    ),
    "values lost": (
        lose(FP8_EXPERT),
        CorruptCheckpoint,
        f"{FP8_SCALES} is quantised, but there is no {FP8_EXPERT} to",
    ),
    "an expert lost": (lose_pair, CorruptCheckpoint, "15 of 16 experts have .*up_proj.weight"),
    "scales of another shape": (
        change(FP8_SCALES, lambda s: s[:, :1]),
        CorruptCheckpoint,
        rf"{FP8_SCALES} is \(1, 1\); .* needs \(1, 2\)",
    ),
    "scales without a shape": (
        change(FP8_SCALES, lambda s: s.sum()),
        CorruptCheckpoint,
        rf"{FP8_SCALES} is \(\);",
    ),
    "values without rows": (lose_rows, CorruptCheckpoint, rf"{FP8_EXPERT} of \(256,\)"),
    "integer scales": (
        change(FP8_SCALES, lambda s: s.to(torch.int32)),
        CorruptCheckpoint,
        f"{FP8_SCALES} is of type int32; fp8_block has .*float32",
    ),
    "values of another type": (
        change(FP8_EXPERT, lambda v: v.to(torch.int8)),
        CorruptCheckpoint,
        f"{FP8_EXPERT} is of type int8; fp8_block has float8_e4m3fn",
    ),
    "one expert's scales of another type": (
        change(FP8_SCALES, lambda s: s.bfloat16()),
        UnsupportedModel,
        "up_scale of model.layers.1.mlp.experts stored as bfloat16, float32",
    ),
    "one expert not quantised": (
        make_plain,
        UnsupportedModel,
        "model.layers.1.mlp.experts is quantised in part",
    ),
    "values of another size": (
        change(FP8_EXPERT, lambda v: v[:100]),
        CorruptCheckpoint,
        r"up_proj.weight are \[\(128, 256\), \(100, 256\)\], .* \(256, 256\)",
    ),
}
MXFP4_DAMAGE: dict[str, Damage] = {
    "scales lost": (
        lose(f"{MXFP4}_scales"),
        CorruptCheckpoint,
        f"{MXFP4}_blocks is quantised, but there is no {MXFP4}_scales",
    ),
    "blocks lost": (
        lose(f"{MXFP4}_blocks"),
        CorruptCheckpoint,
        f"{MXFP4}_scales is quantised, but there is no {MXFP4}_blocks",
    ),
    "scales of another shape": (
        change(f"{MXFP4}_scales", lambda s: s[:, :60]),
        CorruptCheckpoint,
        rf"{MXFP4}_scales is \(8, 60, 2\); .* needs \(8, 64, 2\)",
    ),
    "blocks of another size": (
        change(f"{MXFP4}_blocks", lambda b: b[..., :8]),
        CorruptCheckpoint,
        rf"{MXFP4} is \(8, 64, 32\), the config asks for \(8, 64, 64\)",
    ),
    "biases of another type": (
        change(f"{MXFP4}_bias", lambda b: b.to(torch.int8)),
        UnsupportedModel,
        "down_bias of .* stored as int8",
    ),
}


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("fp8 qwen3", d) for d in FP8_DAMAGE.values()] + [("mxfp4 gpt_oss", d) for d in MXFP4_DAMAGE.values()],
    ids=[f"fp8, {name}" for name in FP8_DAMAGE] + [f"mxfp4, {name}" for name in MXFP4_DAMAGE],
)
def test_what_does_not_go_together_is_named(
    quantised: QuantisedCheckpoints, tmp_path: Path, kind: str, damage: Damage
) -> None:
    change, error, said = damage
    folder = shutil.copytree(quantised(kind), tmp_path / "model")
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=said) as found:
        read_plan(str(folder))
    assert type(found.value) is error
    assert str(folder) in str(found.value)


def test_a_quantised_embedding_is_loaded(quantised: QuantisedCheckpoints, tmp_path: Path) -> None:
    """It cannot stay in its file, where a row is not yet what a token needs."""
    folder = shutil.copytree(quantised("fp8 qwen3"), tmp_path / "model")
    key = "model.embed_tokens.weight"

    def quantise(weights: Weights) -> None:
        weights[key] = weights[key].to(torch.float8_e4m3fn)
        weights[f"{key}_scale_inv"] = torch.full((2, 2), 0.75)

    edit_weights(folder, quantise)
    plan = read_plan(str(folder))
    assert plan.embedding is None
    loaded = load_model(plan, dtype=torch.bfloat16, device=CPU)
    stored = plan.checkpoint.tensors[key][...]
    assert torch.equal(loaded.model.get_input_embeddings().weight, (stored.float() * 0.75).bfloat16())


def test_a_checkpoint_that_only_says_that_it_is_quantised_is_served_as_it_is(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("qwen3_moe", torch.bfloat16), tmp_path / "model")
    edit_config(folder, quantization_config=FP8_ENTRY)
    layers = read_plan(str(folder)).layers
    assert {layer.encoding for layer in layers} == {"plain"}
    assert {layer.dtype for layer in layers} == {torch.bfloat16}
