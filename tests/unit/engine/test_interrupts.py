"""Ctrl-C, and what else ends a step from outside, with real signals."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pgmoe.engine.interrupts import interrupts_deferred
from pgmoe.engine.llm import LLM
from pgmoe.gating.on_demand import OnDemand
from pgmoe.request import RequestOutput, SamplingParams
from pgmoe.routing import Prediction, Routing

PARAMS = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
QUESTIONS = ("Bread", "How far is the moon?")


class Striking(OnDemand):
    """Lets something strike in the second layer of the pass in which it is due."""

    predicts = True
    limited = False
    exact = False
    reach = 1

    def __init__(self) -> None:
        self.due_in: int | None = None
        self.exits = False

    def begin(self, sequences: Sequence[str]) -> None:
        if self.due_in is not None:
            self.due_in -= 1

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        if self.due_in == 0 and routing.layer == 1:
            self.due_in = None
            if self.exits:
                raise SystemExit(3)
            signal.raise_signal(signal.SIGINT)
        return ()


@pytest.fixture(scope="module")
def striking() -> Striking:
    return Striking()


@pytest.fixture(scope="module")
def llm(tiny_chat: Path, striking: Striking) -> Iterator[LLM]:
    with LLM(tiny_chat, device="cpu", max_running=2, wrap_gating=lambda _: striking) as llm:
        yield llm


def tokens(pieces: Sequence[RequestOutput]) -> tuple[int, ...]:
    return tuple(token for piece in pieces for token in piece.token_ids)


@pytest.mark.parametrize("due_in", [1, 2])
def test_ctrl_c_in_a_step_waits_for_its_end_and_spoils_no_answer(
    llm: LLM, striking: Striking, due_in: int
) -> None:
    expected = [answer.token_ids for answer in llm.generate(QUESTIONS, PARAMS)]
    first, second = (llm.stream(question, PARAMS) for question in QUESTIONS)
    begun = [next(first), next(second)]
    striking.due_in = due_in  # the first one's turn or the second one's, within one step
    with pytest.raises(KeyboardInterrupt):
        list(first)
    assert tokens([begun[1], *second]) == expected[1]
    assert llm.generate([QUESTIONS[0]], PARAMS)[0].token_ids == expected[0]


def test_an_exit_in_the_midst_of_a_step_spoils_no_other_answer(llm: LLM, striking: Striking) -> None:
    expected = [answer.token_ids for answer in llm.generate(QUESTIONS, PARAMS)]
    first, second = (llm.stream(question, PARAMS) for question in QUESTIONS)
    next(first)
    begun = next(second)
    striking.due_in, striking.exits = 2, True
    try:
        with pytest.raises(SystemExit):
            list(first)
    finally:
        striking.exits = False
    assert tokens([begun, *second]) == expected[1]  # the step is run again
    assert llm.generate([QUESTIONS[0]], PARAMS)[0].token_ids == expected[0]


def test_the_second_ctrl_c_acts_at_once() -> None:
    reached = []

    def strike_twice() -> None:
        with interrupts_deferred():
            for number in range(3):
                reached.append(number)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        strike_twice()
    assert reached == [0, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_not_lost_where_the_block_fails() -> None:
    def fail() -> None:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        fail()
