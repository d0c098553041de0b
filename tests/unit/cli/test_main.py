from __future__ import annotations

import subprocess
import sys

import pytest

from pgmoe.cli.main import main


def test_a_users_mistake_is_one_line_on_stderr_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pgmoe", "upcycle", "/no/such/model", "/no/such/out"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")
    with pytest.raises(SystemExit) as status:
        main()
    assert status.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: /no/such/model does not exist")


def test_the_command_line_starts_without_heavy_libraries() -> None:
    code = "import sys, pgmoe.cli.main; print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
