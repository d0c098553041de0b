from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pgmoe.cli.main import main
from pgmoe.engine.llm import LLM
from pgmoe.models.smallthinker_config import SmallThinkerConfig
from pgmoe.request import SamplingParams
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import tiny_config, tiny_model

MOON = "How far is the moon?"
CHAT = f"<|bos|><|im_start|>user\n{MOON}<|im_end|>\n<|im_start|>assistant\n"
GREEDY = SamplingParams(max_tokens=8, temperature=0)


@dataclass(frozen=True)
class Ended:
    status: object
    stdout: str
    stderr: str


Generate = Callable[..., Ended]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """`generate(model, *options, stdin)`: run the command line in this process."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")

    def run(model: Path | str, *options: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["pgmoe", "generate", str(model), "--device", "cpu", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def expected(tiny_chat: Path) -> dict[str, str]:
    """The answers to a chat and to the bare text."""
    with LLM(tiny_chat, device="cpu") as llm:
        (chat,) = llm.generate(CHAT, GREEDY, add_special_tokens=False)
        (raw,) = llm.generate(MOON, GREEDY)
    return {"chat": chat.text, "raw": raw.text}


def test_the_answer_goes_to_stdout_and_the_figures_to_stderr(
    generate: Generate, tiny_chat: Path, expected: dict[str, str]
) -> None:
    ended = generate(tiny_chat, "--prompt", MOON, "--max-tokens", "8", "--device-memory", "50%")
    assert (ended.status, ended.stdout) == (0, expected["chat"] + "\n")
    figures = (
        r"8 tokens \(length\), \d+\.\d tokens/s, first after \d+\.\d\d s, loaded in \d+\.\d s; "
        r"experts: \d+\.\d% hits, \d+\.\d [KM]iB read, \d+\.\d\d s waited"
    )
    assert re.fullmatch(figures, ended.stderr.splitlines()[-1])


def test_raw_goes_on_from_the_text_without_the_chat_template(
    generate: Generate, tiny_chat: Path, expected: dict[str, str]
) -> None:
    ended = generate(tiny_chat, "--raw", "--prompt", MOON, "--max-tokens", "8")
    assert (ended.status, ended.stdout) == (0, expected["raw"] + "\n")


def test_json_is_one_object_with_answer_cost_and_speed(
    generate: Generate, tiny_chat: Path, expected: dict[str, str]
) -> None:
    ended = generate(tiny_chat, "--json", "--prompt", MOON, "--max-tokens", "8")
    result = json.loads(ended.stdout)
    assert (result["text"], result["finish_reason"]) == (expected["chat"], "length")
    with LLM(tiny_chat, device="cpu") as llm:
        assert llm.tokenizer is not None
        num_prompt_tokens = len(llm.tokenizer.encode(CHAT, add_special_tokens=False))
    assert result["usage"]["prompt_tokens"] == num_prompt_tokens  # the bos token once
    assert result["usage"]["completion_tokens"] == len(result["token_ids"]) == 8
    assert min(result["load_s"], result["first_token_s"], result["tokens_per_s"]) > 0


def test_the_prompt_may_come_from_stdin(
    generate: Generate, tiny_chat: Path, expected: dict[str, str]
) -> None:
    ended = generate(tiny_chat, "--prompt", "-", "--max-tokens", "8", stdin=MOON.encode())
    assert (ended.status, ended.stdout) == (0, expected["chat"] + "\n")


def test_sampling_options_reach_the_sampler(generate: Generate, tiny_chat: Path) -> None:
    sampled = ("--prompt", MOON, "--max-tokens", "8", "--temperature", "1", "--top-p", "0.9", "--top-k", "40")
    one, same, other = (generate(tiny_chat, *sampled, "--seed", s).stdout for s in ("1", "1", "2"))
    assert one == same != other
    stopped = generate(tiny_chat, *sampled, "--seed", "1", "--stop", "never", "--stop", one[3:5])
    assert stopped.stdout == one[: one.index(one[3:5])] + "\n"
    assert "(stop)" in stopped.stderr


def test_the_answer_can_be_held_to_a_schema_or_an_expression(
    generate: Generate, tiny_chat: Path, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [{"far": true}, {"far": false}]}')
    held = generate(tiny_chat, "--prompt", MOON, "--json-schema", str(schema), "--max-tokens", "200")
    assert (held.status, json.loads(held.stdout)["far"] in (True, False)) == (0, True)
    matched = generate(tiny_chat, "--prompt", MOON, "--regex", "yes|no")
    assert matched.stdout in ("yes\n", "no\n")
    assert "(stop)" in matched.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json-schema", "nowhere.json"], "error: nowhere.json: the schema cannot be read"),
        (["--json-schema", __file__], "error: response_format cannot be followed: the schema is not JSON"),
        (["--json-schema", __file__, "--regex", "x"], "error: give exactly one of json_schema, regex"),
        (["--regex", "("], "error: response_format cannot be followed"),
    ],
    ids=["no-file", "no-json", "both", "expression"],
)
def test_a_form_that_cannot_be_followed_is_a_mistake(
    generate: Generate, tiny_chat: Path, options: list[str], message: str
) -> None:
    ended = generate(tiny_chat, "--prompt", MOON, *options)
    assert (ended.status, ended.stdout) == (2, "")
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("options", "stdin", "message"),
    [
        (
            ["--prompt", MOON, "--device-memory", "1KiB"],
            b"",
            "error: device_memory '1KiB' has room for 0 experts",
        ),
        (["--prompt", MOON, "--device-memory", "lots"], b"", "error: 'lots' is not a byte count"),
        (
            ["--prompt", MOON, "--temperature", "nan"],
            b"",
            "error: temperature must be a finite number, got nan",
        ),
        (["--prompt", MOON, "--max-tokens", "600"], b"", "error: 21 prompt tokens and max_tokens 600 exceed"),
        (["--prompt", "", "--raw"], b"", "error: the prompt is empty"),
        (["--prompt", "half \ud83d"], b"", "error: the prompt is not valid Unicode"),
        (["--prompt", "-"], b"\xff", "error: standard input is not text in utf-8: "),
        (["--prompt", MOON, "--device", "abacus"], b"", "error: device 'abacus': "),
    ],
    ids=["budget", "no-number", "temperature", "long", "empty", "surrogate", "stdin", "device"],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(
    generate: Generate, tiny_chat: Path, options: list[str], stdin: bytes, message: str
) -> None:
    ended = generate(tiny_chat, *options, stdin=stdin)
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1].startswith(message)


@pytest.mark.parametrize("options", [[], ["--prompt", MOON, "--max-tokens", "0"]])
def test_a_wrong_call_is_explained_with_status_2(
    generate: Generate, tiny_chat: Path, options: list[str]
) -> None:
    ended = generate(tiny_chat, *options)
    assert ended.status == 2
    assert "Usage" in ended.stderr


@pytest.mark.parametrize("raw", [[], ["--raw"]])
def test_without_a_number_of_tokens_the_answer_is_what_fits(
    generate: Generate, tiny_chat: Path, raw: list[str]
) -> None:
    prompt = "moon " * 200
    with LLM(tiny_chat, device="cpu") as llm:
        limit = llm.info.max_model_len
    ended = generate(tiny_chat, *raw, "--json", "--prompt", prompt)
    assert ended.status == 0, ended.stderr
    usage = json.loads(ended.stdout)["usage"]
    assert limit - 256 < usage["prompt_tokens"] < limit
    assert usage["prompt_tokens"] + usage["completion_tokens"] <= limit
    short = json.loads(generate(tiny_chat, *raw, "--json", "--prompt", MOON).stdout)
    assert short["usage"]["completion_tokens"] <= 256


def test_a_model_without_tokenizer_is_refused(generate: Generate, tiny: TinyCheckpoints) -> None:
    ended = generate(tiny("mixtral"), "--prompt", MOON)
    assert ended.status == 2
    assert "has no tokenizer" in ended.stderr.splitlines()[-1]


def test_a_chat_template_that_refuses_is_quoted_with_a_way_out(
    generate: Generate, tiny_chat: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_chat, tmp_path / "strict"))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('begin with a system turn') }}")
    ended = generate(folder, "--prompt", MOON)
    assert ended.status == 2
    refusal = "error: the chat template refuses the messages (begin with a system turn); try --raw"
    assert ended.stderr.splitlines()[-1] == refusal


def test_a_reader_that_has_enough_ends_the_command_without_a_traceback(tiny_chat: Path) -> None:
    command = "import sys; from pgmoe.cli.main import main; sys.exit(main())"
    arguments = ["generate", str(tiny_chat), "--prompt", MOON, "--max-tokens", "400"]
    with subprocess.Popen(
        [sys.executable, "-c", command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5)
        process.stdout.close()
        complaint = process.stderr.read().decode()
    assert process.returncode == 1
    assert "tokens/s" not in complaint  # it did not go on to the end
    assert "Traceback" not in complaint
    assert "BrokenPipe" not in complaint


def test_a_model_that_selects_its_experts_ahead_is_served_without_an_option(
    generate: Generate, tiny_chat: Path, tmp_path: Path
) -> None:
    vocab_size = json.loads((tiny_chat / "config.json").read_text())["vocab_size"]
    config = SmallThinkerConfig(**{**tiny_config("smallthinker").to_dict(), "vocab_size": vocab_size})
    tiny_model(config, torch.float32).save_pretrained(tmp_path)
    for path in [*tiny_chat.glob("tokenizer*"), *tiny_chat.glob("*.jinja")]:
        shutil.copy(path, tmp_path)
    answers = [
        generate(tmp_path, "--prompt", MOON, "--max-tokens", "8", "--device-memory", "50%", *options)
        for options in ((), ("--gating", "on_demand"))
    ]
    assert [one.status for one in answers] == [0, 0]
    assert answers[0].stdout == answers[1].stdout
