"""Files of the model that are cut while the server runs: an error by name, and then it serves on."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest
from openai import InternalServerError, OpenAI

from deployments.client import PgmoeClient
from pgmoe.engine.llm import LLM
from pgmoe.errors import PgmoeError
from pgmoe.models.loader import read_plan
from pgmoe.request import SamplingParams
from tests.serve.running_server import MODEL, PATIENCE_S, Server
from tests.support.damage import Original

LONG = "The quick brown fox jumps over the lazy dog, and 1234567890 others do. " * 2
"""Needs more experts than there are slots."""
GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


def expert_files(model_folder: Path) -> list[Path]:
    """Those that the input embedding is not in."""
    plan = read_plan(str(model_folder))
    embedding = plan.checkpoint.tensors["model.embed_tokens.weight"].path
    paths = {e.path for layer in plan.layers for extents in layer.extents for e in extents}
    return sorted(Path(path) for path in paths - {embedding})


def test_experts_that_are_lost_while_serving_end_requests_by_name_and_back_again_they_serve(
    server: Server, openai: OpenAI, client: PgmoeClient, offline: LLM, model_folder: Path
) -> None:
    named = rf"expert \d of model\.layers\.\d\.mlp\.experts: {model_folder}/\S+ from byte \d+: the file "
    whole = [Original(path) for path in expert_files(model_folder)]
    assert whole
    for original in whole:
        os.truncate(original.path, 100)
    try:
        with pytest.raises(InternalServerError, match=named):
            openai.completions.create(model=MODEL, prompt=LONG, max_tokens=4, temperature=0)
        with pytest.raises(PgmoeError, match=named):
            client.generate(LONG, params=GREEDY)
        assert httpx.get(f"{server.url}/health", timeout=PATIENCE_S).is_success
    finally:
        for original in whole:
            original.put_back()
    (expected,) = offline.generate([LONG], GREEDY)
    assert client.generate(LONG, params=GREEDY).token_ids == expected.token_ids
