"""The metric families of several replicas as one page: each family once, with everyone's samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric


class MetricsPage(CollectorRegistry):
    """What prometheus_client's encoders take, filled with families that were collected elsewhere."""

    def __init__(self, pages: Iterable[Iterable[Metric]]) -> None:
        super().__init__()
        self._families: dict[str, Metric] = {}
        for family in (family for page in pages for family in page):
            known = self._families.setdefault(family.name, family)
            if known is not family:
                known.samples.extend(family.samples)

    def collect(self) -> Iterator[Metric]:
        """Every family once."""
        return iter(self._families.values())
