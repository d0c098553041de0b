"""A dense model to start from: an ordinary checkpoint or a GGUF file, read whole and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from pgmoe.errors import CheckpointError, CorruptCheckpoint, UnsupportedModel
from pgmoe.training.gguf_file import GgufFile

ACCEPTED = ("llama", "mistral")
"""Model types whose layers equal Mixtral's in all but the feed-forward part."""


@dataclass(frozen=True)
class DenseModel:
    """A checked dense model of an accepted type; weights by their checkpoint names, in one dtype."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    generation_config: GenerationConfig
    weights: dict[str, torch.Tensor]
    dtype: torch.dtype


def read_dense_model(source: str, dtype: torch.dtype | None = None) -> DenseModel:
    """Read `source`: a folder or hub id in safetensors, a .gguf file, or a folder with one.

    `dtype` None keeps the stored type (bfloat16 for GGUF, whose weights are quantised). Raises
    UnsupportedModel for a model that Mixtral's architecture cannot express, CorruptCheckpoint for a
    damaged one and CheckpointError where there is none.
    """
    gguf = _find_gguf(source)
    where = _where(source, gguf)
    if gguf is not None:
        _check_gguf(gguf)
    with _mapped_errors(source, UnsupportedModel):
        config = AutoConfig.from_pretrained(**where, trust_remote_code=False)
    _check_config(source, config)
    with _mapped_errors(f"the tokenizer of {source}", CheckpointError):
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    if gguf is not None:
        gguf.mend_tokenizer(tokenizer)
    model = _load(source, where, gguf, dtype)
    return DenseModel(config, tokenizer, model.generation_config, model.state_dict(), model.dtype)


def _find_gguf(source: str) -> GgufFile | None:
    """The GGUF file that `source` names or holds; None for an ordinary checkpoint or a hub id."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(f"{source} is a file; name a model folder, a hub id or a .gguf file")
        return GgufFile.open(path)
    if not path.is_dir():
        if source.startswith(("/", ".", "~")):
            raise CheckpointError(f"{source} does not exist; name a model folder, a hub id or a .gguf file")
        return None
    if (path / "config.json").is_file():
        return None
    found = sorted(path.glob("*.gguf"))
    if not found:
        raise CheckpointError(
            f"{source} holds neither config.json nor a .gguf file, so it is no model folder"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{source} holds {len(found)} GGUF files ({names}); name one of them")
    return GgufFile.open(found[0])


def _where(source: str, gguf: GgufFile | None) -> dict[str, str]:
    """Arguments of transformers' `from_pretrained` that say where the model is."""
    if gguf is not None:
        return {"pretrained_model_name_or_path": str(gguf.path.parent), "gguf_file": gguf.path.name}
    path = Path(source).expanduser()
    return {"pretrained_model_name_or_path": str(path) if path.is_dir() else source}


def _check_gguf(gguf: GgufFile) -> None:
    if gguf.num_experts:
        raise UnsupportedModel(f"{gguf.path} has {gguf.num_experts} experts already; name a dense model")
    if gguf.architecture not in ACCEPTED:
        raise UnsupportedModel(_not_accepted(str(gguf.path), gguf.architecture))


def _check_config(source: str, config: PretrainedConfig) -> None:
    """Raise UnsupportedModel unless Mixtral's architecture can express this one exactly."""
    if config.model_type not in ACCEPTED:
        raise UnsupportedModel(_not_accepted(source, config.model_type))
    biased = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]
    if biased:
        raise UnsupportedModel(f"{source} has biases ({', '.join(biased)}), and Mixtral has none")
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel(f"{source} is quantised; upcycle the unquantised checkpoint")


def _not_accepted(source: str, model_type: str) -> str:
    return (
        f"{source} is a {model_type} model; upcycling takes dense models of type {' or '.join(ACCEPTED)}, "
        "whose layers equal Mixtral's but for the experts"
    )


def _load(source: str, where: dict[str, str], gguf: GgufFile | None, dtype: torch.dtype | None) -> Any:
    options: dict[str, Any] = {"use_safetensors": True, "dtype": dtype or "auto"}
    if gguf is not None:
        options = {"dtype": dtype or torch.bfloat16}
        if hasattr(transformers, "GgufConfig"):  # newer transformers may otherwise keep packed blocks
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _mapped_errors(source, CorruptCheckpoint):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **where,
            **options,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, report = loaded
    for fault, text in (
        ("missing_keys", "lacks weights"),
        ("mismatched_keys", "has weights of the wrong shape"),
        ("unexpected_keys", "has weights that its architecture has no place for"),
    ):
        names = sorted(key if isinstance(key, str) else key[0] for key in report[fault])
        if names:
            raise CorruptCheckpoint(f"{source} {text}: {', '.join(names[:3])} ({len(names)} in all)")
    return model


@contextmanager
def _mapped_errors(what: str, kind: type[CheckpointError]) -> Iterator[None]:
    """Raise what transformers raises for unreadable models as `kind`; UnsupportedModel for one with code."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise UnsupportedModel(
                f"{what} needs code of its own, and code from a checkpoint is never run; "
                "name a model of a type that transformers has itself"
            ) from error
        raise kind(f"cannot read {what}: {error}") from error
