"""Writes `rayservice.yaml` from the repository's `config.yaml`: run `python -m cluster.rayservice`.

The manifest is the template beside this module; only what must agree with the application is filled in.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from string import Template
from textwrap import indent
from typing import Any

import yaml
from ray.serve.config import AutoscalingConfig

from deployments.app import ServeArgs

HERE = Path(__file__).parent
CONFIG = HERE.parent / "config.yaml"
TEMPLATE = HERE / "rayservice.template.yaml"
OUT = HERE / "rayservice.yaml"
RAY_VERSION = "2.60.0"
IMAGE = "pgmoe:0.1.0"
MODELS = "/models"
# A share suits any model on the volume and any GPU that holds it; config.yaml's bytes are those of a laptop.
DEVICE_MEMORY = "50%"
INDENT = " " * 4


def in_cluster(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config.yaml` (the content of it) as it must be on Kubernetes.

    Serve listens on the pods' addresses, on every pod that has a replica. The model is on the volume, under
    the last part of its path. The device is named: `auto` looks at the cluster once, which may be before the
    first GPU pod has come up. Two front doors, so that losing one is not noticed; each reserves a core, which
    keeps them off the head: it has neither cores to give nor the model's tokenizer.
    """
    changed = deepcopy(dict(config))
    changed["proxy_location"] = "EveryNode"
    changed["http_options"]["host"] = "0.0.0.0"
    (application,) = changed["applications"]
    args = application["args"]
    args["engine"] |= {
        "model": f"{MODELS}/{Path(args['engine']['model']).name}",
        "device": "cuda",
        "device_memory": DEVICE_MEMORY,
    }
    args["ingress_replicas"] = max(2, args.get("ingress_replicas", 0))
    deployments = {options["name"]: options for options in application.get("deployments", ())}
    ingress = {"name": "Ingress"} | deployments.get("Ingress", {})
    deployments["Ingress"] = ingress | {"ray_actor_options": {"num_cpus": 1}}
    application["deployments"] = list(deployments.values())
    return changed


def manifest(config: Mapping[str, Any], image: str = IMAGE) -> str:
    """The text of the RayService that serves `config`. Raises pydantic's ValidationError for wrong `args`."""
    serve = in_cluster(config)
    args = ServeArgs.model_validate(serve["applications"][0]["args"])
    scaling = AutoscalingConfig.model_validate(args.autoscaling)
    return Template(TEMPLATE.read_text()).substitute(
        image=image,
        model=args.engine["model"],
        models=MODELS,
        ray_version=RAY_VERSION,
        http_port=serve["http_options"]["port"],
        grpc_port=serve["grpc_options"]["port"],
        min_engines=scaling.min_replicas,
        max_engines=scaling.max_replicas,
        grace_s=int(args.drain_s) + 30,
        serve_config=indent(yaml.safe_dump(serve, sort_keys=False, width=100), INDENT).rstrip(),
    )


def main() -> None:
    """Command line: write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="a file as `serve run` takes it")
    parser.add_argument("--image", default=IMAGE, help="Ray's image with pgmoe installed")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    text = manifest(yaml.safe_load(arguments.config.read_text()), arguments.image)
    arguments.out.write_text(text)


if __name__ == "__main__":
    main()
