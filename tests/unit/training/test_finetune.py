from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pgmoe import LLM, SamplingParams
from pgmoe.errors import ConfigError, TrainingDiverged, UnsupportedModel
from pgmoe.models.loader import read_plan
from pgmoe.training.dataset import read_rows
from pgmoe.training.finetune import finetune
from pgmoe.training.finetune_result import LOW_RANK
from pgmoe.training.moe_trainer import MoeTrainer
from pgmoe.training.pregate import pregate
from pgmoe.training.step_figures import Step
from pgmoe.training.trainable import load_whole, put_into
from tests.support.finetuning import save_pairs, save_text, save_trainable, small_run

DECODERS = ("mixtral", "olmoe", "qwen3_moe")
IDS = torch.arange(40)[None] * 7 % 500


def losses(out: Path) -> list[float]:
    return list(pq.read_table(out / "training.parquet")["loss"].to_pylist())


def routers(keys: object) -> set[str]:
    return {key for key in keys if "gate.weight" in key or "router" in key}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trainable("mixtral", tmp_path_factory.mktemp("mixtral"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("data") / "text.parquet")


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_learns_and_is_written_as_it_was_read(family: str, text: Path, tmp_path: Path) -> None:
    model, out = save_trainable(family, tmp_path / "m"), tmp_path / "out"
    done = finetune(small_run(model, text, out, steps=12))
    assert done.folder == out
    assert losses(out)[-1] < losses(out)[0] - 0.5
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    assert {k: (t.shape, t.dtype) for k, t in after.items()} == {
        k: (t.shape, t.dtype) for k, t in before.items()
    }
    assert read_plan(str(out)).layers[0].num_experts == read_plan(str(model)).layers[0].num_experts
    assert json.loads((out / "config.json").read_text()) == json.loads((model / "config.json").read_text())


def test_an_encoder_decoder_learns(tmp_path: Path) -> None:
    model = save_trainable("switch_transformers", tmp_path / "m")
    data = save_pairs(tmp_path / "pairs.parquet")
    finetune(small_run(model, data, tmp_path / "out", steps=12, learning_rate=1e-2))
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0] - 0.2


def test_our_engine_generates_from_the_result(mixtral: Path, text: Path, tmp_path: Path) -> None:
    out = finetune(small_run(mixtral, text, tmp_path / "out")).folder
    with LLM(out, device="cpu") as llm:
        (answer,) = llm.generate(["How far"], SamplingParams(max_tokens=4, temperature=0))
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    ids = tokenizer("How far", return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert list(answer.token_ids) == expected.tolist()


def test_gates_alone_are_trained_and_all_else_stays_to_the_bit(text: Path, tmp_path: Path) -> None:
    model, out = save_trainable("mixtral", tmp_path / "m", torch.bfloat16), tmp_path / "out"
    finetune(small_run(model, text, out, train="gates", learning_rate=0.1))
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == routers(before)
    assert len(changed) == 3


def test_a_rank_changes_experts_and_routers_and_its_file_makes_the_result_again(
    text: Path, tmp_path: Path
) -> None:
    model, out = save_trainable("mixtral", tmp_path / "m", torch.bfloat16), tmp_path / "out"
    finetune(small_run(model, text, out, rank=2, alpha=6.0, learning_rate=0.02, precision="bf16"))
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if ".experts." in key} | routers(before)
    with safe_open(out / LOW_RANK, "pt") as file:
        assert {**file.metadata(), "format": ""} == {"rank": "2", "scale": "1", "base": "m", "format": ""}
    again = load_whole(model, None)
    put_into(again, load_file(out / LOW_RANK))
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, load_whole(out, None)(input_ids=IDS).logits)


