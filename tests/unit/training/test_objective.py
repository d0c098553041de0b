from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pgmoe.models.pre_gate import pre_gate
from pgmoe.training.objective import Objective, auxiliary, num_labelled
from pgmoe.training.pregate import pregate
from pgmoe.training.trainable import load_whole
from tests.support.finetuning import save_trainable, trainable_model

IDS = torch.arange(4, 64).view(2, 30) * 7 % 500
LABELS = IDS.masked_fill(torch.arange(30) % 3 == 0, -100)
FAMILIES = ("mixtral", "olmoe", "qwen3_moe", "switch_transformers")


def output_of(model: PreTrainedModel, **given: Any) -> Any:
    """The model's own loss is in it, and router logits were asked for."""
    torch.manual_seed(0)
    return model(input_ids=IDS, labels=LABELS, output_router_logits=True, **given)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_loss_is_the_familys_own_with_its_auxiliary_terms(family: str) -> None:
    model = trainable_model(family)
    shift = not model.config.is_encoder_decoder
    output, objective = output_of(model), Objective(shift=shift)
    aux, count = auxiliary(model, output), num_labelled(LABELS, shift=shift)
    loss = objective.of(output.logits, LABELS, count, aux=aux)
    assert float(loss.total) == pytest.approx(float(output.loss), rel=1e-5)
    assert float(loss.aux) > 1e-4
    assert float(loss.ce) == pytest.approx(float(loss.total - loss.aux), rel=1e-5)


@torch.no_grad()
def test_switchs_z_loss_is_among_the_terms() -> None:
    model = trainable_model("switch_transformers")
    output = output_of(model)
    before = float(auxiliary(model, output))
    model.config.router_z_loss_coef *= 3
    z_loss = float(output.encoder_z_loss + output.decoder_z_loss)
    assert float(auxiliary(model, output)) - before == pytest.approx(0.002 * z_loss, rel=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "switch_transformers"])
def test_a_pre_gated_models_routers_are_heard_of_and_get_gradients(family: str, tmp_path: Path) -> None:
    source = save_trainable(family, tmp_path / "source")
    model = load_whole(pregate(str(source), tmp_path / "ahead").folder, None)
    output = output_of(model)
    auxiliary(model, output).backward()
    routers = {
        name: p.grad for name, p in model.named_parameters() if "gate.weight" in name or "router" in name
    }
    assert len(routers) >= 3
    for name, gradient in routers.items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name


def test_router_logits_of_a_pre_gated_block_are_those_that_select_its_experts(tmp_path: Path) -> None:
    source = save_trainable("mixtral", tmp_path / "source")
    model = load_whole(pregate(str(source), tmp_path / "ahead").folder, None)
    chosen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda _, args: chosen.append(args[1]))
    logits = output_of(model).router_logits
    assert len(logits) == len(chosen) == 3
    for given, ids in zip(logits, chosen, strict=True):
        assert torch.equal(given.flatten(0, -2).topk(2).indices, ids)


def test_a_pre_gated_model_has_the_same_gradients_when_activations_are_computed_again(tmp_path: Path) -> None:
    source = save_trainable("mixtral", tmp_path / "source")
    folder = pregate(str(source), tmp_path / "ahead").folder
    gradients = []
    for again in (False, True):
        model = load_whole(folder, None).train()
        if again:
            model.activation_checkpointing_enable({"use_reentrant": False})
        output_of(model, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_distillation_is_the_weighted_sum_of_cross_entropy_and_divergence() -> None:
    student, teacher = torch.randn(2, 30, 500), torch.randn(2, 30, 500)
    count, aux = num_labelled(LABELS, shift=True), torch.tensor(0.25)
    objective = Objective(shift=True, distil_weight=0.3, temperature=2.0)
    loss = objective.of(student, LABELS, count, aux=aux, teacher_BSV=teacher)
    scored = LABELS[:, 1:] != -100
    p, q = ((x[:, :-1][scored] / 2.0).softmax(-1) for x in (teacher, student))
    kl = float((p * (p.log() - q.log())).sum(-1).mean())
    assert loss.kl is not None
    assert float(loss.kl) == pytest.approx(kl, rel=1e-4)
    ce = float(torch.nn.functional.cross_entropy(student[:, :-1][scored], LABELS[:, 1:][scored]))
    assert float(loss.ce) == pytest.approx(ce, rel=1e-5)
    assert float(loss.total) == pytest.approx(0.7 * ce + 0.3 * 4 * kl + 0.25, rel=1e-5)


def test_a_teacher_that_agrees_costs_nothing_whatever_padding_its_vocabulary_has() -> None:
    student = torch.randn(2, 30, 500)
    teacher = torch.cat([student, torch.full((2, 30, 12), 5.0)], -1)
    objective = Objective(shift=True, distil_weight=1.0)
    loss = objective.of(student, LABELS, 1, aux=torch.tensor(0.0), teacher_BSV=teacher)
    assert math.isclose(float(loss.total), 0.0, abs_tol=1e-3)


def test_an_ordinary_model_is_left_as_it_is() -> None:
    assert pre_gate(trainable_model("mixtral")) is None
