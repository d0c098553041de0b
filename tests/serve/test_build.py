"""`build`: what the file says reaches Serve, and what it says wrongly is told before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from deployments.app import ServeArgs, build, place
from pgmoe.config import EngineConfig
from pgmoe.errors import ConfigError

CONFIG = Path(__file__).parents[2] / "config.yaml"


def args(engine: dict[str, Any] | None = None, **more: Any) -> ServeArgs:
    return ServeArgs(engine={"model": "anywhere"} | (engine or {}), **more)


def test_the_committed_file_is_one_that_serve_and_we_accept() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "deployments.app:build"
    assert isinstance(build(ServeArgs.model_validate(application.args)), Application)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (args({"devise_memory": "1GiB"}), "devise_memory"),
        (args({"max_running": 0}), "max_running"),
        (args({"device_memory": "lots"}), "'lots' is not a byte count"),
        (args({"device_memory": "auto"}), "'auto' is not a byte count"),
        (args({"host_memory": "600 MiX"}), "unknown unit"),
        (args({"policy": "random"}), "'random' is unknown; .*lru"),
        (args({"device": "cuda:1"}), "write 'cuda'"),
        (args(autoscaling={"max_replica": 3}), "max_replica.*max_replicas"),
        (args(autoscaling={"min_replicas": 3, "max_replicas": 2}), "max_replicas"),
        (ServeArgs(engine={}), "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_option_is_named_before_anything_is_deployed(bad: ServeArgs, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(bad)


@pytest.mark.parametrize(
    ("device", "cluster_gpus", "placed", "num_gpus"),
    [
        ("auto", 0, "cpu", 0),
        ("auto", 0.5, "cpu", 0),  # a share of a GPU that others use, too
        ("auto", 1, "cuda", 1),
        ("auto", 8, "cuda", 1),
        ("cpu", 8, "cpu", 0),
        ("cuda", 0, "cuda", 1),  # its node may still be coming up
    ],
)
def test_each_replica_gets_a_gpu_of_its_own_where_there_are_any(
    device: str, cluster_gpus: float, placed: str, num_gpus: int
) -> None:
    config, gpus = place(EngineConfig(model="m", device=device), cluster_gpus)
    assert (config.device, gpus) == (placed, num_gpus)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="replicas"):
        ServeArgs.model_validate({"engine": {"model": "x"}, "replicas": 2})
