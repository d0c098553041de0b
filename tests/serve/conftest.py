"""One real server for all tests here: `serve run` of the repository's config.yaml with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from openai import OpenAI

from deployments.client import PgmoeClient
from pgmoe.engine.llm import LLM
from tests.serve.running_server import DEFAULTS, MODEL, Server
from tests.support.checkpoints import save_tiny_chat
from tests.support.ports import free_port
from tests.support.serve_run import serve_run

CONFIG = Path(__file__).parents[2] / "config.yaml"


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="pgmoe-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)  # Ray puts sockets below it, whose paths must be short


@pytest.fixture(scope="session")
def model_folder(folder: Path) -> Path:
    model = save_tiny_chat(folder / MODEL, max_shard_size="200KB")
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": True, **DEFAULTS}))
    return model


@pytest.fixture(scope="session")
def server(folder: Path, model_folder: Path) -> Iterator[Server]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"] = free_port()
    config["grpc_options"]["port"] = free_port()
    args = config["applications"][0]["args"]
    args["engine"] |= {
        "model": str(model_folder),
        "device": "cpu",
        "device_memory": "50%",
        "num_threads": 1,
        "max_running": 2,
        "max_waiting": 2,
    }
    args["autoscaling"] |= {
        "target_ongoing_requests": 1,
        "upscale_delay_s": 2,
        "look_back_period_s": 2,
        "metrics_interval_s": 1,
    }
    args["drain_s"] = 1
    with serve_run(config, folder) as url:
        yield Server(url, f"127.0.0.1:{config['grpc_options']['port']}")


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[PgmoeClient]:
    with PgmoeClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="session")
def openai(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def offline(model_folder: Path) -> Iterator[LLM]:
    """The same model in this process, all experts resident."""
    with LLM(str(model_folder), device="cpu", num_threads=1) as llm:
        yield llm