def test_a_pre_gated_model_stays_one_and_is_read_with_what_was_learnt(
    mixtral: Path, text: Path, tmp_path: Path
) -> None:
    model = pregate(str(mixtral), tmp_path / "ahead").folder
    twin = Path(shutil.copyfile(text, tmp_path / "twin.parquet"))
    done = finetune(small_run(model, text, tmp_path / "out", steps=9, evaluate=twin))
    out = done.folder
    config = json.loads((out / "config.json").read_text())
    assert config["pgmoe"] == json.loads((model / "config.json").read_text())["pgmoe"]
    assert losses(out)[-1] < losses(out)[0] - 0.5
    read = load_whole(out, None)
    ordinary = AutoModelForCausalLM.from_pretrained(out)
    rows = read_rows([text], AutoTokenizer.from_pretrained(out), 32, encoder_decoder=False)
    ids = torch.stack([torch.from_numpy(row.input_ids).long() for row in rows])
    with torch.no_grad():
        ahead, not_ahead = (float(m(input_ids=ids, labels=ids).loss) for m in (read, ordinary))
    assert ahead == pytest.approx(done.eval_loss, rel=1e-4)
    assert ahead < not_ahead - 0.1


def test_accumulated_passes_make_the_step_of_one_large_pass(
    mixtral: Path, text: Path, tmp_path: Path
) -> None:
    runs = {1: 4, 2: 2, 4: 1}
    for accumulation, batch in runs.items():
        options = {"accumulation": accumulation, "batch_size": batch, "steps": 1, "aux_weight": 0.0}
        finetune(small_run(mixtral, text, tmp_path / str(accumulation), **options))
    tables = [pq.read_table(tmp_path / str(n) / "training.parquet").to_pylist()[0] for n in runs]
    for name in ("loss", "ce", "grad_norm", "tokens"):
        assert tables[1][name] == pytest.approx(tables[0][name], rel=1e-4), name
        assert tables[2][name] == pytest.approx(tables[0][name], rel=1e-4), name


def test_the_balance_loss_counts_once_a_step_however_many_passes_it_has(
    mixtral: Path, text: Path, tmp_path: Path
) -> None:
    for accumulation, batch in ((1, 4), (4, 1)):
        options = {"accumulation": accumulation, "batch_size": batch, "steps": 1, "aux_weight": 0.5}
        finetune(small_run(mixtral, text, tmp_path / str(accumulation), **options))
    whole, parts = (pq.read_table(tmp_path / n / "training.parquet").to_pylist()[0] for n in ("1", "4"))
    assert whole["aux"] > 0.5
    assert parts["aux"] == pytest.approx(whole["aux"], rel=0.2)
    for row in (whole, parts):
        assert row["loss"] == pytest.approx(row["ce"] + row["aux"], rel=1e-5)


def test_a_teacher_is_followed(mixtral: Path, text: Path, tmp_path: Path) -> None:
    student = pregate(str(mixtral), tmp_path / "ahead").folder
    options = {"teacher": str(mixtral), "distil_weight": 1.0, "steps": 10, "aux_weight": 0.0}
    finetune(small_run(student, text, tmp_path / "out", **options))
    rows = pq.read_table(tmp_path / "out" / "training.parquet").to_pylist()
    assert rows[0]["kl"] > 0.1
    assert rows[-1]["kl"] < 0.8 * rows[0]["kl"]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["kl"], rel=1e-5)


def test_a_teacher_with_another_vocabulary_is_refused(mixtral: Path, text: Path, tmp_path: Path) -> None:
    teacher = save_trainable("mixtral", tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["quux"])
    tokenizer.save_pretrained(teacher)
    with pytest.raises(ConfigError, match="another vocabulary"):
        finetune(small_run(mixtral, text, tmp_path / "out", teacher=str(teacher)))


