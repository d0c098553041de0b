from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgmoe.errors import ConfigError
from recipes import default_model
from recipes.default_model import Budget, build, note
from recipes.document import Document
from recipes.lm_text import HELD_OUT, LmText


@pytest.fixture
def data(tmp_path: Path) -> Path:
    LmText((Document("One.", "a"),), (Document("Two.", "a"),)).save(tmp_path / "data")
    return tmp_path / "data"


def test_the_same_plan_goes_on_in_its_folder(data: Path, tmp_path: Path) -> None:
    for _ in range(2):
        note(tmp_path / "work", data, Budget(steps=3))


def test_models_of_an_unknown_plan_are_not_taken_for_ours(data: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "equal").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds equal of an unknown plan; remove"):
        note(tmp_path / "work", data, Budget(steps=3))


def test_another_budget_or_other_data_are_refused_before_anything_is_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "build_default_model", None)
    work = tmp_path / "work"
    note(work, data, Budget(steps=3))
    with pytest.raises(ConfigError, match=r"steps was 3, is 4; .* name another folder"):
        build(work, tmp_path / "out", data, Budget(steps=4))
    LmText((Document("One.", "a"),), (Document("Three.", "a"),)).save(data)
    with pytest.raises(ConfigError, match=re.escape(f"{HELD_OUT} was ")):
        build(work, tmp_path / "out", data, Budget(steps=3))
