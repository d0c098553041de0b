from __future__ import annotations

import pytest
import transformers
from transformers import MixtralConfig

from pgmoe.models import own_families
from pgmoe.models.own_families import OwnFamily, own_model_class, register
from pgmoe.models.smallthinker import SmallThinkerForCausalLM, stored_experts
from pgmoe.models.smallthinker_config import SmallThinkerConfig


def test_transformers_finds_our_classes_however_often_they_are_made_known() -> None:
    for _ in range(2):
        register()
        assert transformers.CONFIG_MAPPING["smallthinker"] is SmallThinkerConfig
        assert transformers.MODEL_FOR_CAUSAL_LM_MAPPING[SmallThinkerConfig] is SmallThinkerForCausalLM
    assert own_model_class("SmallThinkerForCausalLM") is SmallThinkerForCausalLM
    assert own_model_class("MixtralForCausalLM") is None


def test_a_family_that_transformers_has_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class OurMixtralConfig(MixtralConfig):
        pass

    ours = OwnFamily(OurMixtralConfig, SmallThinkerForCausalLM, stored_experts)
    monkeypatch.setattr(own_families, "OWN_FAMILIES", (ours,))
    register()
    assert transformers.CONFIG_MAPPING["mixtral"] is MixtralConfig
