"""`serve run` of the real application in a Ray of its own, stopped when the test ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

READY_S = 500.0  # mostly imports, which a slow disk makes slow; callers need a timeout mark beyond it
STOP_S = 45.0


@contextmanager
def serve_run(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """The URL of the HTTP API once it answers. `folder` takes Ray's session: a short path, sockets lie there.

    TimeoutError with the end of the log after `READY_S`, or at once when `serve run` has ended.
    """
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {
        "RAY_TMPDIR": str(folder),
        "RAY_ADDRESS": "local",  # never a cluster that happens to run on this machine
        "RAY_AUTH_MODE": "disabled",  # or it writes a token file into the home folder
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(Path(sys.executable).with_name("serve")), "run", str(folder / "config.yaml")]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{config['http_options']['port']}"
    try:
        _wait_ready(url, process, folder / "serve.log")
        yield url
    finally:
        _stop(process)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + READY_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5.0).is_success:
                return
        except httpx.TransportError:
            pass  # no proxy yet
        time.sleep(0.5)
    raise TimeoutError(f"serve run is not ready (exit status {process.poll()}):\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does; what is left of the process group after `STOP_S` is killed."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
