from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from pgmoe.errors import ConfigError
from pgmoe.trace import Trace, TracedLayer, TracedStep

EXPERTS_PER_LAYER = (4, 8)


def rows(
    num_tokens: int, values: st.SearchStrategy[float] | st.SearchStrategy[int]
) -> st.SearchStrategy[tuple]:
    row = st.lists(values, max_size=2).map(tuple)
    return st.lists(row, min_size=num_tokens, max_size=num_tokens).map(tuple)


@st.composite
def layers(draw: st.DrawFn, layer: int, num_tokens: int) -> TracedLayer:
    experts = st.integers(0, EXPERTS_PER_LAYER[layer] - 1)
    ids = draw(rows(num_tokens, experts))
    scores = tuple(tuple(draw(st.floats(0, 1, width=32)) for _ in row) for row in ids)
    predicted = draw(rows(num_tokens, experts)) if draw(st.booleans()) else ()
    return TracedLayer(layer, ids, scores, predicted)


@st.composite
def steps(draw: st.DrawFn) -> TracedStep:
    num_tokens = draw(st.integers(1, 3))
    order = draw(st.sampled_from([(0,), (0, 1), (0, 0)]))
    return TracedStep(draw(st.text(max_size=3)), tuple(draw(layers(layer, num_tokens)) for layer in order))


traces = st.builds(
    Trace,
    model=st.text(),
    experts_per_layer=st.just(EXPERTS_PER_LAYER),
    top_k=st.just(2),
    expert_bytes=st.integers(1, 2**40),
    steps=st.lists(steps(), max_size=4).map(tuple),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@given(trace=traces)
def test_a_trace_is_read_as_it_was_written(folder: Path, trace: Trace) -> None:
    trace.save(folder / "t.parquet")
    assert Trace.load(folder / "t.parquet") == trace
    assert [p.name for p in folder.iterdir()] == ["t.parquet"]


STEP = TracedStep("a", (TracedLayer(1, ((0, 7), (3,)), ((0.5, 0.25), (1.0,)), ((7, 1), (2, 2))),))
TRACE = Trace("small", EXPERTS_PER_LAYER, 2, 4096, (STEP,))


def test_other_tools_find_a_row_for_each_step_token_and_layer(tmp_path: Path) -> None:
    TRACE.save(tmp_path / "t.parquet")
    first, second = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert first == {
        "step": 0,
        "sequence": "a",
        "token": 0,
        "layer": 1,
        "experts": [0, 7],
        "scores": [0.5, 0.25],
        "predicted": [7, 1],
    }
    assert (second["token"], second["experts"], second["scores"]) == (1, [3], [1.0])


def test_a_trace_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    TRACE.save(path)
    with pytest.raises(pa.ArrowInvalid, match="32768"):
        replace(TRACE, steps=(replace(STEP, layers=(TracedLayer(2**15, ((0,),), ((1.0,),)),)),)).save(path)
    with pytest.raises(ConfigError, match="cannot write the trace"):
        TRACE.save(tmp_path / "nowhere" / "t.parquet")
    assert Trace.load(path) == TRACE
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no trace .*t\.parquet; `pgmoe trace` records one"):
        Trace.load(tmp_path / "t.parquet")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    TRACE.save(path)
    whole = path.read_bytes()
    for kept in np.random.default_rng(0).integers(0, len(whole), 20):
        path.write_bytes(whole[:kept])
        with pytest.raises(ConfigError, match="no readable Parquet file"):
            Trace.load(path)


def with_metadata(path: Path, metadata: dict[bytes, bytes] | None) -> None:
    TRACE.save(path)
    parquet.write_table(parquet.read_table(path).replace_schema_metadata(metadata), path)


def test_a_foreign_parquet_file_is_no_trace(tmp_path: Path) -> None:
    with_metadata(tmp_path / "t.parquet", None)
    with pytest.raises(ConfigError, match="is a Parquet file but no trace"):
        Trace.load(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        (b'{"version": 2}', "is a trace of version 2, and this pgmoe reads 1; record it anew"),
        (b'{"version": 1}', "metadata is damaged.*experts_per_layer"),
        (b"[1]", "metadata is damaged"),
        (b"version", "metadata is damaged"),
    ],
)
def test_metadata_of_another_kind_is_refused(tmp_path: Path, header: bytes, fault: str) -> None:
    with_metadata(tmp_path / "t.parquet", {b"pgmoe.trace": header})
    with pytest.raises(ConfigError, match=f"(?s){fault}"):
        Trace.load(tmp_path / "t.parquet")


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    TRACE.save(path)
    table = parquet.read_table(path)
    parquet.write_table(table.drop_columns("scores"), path)
    with pytest.raises(ConfigError, match="other columns than step, sequence"):
        Trace.load(path)
    # Nothing but the type differs.
    layer = table.column("layer").cast(pa.int32())
    parquet.write_table(table.set_column(3, "layer", layer), path)
    with pytest.raises(ConfigError, match="other columns"):
        Trace.load(path)


@pytest.mark.parametrize(
    ("traced", "fault"),
    [
        (TracedLayer(2, ((0,),), ((1.0,),)), "step 1 has layer 2 of 2"),
        (TracedLayer(0, ((4,),), ((1.0,),)), "step 1, layer 0 names an expert outside 0 to 3"),
        (TracedLayer(0, ((0,),), ((1.0,),), ((-1,),)), "step 1, layer 0 names an expert outside 0 to 3"),
    ],
)
def test_a_trace_that_contradicts_its_shape_is_refused(
    tmp_path: Path, traced: TracedLayer, fault: str
) -> None:
    replace(TRACE, steps=(STEP, TracedStep("b", (traced,)))).save(tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=fault):
        Trace.load(tmp_path / "t.parquet")


def test_the_metadata_are_plain_json(tmp_path: Path) -> None:
    TRACE.save(tmp_path / "t.parquet")
    header = json.loads(parquet.read_schema(tmp_path / "t.parquet").metadata[b"pgmoe.trace"])
    assert header == {
        "version": 1,
        "model": "small",
        "experts_per_layer": [4, 8],
        "top_k": 2,
        "expert_bytes": 4096,
    }
