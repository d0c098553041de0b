"""Writes `grafana/pgmoe.json` from `panels.py`: run `python -m monitoring.dashboard` after a change there.

The file is committed, since Grafana reads it and not this module; a test holds the two equal.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders.common import VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from monitoring.panels import ROWS, Panel
from monitoring.promql import values_of
from pgmoe.metrics.names import REQUESTS_RUNNING

OUT = Path(__file__).parent / "grafana" / "pgmoe.json"
DATASOURCE = DataSourceRef("prometheus", "${datasource}")
PANEL_HEIGHT = 8


def to_json() -> str:
    """The dashboard as Grafana imports or is provisioned with it."""
    board = (
        grafana.Dashboard("pgmoe")
        .uid("pgmoe")
        .description("Traffic and expert movement of pgmoe engines. Generated from pgmoe/metrics/names.py.")
        .tags(["pgmoe"])
        .time("now-30m", "now")
        .refresh("10s")
        .with_variable(grafana.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("model_name", "Model"))
        .with_variable(_variable("replica", "Replica", 'model_name=~"$model_name"'))
    )
    ids = count(1)  # links to a panel name its id, so none is left for Grafana to draw
    for row in ROWS:
        board.with_row(grafana.Row(row.title).id(next(ids)))
        for panel in row.panels:
            board.with_panel(_time_series(panel).id(next(ids)))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _variable(label: str, title: str, where: str = "") -> grafana.QueryVariable:
    """Several values of a label may be picked; at first, all."""
    return (
        grafana.QueryVariable(label)
        .label(title)
        .datasource(DATASOURCE)
        .query(values_of(label, REQUESTS_RUNNING, where))
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _time_series(panel: Panel) -> TimeSeries:
    graph = (
        TimeSeries()
        .title(panel.title)
        .description(panel.help)
        .datasource(DATASOURCE)
        .unit(panel.unit)
        .min(0)
        .span(panel.width)
        .height(PANEL_HEIGHT)
        .legend(
            VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if panel.max is not None:
        graph.max(panel.max)
    for index, query in enumerate(panel.queries):
        letter = chr(ord("A") + index)
        graph.with_target(
            Dataquery()
            .ref_id(letter)
            .expr(query.expr)
            .legend_format(query.legend)
            .range()
            .datasource(DATASOURCE)
        )
    return graph


if __name__ == "__main__":
    OUT.write_text(to_json())
