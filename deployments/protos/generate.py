"""Write the Python modules of our `.proto` files: `python -m deployments.protos.generate`.

The modules are committed; a test holds them equal to what this writes. Serve pickles messages, so protoc's
module names must be the importable ones: the proto path is the folder that holds `deployments`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ("deployments/protos/pgmoe/v1/pgmoe.proto",)


def generate(out: Path) -> None:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` below `out`. RuntimeError if protoc refuses."""
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"--proto_path={ROOT}", *outputs, *PROTOS])
    if code != 0:
        raise RuntimeError(f"protoc ended with exit code {code}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT, help="folder to write below (default: in place)")
    generate(parser.parse_args().out)
