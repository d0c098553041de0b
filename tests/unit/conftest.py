from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import save_tiny_chat


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral in fp32 with tokenizer and chat template. Copy it before changing it."""
    return save_tiny_chat(tmp_path_factory.mktemp("tiny-chat") / "tiny-chat")
