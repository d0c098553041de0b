from __future__ import annotations

import pytest

from pgmoe.bench.statistics import Spread, first_difference, paired_ratio, percentile


def test_a_spread_is_the_median_and_both_ends() -> None:
    assert Spread.of([3.0, 1.0, 10.0, 2.0]) == Spread(median=2.5, low=1.0, high=10.0)


def test_a_spread_names_its_ends_only_if_there_are_any() -> None:
    assert Spread(2.5, 2.0, 3.04).text(1) == "2.5 (2.0-3.0)"
    assert Spread(2.5, 2.5, 2.5).text(2) == "2.50"


def test_a_slow_round_does_not_change_a_paired_ratio() -> None:
    assert paired_ratio([10.0, 1.0, 20.0], [5.0, 0.5, 10.0]) == Spread(2.0, 2.0, 2.0)


def test_a_percentile_lies_between_its_neighbours() -> None:
    assert percentile([30.0, 10.0, 20.0], 50) == 20.0
    assert percentile([30.0, 10.0, 20.0], 75) == 25.0
    assert percentile([30.0, 10.0, 20.0], 100) == 30.0
    assert percentile([7.0], 95) == 7.0


def test_rounds_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("tokens", "expected", "position"),
    [((1, 2, 3), (1, 2, 3), None), ((1, 2), (1, 2, 3), None), ((1, 9, 3), (1, 2, 3), 1), ((9,), (1, 2), 0)],
)
def test_the_first_difference_of_two_answers(
    tokens: tuple[int, ...], expected: tuple[int, ...], position: int | None
) -> None:
    assert first_difference(tokens, expected) == position
