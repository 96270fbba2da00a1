"""Verdicts as rewards: what the critic learns right and wrong programs from."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wmtp.evaluation.prompts import FORMATS
from wmtp.evaluation.samples import Sample


def reward_lines(samples: Iterable[Sample], passed: Mapping[int, bool]) -> Iterator[bytes]:
    """A JSON line for each program, as ``data.rewards.sources`` reads them (``docs/critic.md``).

    ``prompt`` is the problem as models are asked, ``completion`` the program, ``is_correct`` what
    the judge says of it, and ``group`` the problem, among whose programs pairs are made.

    Args:
        samples: programs; one that is empty, or has what no text may have, is left out.
        passed: the judge's word on each, by the sample's number.
    """
    for sample in samples:
        program = sample.program.removeprefix(sample.problem.beginning)
        if not program.strip() or "\0" in program:
            continue
        row: dict[str, Any] = {
            "prompt": FORMATS[sample.problem.suite].prompt(sample.problem),
            "completion": program,
            "is_correct": passed[sample.number],
            "group": sample.problem.name,
        }
        yield json.dumps(row).encode() + b"\n"
