"""``wmtp judge``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from wmtp.cli.apps import app
from wmtp.cli.options import Verbose, note
from wmtp.errors import ConfigError

_LARGEST_SHOWN = 10**6
"""Denominator of an exact share that a person would read."""


@app.command()
def judge(
    samples: Annotated[
        Path,
        typer.Argument(help="JSONL with task_id and completion or solution; or a contest."),
    ],
    problems: Annotated[str, typer.Option(help="humaneval, mbpp, or a file of problems.")],
    workers: Annotated[int, typer.Option(min=1, help="Programs that run at a time.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Verdicts, one a line; continued if it is there.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of processor time for a program.")] = 3.0,
    memory: Annotated[int, typer.Option(min=1, help="MiB for a program.")] = 1024,
    k: Annotated[
        str | None, typer.Option(help="Which pass@k; by default 1,10,100 as far as samples go.")
    ] = None,
    rewards: Annotated[
        Path | None,
        typer.Option(help="Also write programs with verdicts for the critic to learn from."),
    ] = None,
    isolation: Annotated[
        str | None,
        typer.Option(help="kernel, bubblewrap, seatbelt or wasm; by default the first that holds."),
    ] = None,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Run programs though nothing confines them.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Run programs that models wrote, confined, and say how many solve their problems."""
    from wmtp.evaluation.problems import load_problems
    from wmtp.evaluation.rewards import reward_lines
    from wmtp.evaluation.samples import check_k, evalplus_path, judge_samples, read_samples
    from wmtp.evaluation.sandbox.verdict import STATUSES, Limits
    from wmtp.runtime.durable import replace_file, storage_errors

    wanted = _whole_numbers(k) if k is not None else ()
    try:
        limits = Limits(seconds=timeout, memory_mb=memory)
    except ValueError as error:
        raise ConfigError(f"--timeout {timeout}, --memory {memory}: {error}.") from error
    known = load_problems(problems)
    read = read_samples(samples, known)
    check_k(read, wanted)
    path = out or samples.with_name(f"{samples.name.removesuffix('.jsonl')}_results.jsonl")
    outcome = judge_samples(read, path, limits, workers, unsafe, _progress(), isolation)

    missing = len(known) - len(outcome.counts)
    if missing:
        note(f"{missing} of {len(known)} problems have no sample and are not counted")
    if outcome.judged < len(read):
        note(f"{len(read) - outcome.judged} of {len(read)} had been judged before")
    least = min(n for n, _ in outcome.counts.values())
    for number in wanted or [number for number in (1, 10, 100) if number <= least]:
        value = outcome.pass_at(number)
        exact = f"{value} over" if value.denominator < _LARGEST_SHOWN else "over"
        print(f"pass@{number}: {float(value):.4f}  ({exact} {len(outcome.counts)} problems)")
    found = [f"{outcome.statuses[s]} {s}" for s in STATUSES if s in outcome.statuses]
    print(f"{len(read)} samples: {', '.join(found)}")
    print(f"isolation: {outcome.isolation}")
    print(f"{path}, {evalplus_path(path)}")
    if rewards is not None:
        lines = b"".join(reward_lines(read, outcome.passed))
        with storage_errors(f"{rewards} could not be written"):
            replace_file(rewards, lines)
        print(rewards)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--k is {text!r}. Use numbers such as 1,10,100.") from error


def _progress(seconds: float = 10.0) -> Callable[[int, int], None]:
    import time

    told_at = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= seconds:
            told_at = time.monotonic()
            note(f"{done} of {total} judged")

    return tell
