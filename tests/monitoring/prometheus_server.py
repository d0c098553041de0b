"""A real Prometheus for one test, on a port of its own, stopped when the test ends."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from tests.support.ports import free_port

READY_S = 20.0


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10.0)

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The labels and value of each series that `expr` yields now; AssertionError where it is refused."""
        answer = self._http.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", f"{expr}: {answer}"
        return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]

    def label_values(self, label: str, series: str) -> list[str]:
        """The values of a label in the series that match, as Grafana asks for them."""
        answer = self._http.get(f"/api/v1/label/{label}/values", params={"match[]": series}).json()
        assert answer["status"] == "success", f"{label} of {series}: {answer}"
        return list(answer["data"])

    def wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Return once it answers. TimeoutError after `READY_S`, or at once if the process has ended."""
        give_up = time.monotonic() + READY_S
        while time.monotonic() < give_up and process.poll() is None:
            try:
                if self._http.get("/-/ready").is_success:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.1)
        raise TimeoutError(f"prometheus is not ready (exit status {process.poll()})")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


@contextmanager
def run_prometheus(config: dict[str, object], folder: Path) -> Iterator[Prometheus]:
    """Prometheus with `config`, its data and log in `folder`."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    api = Prometheus(f"http://{address}")
    try:
        api.wait_ready(process)
        yield api
    finally:
        api.close()
        process.terminate()
        process.wait(timeout=30)
