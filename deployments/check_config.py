"""Is a Serve config file good? `python -m deployments.check_config config.yaml` says so in a second or two.

`serve run` itself retries a build that fails for as long as it runs; this finds the same faults before it is
started, and those of the checkpoint and the budget as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.app import ServeArgs, build
from pgmoe.config import EngineConfig
from pgmoe.engine.memory_plan import ExpertShape, plan_slots
from pgmoe.errors import ConfigError, PgmoeError
from pgmoe.models.loader import read_plan
from pgmoe.units import format_bytes

OURS = "deployments.app:build"


def check(path: Path) -> list[str]:
    """A line for each application of ours. Raises ConfigError or CheckpointError for the first fault."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        schema = ServeDeploySchema.model_validate(content)
        arguments = [ServeArgs.model_validate(a.args) for a in schema.applications if a.import_path == OURS]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {_faults(error)}") from None
    if not arguments:
        raise ConfigError(f"{path}: no application has import_path {OURS!r}")
    return [_check_application(args) for args in arguments]


def _check_application(args: ServeArgs) -> str:
    build(args)
    config = EngineConfig.parse(args.engine)
    plan = read_plan(config.model)
    shape = ExpertShape.of(plan.layers, plan.dense_bytes)
    slots = plan_slots(config.device_memory, shape)
    total = shape.dense_bytes + shape.expert_bytes
    return (
        f"{config.name}: {plan.model_class.__name__}, {format_bytes(total)}; device_memory "
        f"{config.device_memory} holds {slots} of {shape.num_experts} experts"
    )


def _faults(error: ValidationError) -> str:
    faults: list[Any] = error.errors(include_url=False)
    return "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in faults)


def main() -> int:
    """Print what would be served, or the fault on stderr with status 2."""
    if len(sys.argv) != 2:
        print("usage: python -m deployments.check_config CONFIG.yaml", file=sys.stderr)
        return 2
    try:
        print("\n".join(check(Path(sys.argv[1]))))
    except PgmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
