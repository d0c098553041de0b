"""The kinds of questions that are asked on the beginning of an article."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from recipes.question import Kind, about, clause, when_or_where

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_CAPITAL = rf"(?!(?:{_MONTHS})\b)[A-Z][\w.'’-]*"
_NAME = rf"{_CAPITAL}(?:(?: (?:of|the|de|van|von|and|al))* {_CAPITAL})*"
_YEAR = r"1\d{3}|20\d\d"
_NUMBER = r"(?<![\d.,–-])\d+(?:,\d{3})*(?:\.\d+)?(?: [mb]illion)?"
_END = (
    r"(?=(?: (?:in|by|of|to|for|from|on|with|at|through|during|into))? (?:which|whom|whose) "
    r"|,|;|:|\.(?:\s|$)|\s\(| that | who | where | when | and is | and was | but "
    r"| used | located | situated | known | named | called | made | caused | characteri[sz]ed | consisting "
    r"| written | founded | born | spoken | native | developed | designed | formed | found | based "
    r"| usually | typically | often | commonly | primarily | mainly | mostly | generally | widely )"
)
_LISTED = re.compile(r", (?!(?:and|or|a|an|the|in|of|as|with|where)\b)[a-z]")
_DONE = (
    "written|founded|created|invented|discovered|developed|directed|painted|designed|built|led|ruled|composed"
    "|published|introduced|established|produced|coined|proposed|formed|described|owned|used|influenced|defeated"
)
_NO_PREPOSITION = "(?!(?:in|on|at|from|of|and|or|to|with|for|as|during|under|after|by|between|until|into) )"
_PEOPLE = r"[A-Z][\w-]*(?:ish|an|ese|ench|eek|ch)"
_OFFICE = rf"(?:{_PEOPLE} )?(?:{_NO_PREPOSITION}[a-z-]+ ){{1,3}}"
_AUTHOR = rf"(?:the )?(?:{_OFFICE})?(?!{_PEOPLE} [a-z])(?P<answer>{_NAME})"
"""A name, maybe after an office, which is no part of the answer: 'the Italian scientist Alessandro Volta'."""
_COUNTED = (
    "people|species|inhabitants|members|genera|languages|islands|countries|students|speakers|residents|states"
    "|kilomet(?:er|re)s|met(?:er|re)s|feet|miles|square kilomet(?:er|re)s|square miles|acres"
    "|years|days|km|m|ft"
)
_PLACE = (
    "city|town|country|region|province|island|state|river|lake|mountain|desert|university|museum|kingdom|district"
    "|volcano|park|village|port|peninsula|county"
)
_BEHIND = "in|on|at|along|near|off"
_COURSE = r"(?:the )?(?:[a-z]+ (?:part|coast|shore|half|end|region|bank)s? of (?:the )?)?"


def kinds() -> tuple[Kind, ...]:
    """All kinds of questions."""
    return (*_of_people(), *_of_places(), *_of_things(), *_of_events())


def _kind(
    name: str,
    pattern: str,
    put: Callable[[str, re.Match[str]], str],
    *,
    first_only: bool = False,
    of_subject: bool = False,
    once: bool = False,
) -> Kind:
    return Kind(name, re.compile(pattern), put, first_only, of_subject, once)


def _what(title: str, match: re.Match[str]) -> str:
    """No question where the answer is 'a long' of 'a long, narrow boat'."""
    listed = _LISTED.match(match.string, match.end("answer")) and len(match["answer"].split()) == 2
    return "" if listed else f"What is {title}?"


def _of_people() -> Iterator[Kind]:
    when_where = rf"(?:on [\w ]+,? )?(?:in|at) (?P<answer>{_YEAR}|{_NAME})"
    yield _kind("born", rf"\bborn {when_where}", when_or_where("was {title} born"), of_subject=True)
    yield _kind("died", rf"\b(?:died|death) {when_where}", when_or_where("did {title} die"), of_subject=True)
    yield _kind(
        "nation",
        r"^[^.]*? (?:was|is) an? (?:[a-z]+ )?(?P<answer>(?:(?:South|North|New|Ancient) )?[A-Z][a-z]+"
        r"(?:-[A-Z][a-z]+)?) (?:[A-Z]\w+ )?[a-z]",
        about("Of what nation or culture is {title}?"),
        first_only=True,
    )


def _of_places() -> Iterator[Kind]:
    yield _kind(
        "capital",
        r"\bcapital (?:city )?(?:and (?:[\w-]+ )?(?:largest|most populous) (?:city|town) )?of (?:the )?"
        rf"(?P<answer>{_NAME})",
        about("What is {title} the capital of?"),
        first_only=True,
    )
    yield _kind(
        "population",
        rf"\bpopulation of (?:[a-z]+ ){{0,3}}?(?P<answer>{_NUMBER})",
        about("What is the population of {title}?"),
        of_subject=True,
        once=True,
    )
    yield _kind(
        "where",
        rf"\b(?:located|situated|lies|lying|found) (?:[a-z]+ly )?(?:{_BEHIND}) (?P<answer>{_COURSE}{_NAME})",
        about("Where is {title} located?"),
        of_subject=True,
    )
    yield _kind(
        "country",
        rf"^[^,.]* (?:is|was) (?:an?|the) (?:[\w-]+ ){{0,3}}(?:{_PLACE}) (?:in|of|off) "
        rf"(?P<answer>(?:the )?(?:[a-z]+ )?{_NAME}(?: (?:{_PLACE}|prefecture) of {_NAME})?)",
        about("Where is {title}?"),
        first_only=True,
    )


def _of_things() -> Iterator[Kind]:
    yield _kind("symbol", r"\bsymbol (?P<answer>[A-Z][a-z]?)\b", about("What is the symbol of {title}?"))
    yield _kind("number", r"\batomic number (?P<answer>\d+)", about("What is the atomic number of {title}?"))
    yield _kind(
        "eponym",
        rf"\bnamed (?:after|for) {_AUTHOR}",
        about("What is {title} named after?"),
        of_subject=True,
    )
    yield _kind(
        "alias",
        r"^.{,80}?\b(?:also|commonly|better|formerly|sometimes|simply) (?:known|called|spelled|referred to) "
        rf"(?:as )?(?!for |to |by )(?P<answer>[^,.;:()]+?)(?:(?= or | and | is | are | was )|{_END})",
        about("By what other name is {title} known?"),
        of_subject=True,
    )
    yield _kind(
        "field",
        r"^In (?!general|addition|contrast|particular|many)(?P<answer>[a-z][a-z ]+(?: and [a-z]+)?), ",
        about("In which field does one speak of {title}?"),
        first_only=True,
    )
    yield _kind(
        "what",
        rf"^.{{2,80}}? (?:is|was|are|were|refers to) (?P<answer>(?:an?|the|one of) [^,.;:()]+?){_END}",
        _what,
        first_only=True,
    )


def _of_events() -> Iterator[Kind]:
    yield _kind("year", rf"(?P<lead>(?:\S+ ){{3,}})in (?P<answer>{_YEAR})\b", clause("In which year"))
    yield _kind(
        "agent",
        rf"(?P<lead>(?:\S+ ){{2,}}(?:{_DONE}) )by {_AUTHOR}",
        clause("By whom"),
    )
    yield _kind(
        "count",
        rf"(?P<answer>{_NUMBER}) (?P<unit>{_COUNTED})\b",
        about("How many {unit} does the text on {title} speak of?"),
        once=True,
    )
