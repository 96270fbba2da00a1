"""The whole audit: every kind of training step on a simulated MPS device, and real sizes.

    python scripts/audit.py [--only WORD] [--json FILE]

Prints a line for each case, what was found, and the predicted peak memory of models that someone
would train; exit code 1 if anything was found.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from wmtp.audit.cases import FULL_SIZES, Case, full_size_case, matrix
from wmtp.audit.run import AuditResult, CaseResult, run_audit
from wmtp.audit.trace import PARTS


def full_sizes() -> list[Case]:
    return [
        full_size_case(size, precision, batch_size, checkpointing=checkpointing)
        for size in FULL_SIZES
        for precision in ("fp32", "bf16")
        for batch_size, checkpointing in ((1, False), (1, True), (4, False), (4, True))
    ]


def print_case(result: CaseResult) -> None:
    print(result, flush=True)


def print_peaks(results: Sequence[CaseResult]) -> None:
    print(f"\n{'predicted peak, GiB':34} {'all':>7}", *(f"{part:>11}" for part in PARTS))
    for one in results:
        parts = (f"{one.peak_by_part.get(part, 0) / 2**30:11.2f}" for part in PARTS)
        print(f"{one.case:34} {one.peak_bytes / 2**30:7.2f}", *parts)


def audited(cases: Sequence[Case]) -> AuditResult:
    result = run_audit(cases, print_case)
    print("\n".join(result.lines()[len(result.cases) :]), flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", type=Path, help="write what was found there")
    arguments = parser.parse_args()
    small, large = (
        [case for case in cases if arguments.only in case.name]
        for cases in (matrix(), full_sizes())
    )
    results = [audited(cases) for cases in (small, large) if cases]
    if large:
        print_peaks(results[-1].cases)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([one.as_dict() for one in results]) + "\n")
    return 0 if all(one.ok for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
