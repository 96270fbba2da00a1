"""Reference solutions pass, buggy ones fail: a few in every run, all with make judge-check."""

import json
import os
from pathlib import Path

import pytest

from wmtp.evaluation import Case, Judge, Limits
from wmtp.evaluation.problems import Problem, load_problems

DATA = Path(os.environ.get("WMTP_DATA") or "absent") / "code"
FULL = os.environ.get("WMTP_JUDGE_CHECK") == "full"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="WMTP_DATA names no folder with code/")
only_full = pytest.mark.skipif(not FULL, reason="make judge-check")


def sample(cases: list[Case], every: int) -> list[Case]:
    return cases if FULL else cases[::every]


def references(source: str) -> list[Case]:
    found = []
    for problem in load_problems(source).values():
        assert problem.reference is not None
        found.append(problem.case(problem.reference, Limits(), problem.name))
    return found


def pack(key: str) -> list[Case]:
    path = DATA / "humanevalpack_python.jsonl"
    problems = load_problems(str(path))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    named = zip(problems.values(), rows, strict=True)
    limits = Limits(seconds=3.0 if FULL else 0.7)
    return [p.case(p.beginning + row[key], limits, p.name) for p, row in named]


def statuses(judge: Judge, cases: list[Case], workers: int = 2) -> dict[object, str]:
    return {case.name: verdict.status for case, verdict in judge.judge_many(cases, workers)}


@pytest.mark.parametrize(("source", "count", "every"), [("humaneval", 164, 8), ("mbpp", 974, 30)])
def test_reference_solutions_pass(judge: Judge, source: str, count: int, every: int) -> None:
    cases = references(source)
    assert len(cases) == count
    found = statuses(judge, sample(cases, every))
    assert {name: status for name, status in found.items() if status != "passed"} == {}


def test_buggy_solutions_fail_and_their_corrections_pass(judge: Judge) -> None:
    buggy, correct = sample(pack("buggy_solution"), 8), sample(pack("canonical_solution"), 16)
    assert "passed" not in statuses(judge, buggy).values()
    assert set(statuses(judge, correct).values()) == {"passed"}


def test_verdicts_do_not_depend_on_the_number_of_workers(judge: Judge) -> None:
    cases = sample([*references("humaneval"), *pack("buggy_solution")], 40)
    for number, case in enumerate(cases):
        object.__setattr__(case, "name", number)
    assert statuses(judge, cases, 1) == statuses(judge, cases, 3)


@pytest.mark.usefixtures("busy_machine")
def test_verdicts_do_not_depend_on_other_work(judge: Judge) -> None:
    """A program that needs most of its time is not taken for one that has none left."""
    busy = (
        "import time\ndef f(x):\n end = time.process_time() + 0.35\n"
        " while time.process_time() < end: pass\n return x"
    )
    limits = Limits(seconds=0.7)
    cases = [Case(busy, "assert f(1) == 1", limits=limits, name=number) for number in range(4)]
    cases += [Case("while True: pass", "f()", limits=limits, name="endless")]
    cases += sample([*references("humaneval")], 40)
    found = statuses(judge, cases, 2)
    assert found.pop("endless") == "timeout"
    assert set(found.values()) == {"passed"}


@only_full
@pytest.mark.usefixtures("busy_machine")
def test_buggy_solutions_fail_on_a_busy_machine(judge: Judge) -> None:
    assert "passed" not in statuses(judge, pack("buggy_solution")).values()


def test_the_contest_format_is_read_and_judged(judge: Judge) -> None:
    path = DATA / "contest_format.jsonl"
    problems = list(load_problems(str(path)).values())
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [problem.kind for problem in problems] == ["stdio", "stdio"]
    assert problems[0].seconds == 4.0
    assert problems[0].memory_mb == 256
    every = 4 if FULL else 80
    agreed = total = 0
    for problem, row in zip(problems, rows, strict=True):
        for key, label in (("solutions", True), ("incorrect_solutions", False)):
            programs = row[key]["solution"][::every]
            cases = [
                problem.case(program, Limits(), number) for number, program in enumerate(programs)
            ]
            found = statuses(judge, cases)
            agreed += sum((status == "passed") == label for status in found.values())
            total += len(found)
    # "a few labels are wrong", says the data's own page
    assert agreed / total > 0.9, (agreed, total)


def test_problems_know_what_their_data_say() -> None:
    mbpp, humaneval = load_problems("mbpp"), load_problems("humaneval")
    assert mbpp["Mbpp/123"].seconds == 60.0
    assert "\r" not in mbpp["Mbpp/1"].tests
    assert isinstance(mbpp["Mbpp/367"].tests, str)
    assert mbpp["Mbpp/367"].tests.startswith("root = Node(1)")
    poly: Problem = humaneval["HumanEval/32"]
    assert isinstance(poly.tests, str)
    assert "def poly" in poly.tests, "the tests have their own"
    assert "def find_zero" not in poly.tests


def test_a_helper_of_the_prompt_cannot_be_replaced(judge: Judge) -> None:
    poly = load_problems("humaneval")["HumanEval/32"]
    forged = poly.beginning + "    return 0.0\n\ndef poly(xs, x): return 0.0\n"
    verdict = judge.judge(forged, poly.tests)
    assert verdict.status == "failed", verdict
