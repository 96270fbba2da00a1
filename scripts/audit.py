"""The whole audit: every kind of training step on a simulated MPS device, and real sizes.

    python scripts/audit.py [--only WORD] [--json FILE]

Prints a line for each case, what was found, and the predicted peak memory of models that someone
would train, beside what it would be with attention that keeps its scores; exit code 1 if anything
was found. Some twenty minutes on one core.
"""

import argparse
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

from wmtp.audit.cases import FULL_SIZES, Case, full_size_case, matrix
from wmtp.audit.run import AuditResult, CaseResult, run_audit
from wmtp.audit.trace import PARTS


def full_sizes() -> list[Case]:
    """Training steps of the large models, from the least memory to what a Mac may hold."""
    ways = ((1, False), (4, True))
    return [
        full_size_case(size, precision, batch_size, checkpointing=checkpointing)
        for size, precision, (batch_size, checkpointing) in product(
            FULL_SIZES, ("fp32", "bf16"), ways
        )
    ]


def print_case(result: CaseResult) -> None:
    print(result, flush=True)


def audited(cases: list[Case]) -> AuditResult:
    result = run_audit(cases, print_case)
    print("\n".join(result.lines()[len(result.cases) :]), flush=True)
    return result


def print_peaks(cases: list[Case], tiled: AuditResult) -> None:
    """What the large models hold at their peak, and what they would hold otherwise."""
    untiled = run_audit([replace(case, tiled_attention=False) for case in cases], rules=(), steps=2)
    columns = ("all", *PARTS, "untiled", "logits")
    print("\nPredicted peaks in GiB: who holds them; in all without tiled attention;")
    print("and the logits [B, S, H, V] of all heads, which never exist, once.\n")
    print(f"{'':34}", *(f"{name:>11}" for name in columns))
    for case, one, other in zip(cases, tiled.cases, untiled.cases, strict=True):
        recipe = case.settings.recipe
        rows = recipe.data.train.batch_size * recipe.data.train.max_length
        logits = 4 * rows * recipe.model.heads.horizon * (recipe.model.vocab_size or 0)
        held = [one.peak_by_part.get(part, 0) for part in PARTS]
        figures = [one.peak_bytes, *held, other.peak_bytes, logits]
        print(f"{one.case:34}", *(f"{figure / 2**30:11.2f}" for figure in figures), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", type=Path, help="write what was found there")
    arguments = parser.parse_args()
    small, large = (
        [one for one in cases if arguments.only in one.name] for cases in (matrix(), full_sizes())
    )
    results = [audited(cases) for cases in (small, large) if cases]
    if large:
        print_peaks(large, results[-1])
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([one.as_dict() for one in results]) + "\n")
    return 0 if all(one.ok for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
