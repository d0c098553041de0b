"""Is a Serve config file good? `python -m deployments.check_config config.yaml` says so.

`serve run` itself retries a build that fails for as long as it runs; this finds the same faults before it is
started, and those of the checkpoint and the budgets as well. A GPU that is missing here is only a remark: the
head of a cluster, where this may run, often has none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.app import ServeArgs, build
from pgmoe.config import EngineConfig
from pgmoe.engine.assembly import resolve_device, resolve_dtype
from pgmoe.engine.free_memory import free_ram
from pgmoe.engine.measured_needs import plan_for
from pgmoe.engine.memory_plan import ExpertShape, MemoryPlan, plan_host_experts
from pgmoe.errors import BudgetTooSmall, ConfigError, PgmoeError
from pgmoe.models.loader import ModelPlan, read_plan
from pgmoe.units import format_bytes

OURS = "deployments.app:build"


def check(path: Path) -> list[str]:
    """A line or two for each application of ours. Raises ConfigError or CheckpointError for a fault."""
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
    return [line for args in arguments for line in _check_application(args)]


def _check_application(args: ServeArgs) -> list[str]:
    build(args)
    config = EngineConfig.parse(args.engine)
    missing = _missing_device(config)
    plan = read_plan(config.model)
    resolve_dtype(config.dtype, plan.layers)
    device = torch.device(config.device) if missing else resolve_device(config.device)
    shape = ExpertShape.of(plan.layers, plan.loaded_bytes(device))
    memory = _plan_memory(config, plan, device)
    # Another machine's RAM cannot be told from here.
    room = shape.expert_bytes if missing else free_ram()
    plan_host_experts(config.host_memory, shape, accelerator=device.type != "cpu", free_ram=room)
    total = plan.dense_bytes + shape.expert_bytes
    summary = (
        f"{config.name}: {plan.model_class.__name__}, {format_bytes(total)}; device_memory "
        f"{config.device_memory} holds {memory.num_slots} of {shape.num_experts} experts\n{memory.text()}"
    )
    return [summary, *missing, *_gpu_budget(config, plan)]


def _plan_memory(config: EngineConfig, plan: ModelPlan, device: torch.device) -> MemoryPlan:
    shape = ExpertShape.of(plan.layers, plan.loaded_bytes(device))
    return plan_for(config, plan, device, shape)


def _gpu_budget(config: EngineConfig, plan: ModelPlan) -> list[str]:
    """A remark if this machine has no GPU and those that do need more device memory."""
    if config.device != "auto" or resolve_device("auto").type != "cpu":
        return []
    try:
        _plan_memory(config, plan, torch.device("cuda"))
    except BudgetTooSmall as error:
        return [f"warning: on a GPU {error}"]
    return []


def _missing_device(config: EngineConfig) -> list[str]:
    """A remark if the replicas' device is not here. Raises ConfigError for one that no machine has."""
    try:
        resolve_device(config.device)
    except ConfigError as error:
        if config.device != "cuda":
            raise
        return [f"warning: {error}; fine if the replicas run on other machines"]
    return []


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
