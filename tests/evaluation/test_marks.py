"""What was to be reached, beside what was."""

from typing import Any

import pytest

from tests.model.toys import toy_model
from wmtp.errors import ConfigError
from wmtp.evaluation.marks import compare_with_marks, read_marks
from wmtp.evaluation.speed import measure_speed

MARKS = {"bits_per_byte": 0.685, "tokens_per_second": 50.0}


def test_each_mark_is_met_or_missed_on_its_own_side() -> None:
    assert [m.met for m in compare_with_marks(MARKS, 0.684, 49.0)] == [True, False]
    assert [m.met for m in compare_with_marks(MARKS, 0.686, 51.0)] == [False, True]
    assert [m.met for m in compare_with_marks(MARKS, 0.685, 50.0)] == [False, False]
    assert [m.met for m in compare_with_marks(MARKS, None, 60.0)] == [None, True]
    assert "missed by 0.015" in compare_with_marks(MARKS, 0.7, None)[0].line()
    assert "not measured" in compare_with_marks(MARKS, 0.7, None)[1].line()


def test_marks_are_read_from_settings() -> None:
    assert read_marks({"evaluation": {"marks": {**MARKS}}}, "run.yaml") == MARKS
    no_mark = {"evaluation": {"marks": {"bits_per_byte": None}}}
    for nothing in (None, {}, {"evaluation": None}, {"evaluation": {"marks": None}}, no_mark):
        assert read_marks(nothing, "run.yaml") == {}


@pytest.mark.parametrize(
    "marks", [3, {"speed": 1}, {"bits_per_byte": "1"}, {"bits_per_byte": 0},
              {"bits_per_byte": True}, {"bits_per_byte": float("nan")}],
)  # fmt: skip
def test_marks_that_are_none_are_refused(marks: Any) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml: evaluation.marks must hold"):
        read_marks({"evaluation": {"marks": marks}}, "run.yaml")


def test_speed_counts_what_came_after_the_prompts() -> None:
    model = toy_model(2, max_seq_length=32).eval()
    figures = measure_speed(model, [[1, 2, 3], [4]], max_new_tokens=5, speculative=0)
    assert figures is not None
    assert (figures.texts, figures.tokens, figures.tokens_per_pass) == (2, 8, 1.0)
    assert figures.tokens_per_second == pytest.approx(8 / figures.seconds)
    assert measure_speed(model, [], max_new_tokens=5) is None
    assert measure_speed(model, [[1]], max_new_tokens=1) is None
