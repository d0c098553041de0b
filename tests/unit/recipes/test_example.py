from __future__ import annotations

from pathlib import Path

from recipes.example import Example, Task, divide

EXAMPLES = [
    Example(f"{kind} is {thing}?", f"{kind}-{thing % 3}", (f"{kind}-{thing % 3}", "any"), f"Thing {thing}")
    for thing in range(100)
    for kind in ("what", "where")
]


def test_nothing_is_asked_about_in_both_parts() -> None:
    task = divide("some", EXAMPLES, 20)
    about = [{item.about for item in part} for part in (task.train, task.test)]
    assert not about[0] & about[1]
    assert sorted(task.train + task.test, key=str) == sorted(EXAMPLES, key=str)


def test_the_test_has_as_many_as_asked_for_or_the_rest_of_a_group_more() -> None:
    assert len(divide("some", EXAMPLES, 19).test) == 20


def test_the_division_does_not_depend_on_the_order() -> None:
    assert divide("some", reversed(EXAMPLES), 20) == divide("some", EXAMPLES, 20)


def test_names_that_differ_in_case_only_are_one_thing() -> None:
    pairs = [Example(f"p{n} {name}", "a", ("a",), name) for n in range(40) for name in (f"x{n}", f"X{n}")]
    task = divide("some", pairs, 20)
    assert not {item.about.casefold() for item in task.train} & {item.about.casefold() for item in task.test}


def test_a_prompt_comes_once() -> None:
    twice = [*EXAMPLES, *(Example(item.prompt, "z", ("z",), item.about) for item in EXAMPLES)]
    assert divide("some", twice, 20) == divide("some", EXAMPLES, 20)


def test_the_most_frequent_answer_is_scored_by_the_references() -> None:
    train = tuple(Example("", answer, (answer,)) for answer in ("b", "a", "b"))
    test = tuple(Example("", answers[0], answers) for answers in (("a", "b"), ("a",), ("b",), ("c",)))
    assert Task("some", train, test).majority_exact_match() == 0.5


def test_files_hold_what_was_made(tmp_path: Path) -> None:
    task = divide("some", EXAMPLES, 20)
    task.save(tmp_path / "some")
    loaded = Task.load(tmp_path / "some")
    assert loaded.name == "some"
    for read, made in ((loaded.train, task.train), (loaded.test, task.test)):
        assert [(item.prompt, item.completion, item.references) for item in read] == [
            (item.prompt, item.completion, item.references) for item in made
        ]
