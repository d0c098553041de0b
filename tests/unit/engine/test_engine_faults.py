"""What fails in a step ends whom it concerns, and nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pgmoe.engine.sampled_token import SampledToken
from pgmoe.engine.sequence import Sequence
from pgmoe.errors import (
    DeadlineExceeded,
    DeviceLost,
    ExpertReadError,
    GenerationFailed,
    NonFiniteLogits,
    WeightReadError,
)
from pgmoe.request import RequestOutput, SamplingParams
from tests.conftest import TinyCheckpoints
from tests.support.damage import Original, cut_embedding, cut_experts
from tests.support.stepping import LONG, PROMPT, add, load, run, whole


@pytest.mark.parametrize("direct_io", [True, False])
@pytest.mark.parametrize(
    ("cut_files", "kind"), [(cut_experts, ExpertReadError), (cut_embedding, WeightReadError)]
)
def test_a_file_cut_short_ends_the_request_that_needs_it_and_a_whole_one_heals(
    tiny: TinyCheckpoints,
    tmp_path: Path,
    cut_files: Callable[[Path], list[Path]],
    kind: type[Exception],
    direct_io: bool,
) -> None:
    model = tiny("mixtral", torch.float32, "200KB")  # embedding and experts in files of their own
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    before = [Original(path) for path in folder.glob("*.safetensors")]
    engine = load(folder, device_memory="10%", direct_io=direct_io, max_running=1)
    add(engine, "alone")
    expected = whole(run(engine)["alone"]).token_ids

    add(engine, "met")
    add(engine, "spared")
    told = run(engine, num_steps=2)
    cut = [str(path) for path in cut_files(folder)]
    (failed,) = engine.step()
    for file in before:
        file.put_back()
    told["spared"] = run(engine)["spared"]
    assert failed.request_id == "met"
    assert type(failed.error) is kind
    assert any(path in str(failed.error) for path in cut)
    assert whole(told["spared"]).token_ids == expected
    assert engine.stats.finished == {"length": 2, "error": 1}

    add(engine, "met")
    assert whole(run(engine)["met"]).token_ids == expected
    engine.close()


def test_a_model_that_computes_nan_ends_its_request_with_the_reason(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    engine = load(tiny("mixtral"))
    with torch.no_grad():
        engine.loaded.model.get_output_embeddings().weight[7] = float("nan")
    add(engine, "a")
    (output,) = run(engine)["a"]
    assert isinstance(output.error, NonFiniteLogits)
    assert engine.stats.finished == {"error": 1}
    engine.close()


def test_an_unforeseen_error_is_logged_and_told_in_our_own_words(
    tiny: TinyCheckpoints, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(tiny("mixtral"))
    embedding = engine.loaded.model.get_input_embeddings()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("/secret/path")

    hook = embedding.register_forward_pre_hook(fail)
    add(engine, "a")
    (output,) = run(engine)["a"]
    assert isinstance(output.error, GenerationFailed)
    assert str(output.error) == "the generation failed (ZeroDivisionError); the log has the details"
    assert isinstance(output.error.__cause__, ZeroDivisionError)
    assert "request a failed" in caplog.text
    assert "ZeroDivisionError: /secret/path" in caplog.text  # with the traceback
    hook.remove()
    caplog.clear()
    add(engine, "b", timeout_s=1e-9)
    assert isinstance(run(engine)["b"][0].error, DeadlineExceeded)
    assert not caplog.records  # the client's own doing
    engine.close()


def test_whose_part_of_a_step_fails_ends_and_the_others_go_on(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"), prefix_cache=False)
    add(engine, "alone", LONG)
    expected = whole(run(engine)["alone"]).token_ids
    embedding = engine.loaded.model.get_input_embeddings()
    poison = next(token for token in range(5, 256) if token not in (*PROMPT, *expected))

    def fail(_: object, given: tuple[torch.Tensor]) -> None:
        if (given[0] == poison).any():
            raise ZeroDivisionError

    hook = embedding.register_forward_pre_hook(fail)
    for name in "ab":
        add(engine, name, LONG)
    told = run(engine, num_steps=20)
    add(engine, "bad", prompt_token_ids=(5, poison, 6))
    add(engine, "c", LONG)
    for name, outputs in run(engine).items():
        told.setdefault(name, []).extend(outputs)
    hook.remove()
    (failed,) = told["bad"]
    assert isinstance(failed.error, GenerationFailed)
    for name in "abc":
        assert whole(told[name]).token_ids == expected
    assert engine._scheduler.num_used_blocks == 0
    engine.close()


def test_a_step_that_breaks_off_ends_whom_it_was_about_and_the_engine_goes_on(
    tiny: TinyCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny("mixtral"), max_running=2)
    for name in "abc":
        add(engine, name)
    run(engine, num_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler, "complete", lambda chunks: 1 / 0)
        outputs = engine.step()
    assert [(o.request_id, type(o.error)) for o in outputs] == [("a", GenerationFailed)]
    told = run(engine)
    assert whole(told["b"]).token_ids == whole(told["c"]).token_ids[2:]
    assert engine.stats.finished == {"error": 1, "length": 2}
    engine.close()


def test_a_lost_device_is_fatal_and_says_so(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"))
    embedding = engine.loaded.model.get_input_embeddings()

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    embedding.register_forward_pre_hook(fail)
    add(engine, "a")
    with pytest.raises(DeviceLost, match=r"illegal memory access .*; restart"):
        engine.step()
    engine.close()


def test_what_cannot_be_said_ends_that_answer_alone(
    tiny: TinyCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny("mixtral"))
    say = engine._answers.say

    def fail_for_a(sequence: Sequence, token: SampledToken) -> RequestOutput:
        if sequence.request_id == "a" and sequence.num_generated == 3:
            raise ZeroDivisionError
        return say(sequence, token)

    monkeypatch.setattr(engine._answers, "say", fail_for_a)
    for name in "ab":
        add(engine, name)
    told = run(engine)
    assert isinstance(told["a"][-1].error, GenerationFailed)
    assert whole(told["b"]).finish_reason == "length"
    engine.close()


def test_a_prompt_whose_log_probabilities_are_not_finite_ends_alone(
    tiny: TinyCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny("mixtral"))
    add(engine, "b", LONG)
    told = run(engine, num_steps=3)

    def fail(*_: object) -> None:
        raise NonFiniteLogits("NaN")

    monkeypatch.setattr(engine._answers, "note_prompt", fail)
    add(engine, "a", SamplingParams(max_tokens=2, prompt_logprobs=0))
    for name, outputs in run(engine).items():
        told.setdefault(name, []).extend(outputs)
    assert isinstance(told["a"][-1].error, NonFiniteLogits)
    assert whole(told["b"]).usage.completion_tokens == 200
    engine.close()
