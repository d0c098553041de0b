"""One real server for all tests here: `serve run` of the repository's config.yaml with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import yaml
from openai import OpenAI

from deployments.client import PgmoeClient
from pgmoe.engine.llm import LLM
from tests.serve.running_server import CONTEXT, DEFAULTS, MODEL, Server
from tests.support.checkpoints import save_tiny_chat
from tests.support.ports import free_ports
from tests.support.serve_run import READY_S, serve_run

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "config.yaml"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test asks for the server first waits until it is ready."""
    for item in items:
        if isinstance(item, pytest.Function) and item.path.parent == HERE and "server" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(READY_S + 400))


@pytest.fixture(scope="package")
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="pgmoe-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)  # Ray puts sockets below it, whose paths must be short


@pytest.fixture(scope="package")
def model_folder(folder: Path) -> Path:
    model = save_tiny_chat(folder / MODEL, max_shard_size="200KB", context=CONTEXT)
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": True, **DEFAULTS}))
    return model


@pytest.fixture(scope="package")
def server(folder: Path, model_folder: Path) -> Iterator[Server]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"], config["grpc_options"]["port"] = free_ports(2)
    args = config["applications"][0]["args"]
    args["engine"] |= {
        "model": str(model_folder),
        "device": "cpu",
        "device_memory": "50%",
        "num_threads": 1,
        "max_running": 3,
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


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[PgmoeClient]:
    with PgmoeClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="package")
def openai(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="package")
def offline(model_folder: Path) -> Iterator[LLM]:
    """The same model in this process, all experts resident."""
    num_threads = torch.get_num_threads()
    with LLM(str(model_folder), device="cpu", num_threads=1) as llm:
        yield llm
    torch.set_num_threads(num_threads)
