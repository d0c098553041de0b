from __future__ import annotations

import math

import pytest

from pgmoe.errors import ConfigError
from recipes.scores import Interval, score_answers, score_summaries


def test_case_punctuation_and_articles_do_not_count() -> None:
    assert score_answers(["The  Robin!"], [["a robin"]]).exact_match == 100


def test_the_best_reference_counts_and_the_mean_is_over_the_answers() -> None:
    score = score_answers(["song thrush", "owl"], [["bird", "thrush"], ["eagle"]])
    assert score.exact_match == 0
    assert score.f1 == pytest.approx(100 * (2 / 3) / 2)  # precision 1/2 and recall 1; no word in common


def test_words_that_come_twice_count_twice() -> None:
    score = score_answers(["new new york"], [["new york city"]])
    assert score.f1 == pytest.approx(100 * 2 / 3)  # two of three words, both ways


def test_an_empty_answer_is_wrong() -> None:
    score = score_answers(["", "robin"], [["robin"], ["robin"]])
    assert (score.exact_match, score.f1) == (50, 50)


def test_rouge_is_the_f_of_words_pairs_and_common_sequences() -> None:
    score = score_summaries(["cities in the north"], [["large city in north Wales"]])
    # "citi" (the stem), "in", "north": 3 of 4 and 3 of 5 words; "citi in": 1 of 3 and 1 of 4 pairs
    assert score.rouge1 == pytest.approx(100 * 2 * 3 / 9)
    assert score.rouge2 == pytest.approx(100 * 2 * 1 / 7)
    assert score.rouge_l == pytest.approx(100 * 2 * 3 / 9)


def test_a_perfect_summary_has_full_marks_with_any_number_of_references() -> None:
    score = score_summaries(["city in Wales", "bird"], [["town", "city in Wales"], ["bird"]])
    assert (score.rouge1, score.rouge_l) == (100, 100)
    assert score.rouge2 == 50  # one word has no pairs
    assert score.chrf == pytest.approx(100)


def test_chrf_sees_half_right_words() -> None:
    near, far = (score_summaries([text], [["ornithology"]]) for text in ("ornithologist", "geometry"))
    assert near.rouge1 == far.rouge1 == 0
    assert near.chrf > 60 > 20 > far.chrf


def test_a_summary_with_nothing_in_common_has_none() -> None:
    score = score_summaries([""], [["city in Wales"]])
    assert (score.rouge1, score.rouge2, score.rouge_l, score.chrf) == (0, 0, 0, 0)


@pytest.mark.parametrize("score", [score_answers, score_summaries])
def test_lists_that_do_not_match_are_refused(score: type) -> None:
    for predictions, references in (([], []), (["a"], []), (["a"], [["a"], ["b"]])):
        with pytest.raises(ConfigError, match="give as many of both"):
            score(predictions, references)
    with pytest.raises(ConfigError, match="without any reference"):
        score(["a"], [[]])


def test_the_interval_is_students() -> None:
    interval = Interval.of([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t table, two degrees
    assert interval.text() == "2.0 ± 2.5"


def test_equal_results_leave_no_doubt_and_one_result_no_interval() -> None:
    assert Interval.of([5.0, 5.0]) == Interval(5, 0)
    with pytest.raises(ConfigError, match="two seeds or more, and there are 1"):
        Interval.of([5.0])
