"""Byte counts as people write them: `600MiB`, `1.5 GB`, `50%`."""

from __future__ import annotations

import re
from fractions import Fraction

from pgmoe.errors import ConfigError

_FACTORS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*|%)\s*")


def parse_bytes(text: str | int, *, whole_bytes: int | None = None) -> int:
    """Turn `text` into a number of bytes.

    A percentage is taken of `whole_bytes` and refused where that is None. Raises ConfigError for
    anything that is not a non-negative byte count.
    """
    if isinstance(text, int):
        if text < 0:
            raise ConfigError(f"a byte count cannot be negative, got {text}")
        return text
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a byte count; write for example 600MiB, 1.5GB or 50%")
    number, unit = Fraction(match[1]), match[2].upper()  # exact: 0.7% of 1000 is 7
    if unit == "%":
        if whole_bytes is None:
            raise ConfigError(f"{text!r}: a percentage has no meaning here; write for example 600MiB")
        if number > 100:
            raise ConfigError(f"{text!r} is more than the whole; write at most 100%")
        return int(whole_bytes * number / 100)
    if unit not in _FACTORS:
        raise ConfigError(f"{text!r} has an unknown unit; use B, KiB, MiB, GiB, TiB, KB, MB, GB, TB or %")
    return int(number * _FACTORS[unit])


def parse_rate(text: str) -> float:
    """Turn `25GB/s` into bytes per second. Raises ConfigError for anything that is not a positive rate."""
    amount, slash, second = text.partition("/")
    if not slash or second.strip() != "s":
        raise ConfigError(f"{text!r} is not a rate; write for example 2GB/s")
    rate = parse_bytes(amount)
    if not rate:
        raise ConfigError(f"{text!r}: a link has to carry something; write for example 2GB/s")
    return float(rate)


def format_bytes(num_bytes: int) -> str:
    """A short form for people, binary units: 1536 -> '1.5 KiB'."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
