"""The committed dashboard as Grafana would use it: panels, their queries, and its variables filled in."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

MONITORING = Path(__file__).parents[2] / "monitoring"
DASHBOARD = MONITORING / "grafana" / "pgmoe.json"
GRAFANAS_OWN = {"__rate_interval"}


@dataclass(frozen=True)
class Drawn:
    """One query of one panel."""

    panel: str
    unit: str
    legend: str
    template: str
    """PromQL with Grafana's variables in it."""

    def __str__(self) -> str:
        return f"{self.panel}: {self.legend}"

    def expr(self, window: str = "1m") -> str:
        """PromQL when everything is selected; KeyError for a variable that the dashboard lacks."""
        return fill(self.template, window)


def drawn() -> list[Drawn]:
    """Every query of the committed file."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [
        Drawn(
            panel["title"], panel["fieldConfig"]["defaults"]["unit"], target["legendFormat"], target["expr"]
        )
        for panel in panels
        if panel["type"] != "row"
        for target in panel["targets"]
    ]


def variables() -> dict[str, str]:
    """The query of each of the dashboard's variables, by name."""
    return {v["name"]: v["query"] for v in json.loads(DASHBOARD.read_text())["templating"]["list"]}


def fill(template: str, window: str) -> str:
    """`template` with every variable at "All" and rates taken over `window`."""
    values = dict.fromkeys(variables(), ".*") | dict.fromkeys(GRAFANAS_OWN, window)
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], template)
