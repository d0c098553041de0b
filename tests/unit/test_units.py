from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.errors import ConfigError
from pgmoe.units import format_bytes, parse_bytes, parse_rate

SIZES = {
    0: 0,
    7: 7,
    "0": 0,
    "600": 600,
    "1B": 1,
    "1KiB": 1024,
    "1 kib": 1024,
    " 600MiB ": 600 * 2**20,
    "1.5GB": 1_500_000_000,
    "1.1GB": 1_100_000_000,
    "2T": 2 * 2**40,
    "3tib": 3 * 2**40,
    "0.5K": 512,
    "1.2345KB": 1234,
}


@pytest.mark.parametrize("text", SIZES)
def test_byte_counts_are_read_as_people_write_them(text: str | int) -> None:
    assert parse_bytes(text) == SIZES[text]


@given(st.integers(0, 100), st.integers(0, 9), st.integers(0, 2**50))
def test_a_percentage_is_exact(percent: int, tenth: int, whole: int) -> None:
    share = min(Fraction(10 * percent + tenth, 10), Fraction(100))
    text = f"{float(share)}%"
    assert parse_bytes(text, whole_bytes=whole) == int(whole * share / 100)


NONSENSE = ["", " ", "x", "MiB", "-1", "-5MiB", "1e9", "nan", "inf", "1,5GB", "1.GB", ".5GB", "5 5", "٣MiB"]
NONSENSE += ["%", "1%%", "5QiB", "5 MiBs", "5M iB"]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_refused_and_shown(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_bytes(text, whole_bytes=100)
    assert repr(text) in str(error.value)


def test_negative_and_too_large_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be negative, got -1"):
        parse_bytes(-1)
    with pytest.raises(ConfigError, match="at most 100%"):
        parse_bytes("100.1%", whole_bytes=100)


def test_a_percentage_of_nothing_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no meaning here"):
        parse_bytes("50%")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (600 * 2**20, "600.0 MiB"), (5 * 2**42, "20.0 TiB")],
)
def test_bytes_are_shown_in_binary_units(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(("text", "rate"), [("25GB/s", 25e9), ("1.5 MiB/s", 1.5 * 2**20), ("8 / s", 8.0)])
def test_a_rate_is_bytes_per_second(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["25GB", "25GB/min", "fast", "0GB/s", "50%/s", "/s", "-1GB/s"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="write for example"):
        parse_rate(text)
