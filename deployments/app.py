"""The Serve application: `serve run config.yaml` calls `build` with the file's `args`."""

# No `from __future__ import annotations` here: Serve looks at the class that annotates `args`.

from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from deployments.engine_server import EngineServer
from deployments.ingress import Ingress
from pgmoe import openmp
from pgmoe.config import EngineConfig
from pgmoe.engine.named_options import check_options
from pgmoe.errors import ConfigError

HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 15.0
SPARE_REQUESTS = 16
"""Calls beside generations that a replica must always have room for: health, metrics, model info."""


class ServeArgs(BaseModel):
    """`args` of the application in config.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: dict[str, Any]
    """Options of `pgmoe.config.EngineConfig`; `model` is the one that must be there."""

    autoscaling: dict[str, Any] = Field(default_factory=dict)
    """Options of Serve's AutoscalingConfig for the engine replicas; one fixed replica where empty."""

    ingress_replicas: int = Field(default=1, ge=1)
    """Copies of the front door. Two or more survive the loss of one; each takes about 0.4 GB of RAM."""

    request_timeout_s: float | None = Field(default=None, gt=0)
    """Longest time for one request, waiting included; callers may ask for less."""

    drain_s: float = Field(default=60.0, ge=0)
    """How long a replica that stops lets its streams finish."""


def build(args: ServeArgs) -> Application:
    """The graph: ingress -> engine replicas. Raises ConfigError before anything is deployed."""
    config, num_gpus = place(EngineConfig.parse(args.engine), _cluster_gpus())
    _check_engine(config)
    autoscaling = _autoscaling(args.autoscaling)
    capacity = config.max_running + config.max_waiting
    common: dict[str, Any] = {
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": args.drain_s,
    }
    engine = serve.deployment(
        autoscaling_config=autoscaling,
        # More than an engine takes: it is the engine that refuses, at once and with our own error.
        max_ongoing_requests=capacity + SPARE_REQUESTS,
        max_queued_requests=capacity + SPARE_REQUESTS,
        ray_actor_options={
            "num_cpus": 1,
            "num_gpus": num_gpus,
            "runtime_env": {"env_vars": dict(openmp.ENVIRONMENT)},
        },
        **common,
    )(EngineServer)
    ingress = serve.deployment(
        num_replicas=args.ingress_replicas,
        # Again more than all engines take, so that what waits, waits in an engine's fair queue.
        max_ongoing_requests=2 * capacity * autoscaling.max_replicas + SPARE_REQUESTS,
        ray_actor_options={"num_cpus": 0},  # it mostly waits; the cores are for the engines
        **common,
    )(serve.ingress()(Ingress))
    return ingress.bind(engine.bind(config), config.model, config.name, args.request_timeout_s)


def place(config: EngineConfig, cluster_gpus: float) -> tuple[EngineConfig, int]:
    """Decide `auto` by what the cluster has, and how many GPUs each replica gets: a whole one, or none.

    Raises ConfigError for a GPU by number.
    """
    if config.device.startswith("cuda:"):
        raise ConfigError(
            f"device {config.device!r}: Serve gives each replica a GPU of its own; write 'cuda'"
        )
    if config.device != "auto":
        return config, int(config.device == "cuda")
    num_gpus = int(cluster_gpus >= 1)
    return config.model_copy(update={"device": "cuda" if num_gpus else "cpu"}), num_gpus


def _cluster_gpus() -> float:
    return float(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else 0.0


def _check_engine(config: EngineConfig) -> None:
    """What can be told without the model; the rest is the replicas' to say."""
    check_options(config)


def _autoscaling(options: dict[str, Any]) -> AutoscalingConfig:
    unknown = sorted(set(options) - set(AutoscalingConfig.model_fields))
    if unknown:
        known = ", ".join(sorted(AutoscalingConfig.model_fields))
        raise ConfigError(f"autoscaling: unknown option {', '.join(unknown)}; there is {known}")
    try:
        return AutoscalingConfig.model_validate(options)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"autoscaling: {faults}") from None
