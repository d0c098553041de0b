from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pgmoe.engine.stop import StopStrings, TextStep

ALPHABET = "ab"
"""Two letters, so that stop strings overlap with themselves and each other."""
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=3)


def cut(pieces: list[str], stops: list[str]) -> TextStep:
    """All that `StopStrings` lets through, and whether it stopped."""
    matcher, text = StopStrings(stops), ""
    for piece in pieces:
        step = matcher.push(piece)
        text += step.text
        if step.stopped:
            return TextStep(text, stopped=True)
    last = matcher.flush()
    return TextStep(text + last.text, last.stopped)


@given(pieces=st.lists(st.text(ALPHABET, max_size=4), max_size=12), stops=STOPS)
@settings(max_examples=500, deadline=None)
def test_the_cut_does_not_depend_on_how_the_text_is_split(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    found = [text.find(stop) for stop in stops if stop in text]
    expected = TextStep(text[: min(found)], stopped=True) if found else TextStep(text)
    assert cut(pieces, stops) == expected


@given(pieces=st.lists(st.text(ALPHABET, max_size=4), max_size=12), stops=STOPS)
@settings(max_examples=300, deadline=None)
def test_only_what_may_become_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    matcher, seen, given_out = StopStrings(stops), "", ""
    for piece in pieces:
        step = matcher.push(piece)
        seen, given_out = seen + piece, given_out + step.text
        if step.stopped:
            return
        held = seen[len(given_out) :]
        assert seen == given_out + held
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_string_ends_the_text_as_soon_as_it_is_complete() -> None:
    matcher = StopStrings(["\n\n", "END"])
    assert matcher.push("one E") == TextStep("one ")
    assert matcher.push("N") == TextStep("")
    assert matcher.push("D two") == TextStep("", stopped=True)


def test_a_false_start_is_given_out() -> None:
    matcher = StopStrings(["END"])
    assert matcher.push("E") == TextStep("")
    assert matcher.push("Nd") == TextStep("ENd")


def test_a_longer_stop_string_that_begins_earlier_is_waited_for() -> None:
    assert cut(["abc", "d"], ["abcd", "c"]) == TextStep("", stopped=True)
    assert cut(["abc", "x"], ["abcd", "c"]) == TextStep("ab", stopped=True)
    assert cut(["abc"], ["abcd", "c"]) == TextStep("ab", stopped=True)


def test_of_two_that_begin_together_the_shorter_does_not_wait_for_the_longer() -> None:
    assert StopStrings(["abcd", "ab"]).push("xab") == TextStep("x", stopped=True)


def test_without_stop_strings_text_passes_through() -> None:
    matcher = StopStrings([])
    assert matcher.push("all of it") == TextStep("all of it")
    assert matcher.flush() == TextStep("")
