"""The tiers below the slots, as an engine's options ask for them."""

from __future__ import annotations

import pytest

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.errors import ConfigError
from tests.conftest import TinyCheckpoints
from tests.support.runs import Prompts, run

PROMPTS = Prompts.random(seed=31)


def engine(tiny: TinyCheckpoints, **options: object) -> Engine:
    return Engine(EngineConfig.parse({"model": str(tiny("mixtral")), "device": "cpu", **options}))


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({}, {"disk_to_device"}),
        ({"host_memory": "50%"}, {"disk_to_host", "host_to_device"}),
        ({"host_memory": "100%"}, {"host_to_device"}),
        ({"emulated_link": "25GB/s"}, {"emulated"}),
    ],
)
def test_every_link_that_experts_may_take_is_measured_at_the_start(
    tiny: TinyCheckpoints, options: dict[str, object], measured: set[str]
) -> None:
    found = engine(tiny, device_memory="30%", **options)
    links = found.stats.experts.links
    assert {name for name, link in links.items() if link.bandwidth > 0} == measured
    assert all(set(link.num_bytes) <= {"start"} for link in links.values())  # measuring is not moving
    found.close()


def test_what_is_copied_to_host_memory_at_the_start_is_counted_as_such(tiny: TinyCheckpoints) -> None:
    told: list[tuple[int, int]] = []
    config = EngineConfig.parse({"model": str(tiny("mixtral")), "device": "cpu", "host_memory": "100%"})
    found = Engine(config, lambda done, total: told.append((done, total)))
    (start,) = (link.num_bytes["start"] for link in found.stats.experts.links.values() if link.num_bytes)
    assert told[-1] == (start, start)
    found.close()


def test_an_emulated_link_has_its_stated_bandwidth_and_changes_no_bit(tiny: TinyCheckpoints) -> None:
    folder = tiny("mixtral")
    found = run(folder, PROMPTS, device_memory="30%", emulated_link="25GB/s")
    assert found.stats.links["emulated"].bandwidth == 25e9
    assert found.stats.links["emulated"].num_bytes["demand"] > 0
    found.same_as(run(folder, PROMPTS, device_memory="100%"))


def test_beside_an_emulated_link_host_memory_may_be_none_and_nothing_else(tiny: TinyCheckpoints) -> None:
    engine(tiny, emulated_link="25GB/s", host_memory="0").close()
    for some in ("50%", "0.1%"):
        with pytest.raises(ConfigError, match=rf"takes no host_memory; .* \(host_memory is '{some}'\)"):
            engine(tiny, emulated_link="25GB/s", host_memory=some)


@pytest.mark.parametrize("rate", ["fast", "-1GB/s", "0GB/s"])
def test_a_rate_that_is_none_is_refused(tiny: TinyCheckpoints, rate: str) -> None:
    with pytest.raises(ConfigError, match=rate.removesuffix("/s")):
        engine(tiny, emulated_link=rate)
