from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pgmoe.config import EngineConfig
from pgmoe.errors import ConfigError

# Each option is a promise to users: adding, renaming or changing one is a decision, taken here too.
OPTIONS = {
    "served_model_name": None,
    "device": "auto",
    "dtype": "auto",
    "device_memory": "100%",
    "kv_memory": "auto",
    "kv_swap_memory": 0,
    "host_memory": "auto",
    "pack": "off",
    "pack_folder": "~/.cache/pgmoe/packs",
    "verify_pack": True,
    "policy": "prospect",
    "gating": "auto",
    "whole_layers": "off",
    "gating_trace": None,
    "emulated_link": None,
    "emulated_latency_s": 1e-5,
    "direct_io": True,
    "num_readers": 2,
    "num_threads": None,
    "max_model_len": None,
    "max_running": 32,
    "max_waiting": 64,
    "max_passed_over": 32,
    "admission": "fcfs",
    "batch_invariant": False,
    "prefix_cache": True,
    "prefill_chunk": "auto",
    "max_inter_token_s": None,
}
AT_THE_LIMIT = {
    "emulated_latency_s": (0,),
    "num_readers": (1, 64),
    "num_threads": (1,),
    "max_model_len": (2,),
    "max_running": (1,),
    "max_waiting": (0,),
    "max_passed_over": (0,),
    "prefill_chunk": (1,),
    "max_inter_token_s": (1e-9,),
}
BEYOND = {
    "emulated_latency_s": (-1e-6,),
    "num_readers": (0, 65),
    "num_threads": (0,),
    "max_model_len": (1,),
    "max_running": (0,),
    "max_waiting": (-1,),
    "max_passed_over": (-1,),
    "prefill_chunk": (0,),
    "max_inter_token_s": (0,),
    "dtype": ("int8",),
    "pack": ("on", True),
    "verify_pack": ("perhaps",),
    "direct_io": ("perhaps",),
    "device_memory": (None, [1]),
    "kv_memory": (None, [1]),
    "kv_swap_memory": (None, [1]),
    "policy": (None,),
    "admission": ("random", None),
    "whole_layers": ("on", True),
}


def test_these_are_all_the_options_and_their_defaults() -> None:
    assert EngineConfig(model="m").model_dump() == {"model": "m", **OPTIONS}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in AT_THE_LIMIT.items() for v in values])
def test_a_value_at_its_limit_is_taken(option: str, value: Any) -> None:
    assert getattr(EngineConfig.parse({"model": "m", option: value}), option) == value


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in BEYOND.items() for v in values])
def test_a_value_beyond_its_limit_is_an_error_naming_option_and_value(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option) as caught:
        EngineConfig.parse({"model": "m", option: value})
    assert f"(got {value!r})" in str(caught.value)


def test_an_unknown_option_is_an_error_naming_it() -> None:
    with pytest.raises(ConfigError, match=r"max_runing: there is no such option; .*max_running.* \(got 8\)"):
        EngineConfig.parse({"model": "m", "max_runing": 8})


def test_a_missing_model_is_an_error_naming_it() -> None:
    with pytest.raises(ConfigError, match="model: Field required"):
        EngineConfig.parse({})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"num_readers: .*; max_running: "):
        EngineConfig.parse({"model": "m", "num_readers": 0, "max_running": 0})


def test_a_config_cannot_be_changed() -> None:
    config = EngineConfig(model="m")
    with pytest.raises(ValidationError, match="frozen"):
        config.max_running = 9


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/models/tiny-moe", "tiny-moe"),
        ("~/tiny-moe/", "tiny-moe"),
        ("org/tiny-moe", "tiny-moe"),
        ("tiny", "tiny"),
    ],
)
def test_the_models_name_is_the_last_part_of_where_it_comes_from(model: str, name: str) -> None:
    assert EngineConfig(model=model).name == name
    assert EngineConfig(model=model, served_model_name="other").name == "other"
