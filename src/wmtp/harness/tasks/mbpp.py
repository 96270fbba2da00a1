"""What the harness asks of its task ``wmtp_mbpp``."""

from functools import cache
from typing import Any

import datasets

from wmtp.evaluation import Judge
from wmtp.evaluation.code_suites import Trial, chosen_problems
from wmtp.evaluation.continuations import Wanted
from wmtp.evaluation.problems import Problem
from wmtp.evaluation.prompts import FORMATS
from wmtp.evaluation.sandbox.verdict import Limits


def problems(**_: Any) -> dict[str, datasets.Dataset]:
    """The problems of the test split, as the harness keeps data."""
    rows = [
        {
            "task_id": name,
            "prompt": FORMATS["mbpp"].prompt(problem),
            "reference": problem.reference or "",
        }
        for name, problem in _known().items()
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the judge lets a program pass."""
    problem = _known()[document["task_id"]]
    case = problem.case(results[0], Limits())
    verdict = _judge().judge(case.program, case.tests, case.kind, case.limits)
    return {"pass_at_1": float(verdict.passed)}


@cache
def _known() -> dict[str, Problem]:
    return chosen_problems("mbpp", Trial("mbpp", "test", FORMATS["mbpp"], Wanted(), Limits()))


@cache
def _judge() -> Judge:
    return Judge()