def test_unseen_data_is_measured_by_token(mixtral: Path, text: Path, tmp_path: Path) -> None:
    unseen, out = save_pairs(tmp_path / "unseen.parquet"), tmp_path / "out"
    done = finetune(small_run(mixtral, text, out, evaluate=unseen, evaluate_steps=2, steps=5))
    table = pq.read_table(out / "training.parquet").to_pylist()
    assert [row["step"] for row in table if row["eval_loss"] is not None] == [2, 4, 5]
    model, tokenizer = load_whole(out, None), AutoTokenizer.from_pretrained(out)
    total, count = 0.0, 0
    for row in read_rows([unseen], tokenizer, 32, encoder_decoder=False):
        ids, labels = (torch.from_numpy(x).long()[None] for x in (row.input_ids, row.labels))
        with torch.no_grad():
            scored = int((labels[:, 1:] != -100).sum())
            total += float(model(input_ids=ids, labels=labels).loss) * scored
            count += scored
    assert done.eval_loss == pytest.approx(total / count, rel=1e-4)
    assert table[-1]["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-3)


def test_progress_and_the_log_tell_of_every_step(mixtral: Path, text: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    options = {"schedule": "cosine", "warm_up_steps": 2, "learning_rate": 1e-3}
    done = finetune(small_run(mixtral, text, tmp_path / "out", **options), steps.append)
    table = pq.read_table(tmp_path / "out" / "training.parquet").to_pylist()
    assert [step.number for step in steps] == [row["step"] for row in table] == list(range(1, 7))
    assert [step.loss for step in steps] == [row["loss"] for row in table]
    assert table[0]["learning_rate"] < table[2]["learning_rate"] == pytest.approx(1e-3)
    assert table[5]["learning_rate"] < 4e-4
    read = [row["tokens"] for row in table]
    assert [after - before for before, after in pairwise([0, *read])] == [128, 128, 96] * 2  # 11 rows of 32
    assert done.num_tokens == read[-1]
    assert (tmp_path / "out" / "training.png").stat().st_size > 1000
    assert all(row["grad_norm"] > 0 and row["tokens_per_s"] > 0 for row in table)


def test_the_seed_decides_the_order_of_the_data(mixtral: Path, text: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune(small_run(mixtral, text, tmp_path / name, seed=seed, steps=3))
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_may_be_computed_again(mixtral: Path, text: Path, tmp_path: Path, precision: str) -> None:
    for name, again in (("kept", False), ("again", True)):
        options = {"gradient_checkpointing": again, "precision": precision, "rank": 2, "steps": 3}
        finetune(small_run(mixtral, text, tmp_path / name, **options))
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "kept"), rel=1e-3)


def test_a_training_that_diverges_says_so(mixtral: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="lower learning rate"):
        finetune(small_run(mixtral, text, tmp_path / "out", learning_rate=1e30, steps=20))
    assert not (tmp_path / "out").exists()


def test_a_gradient_that_is_not_finite_is_never_published(
    mixtral: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MoeTrainer, "_get_grad_norm", lambda *_, **__: torch.tensor(math.inf))
    with pytest.raises(TrainingDiverged, match=r"norm of the gradient of step 1 is inf; .*lower learning"):
        finetune(small_run(mixtral, text, tmp_path / "out", steps=1))
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / ".out.partial").glob("checkpoint-*"))


@pytest.mark.parametrize("said", ["float32", "float16", None])
def test_weights_keep_their_stored_type_whatever_the_config_says(
    said: str | None, text: Path, tmp_path: Path
) -> None:
    model, out = save_trainable("mixtral", tmp_path / "m", torch.bfloat16), tmp_path / "out"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": said}))
    finetune(small_run(model, text, out, steps=1, train="gates"))
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_a_model_of_several_types_is_refused_at_the_start(text: Path, tmp_path: Path) -> None:
    model = save_trainable("mixtral", tmp_path / "m", torch.bfloat16)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight as float32.* save it in one"):
        finetune(small_run(model, text, tmp_path / "out"))
    assert not (tmp_path / ".out.partial").exists()


def test_a_finished_result_is_not_written_over(mixtral: Path, text: Path, tmp_path: Path) -> None:
    config = small_run(mixtral, text, tmp_path / "out", steps=1)
    finetune(config)
    with pytest.raises(ConfigError, match="exists and is not an empty folder"):
        finetune(config)


def test_a_dense_model_is_refused(text: Path, tmp_path: Path) -> None:
    from tests.support.dense import save_dense

    with pytest.raises(UnsupportedModel, match="no MoE blocks"):
        finetune(small_run(save_dense(tmp_path / "dense"), text, tmp_path / "out"))


def test_without_matplotlib_there_is_no_plot(
    mixtral: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    done = finetune(small_run(mixtral, text, tmp_path / "out", steps=1))
    assert not done.plotted
    assert not (tmp_path / "out" / "training.png").exists()
