"""One replica: one engine, its answers as streams and its numbers as Prometheus families."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import ray
from prometheus_client import CollectorRegistry, Metric
from ray import serve

from deployments.pieces import coalesce
from pgmoe.config import EngineConfig
from pgmoe.engine.async_engine import AsyncEngine
from pgmoe.errors import PgmoeError
from pgmoe.metrics.prometheus import StatsCollector
from pgmoe.request import ModelInfo, Request, RequestOutput


class EngineServer:
    """Serve's engine deployment. The constructor loads the model; Serve sends requests once it is through."""

    def __init__(self, config: EngineConfig) -> None:
        if config.num_threads is None and config.device == "cpu":
            config = config.model_copy(update={"num_threads": _node_cpus()})
        self._engine = AsyncEngine.from_config(config)
        replica = serve.get_replica_context().replica_id.unique_id
        self._collector = StatsCollector(self._engine.stats, model_name=config.name, replica=replica)
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)

    async def generate(self, request: Request) -> AsyncGenerator[RequestOutput | PgmoeError, None]:
        """The answer as it grows, a piece for whatever was ready; leaving early stops the generation.

        Our own errors come as the last item: if raised, Serve would wrap them and log a traceback for each of
        the callers' mistakes.
        """
        try:
            async with aclosing(coalesce(self._engine.generate(request))) as pieces:
                async for piece in pieces:
                    yield piece
        except PgmoeError as error:
            yield error

    async def info(self) -> ModelInfo:
        """What is served."""
        return self._engine.info

    async def metrics(self) -> list[Metric]:
        """Every family of the metric table, with this replica's values as of now."""
        return list(self._registry.collect())

    async def check_health(self) -> None:
        """Called by Serve every few seconds; if it raises, the engine is dead and Serve replaces us."""
        self._engine.check_health()
        self._collector.drain()  # latencies are kept in bounded queues; no scrape may come for hours

    def __del__(self) -> None:
        """Called by Serve when the replica stops in good order: free device and pinned memory."""
        if hasattr(self, "_engine"):
            self._engine.close()


def _node_cpus() -> int:
    """Cores of this node as Ray counts them (it heeds container limits).

    Ray tells OpenMP to use as many threads as the replica reserves cores, which is one by default.
    """
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    return max(1, int(node["Resources"].get("CPU", 1)))
