"""How a model's makers would have it sampled, for callers that do not say."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig

from pgmoe.errors import CorruptCheckpoint
from pgmoe.request import SamplingParams

SamplingDefaults = dict[str, float | int]
"""Fields of SamplingParams."""
NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def load_defaults(folder: Path) -> SamplingDefaults:
    """The sampling parameters in a checkpoint's generation_config.json; none where it has no such file.

    `do_sample: false` is greedy: temperature 0.

    Raises CorruptCheckpoint where the file is damaged or holds values that no request may have.
    """
    if not (folder / "generation_config.json").exists():
        return {}
    try:
        stored = GenerationConfig.from_pretrained(folder)
        found = {name: getattr(stored, name) for name in NAMES}
        defaults = {name: value for name, value in found.items() if value is not None}
        if stored.do_sample is False:  # said, not just left out
            defaults["temperature"] = 0.0
        SamplingParams(**defaults)
    except (OSError, ValueError) as error:
        raise CorruptCheckpoint(f"{folder}/generation_config.json: {error}") from error
    return defaults
