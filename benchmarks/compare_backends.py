"""All backends of this machine side by side: what ``wmtp bench`` measures, a column for each.

    python benchmarks/compare_backends.py                        all that there are
    python benchmarks/compare_backends.py --report backends.json write the figures as well
    python benchmarks/compare_backends.py --only cpu             some of them

The last columns are each backend's figure over the CPU's. The JSON is a report of ``wmtp bench``:
``wmtp bench --compare A.json B.json`` takes it.
"""

import argparse
import sys
from pathlib import Path

from wmtp.runtime.environment import set_environment_before_torch


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--only", nargs="+", metavar="BACKEND", help="of cuda, mps, cpu")
    parser.add_argument("--smoke", action="store_true", help="toy sizes; the times mean nothing")
    given = parser.parse_args()
    set_environment_before_torch()
    from wmtp.bench.bench import run_bench
    from wmtp.bench.cases import TOY, Effort
    from wmtp.runtime.device import available_kinds

    kinds = [kind for kind in available_kinds() if not given.only or kind in given.only]
    if not kinds:
        print(f"This machine has only {', '.join(available_kinds())}.", file=sys.stderr)
        sys.exit(2)

    def say(line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)

    report = run_bench(say, TOY if given.smoke else Effort(), kinds)
    print("\n".join(table(report, kinds)))
    if given.report is not None:
        given.report.write_text(report.text(), encoding="utf-8")


def table(report, kinds) -> list[str]:
    """Markdown: a row for each figure, a column for each backend."""
    from wmtp.bench.figures import shown

    values = {figure.place: figure for figure in report.figures}
    rows = dict.fromkeys((f.subject, f.precision, f.mode) for f in report.figures)
    others = [kind for kind in kinds if kind != "cpu" and "cpu" in kinds]
    header = ["", *kinds, *(f"{kind} over cpu" for kind in others)]
    lines = [f"{report.chip}, {report.system}, torch {report.torch}", ""]
    lines += [as_row(header), "|---" * len(header) + "|"]
    for subject, precision, mode in rows:
        here = {kind: values.get((subject, kind, precision, mode)) for kind in kinds}
        cells = [shown(found) if found else "" for found in here.values()]
        for kind in others:
            both = here[kind], here["cpu"]
            there = both[0] is not None and both[1] is not None and both[1].value
            cells.append(f"{both[0].value / both[1].value:.2f}" if there else "")
        lines.append(as_row([f"{subject}, {precision} {mode}", *cells]))
    lines += [f"\nnot measured: {one.what} ({one.why})" for one in report.left_out]
    return lines


def as_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
