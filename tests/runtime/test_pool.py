"""Work shared out among processes: in order or not, ended by an error or a kill."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wmtp.errors import DataError, WorkerError
from wmtp.runtime.pool import pool


def slow_first(tool: str, task: int) -> str:
    time.sleep(0.5 if task == 0 else 0.0)
    return f"{tool}{task}"


def refuse(tool: str, task: int) -> int:
    if task == 1:
        raise DataError(f"{tool}{task}")
    time.sleep(60)
    return task


def end_itself(tool: str, task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1])
def test_one_worker_is_this_process_and_works_when_asked(workers: int) -> None:
    with pool(workers, "a") as run:
        results = run(slow_first, iter([1, 2]))
        assert next(iter(results)) == "a1"
        assert multiprocessing.active_children() == []


def test_results_come_in_order_or_as_they_are_ready_and_few_tasks_are_taken() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for task in range(12):
            taken += 1
            yield task

    expected = [f"a{task}" for task in range(12)]
    with pool(2, "a") as run:
        ordered = run(slow_first, tasks(), in_order=True)
        assert next(iter(ordered)) == "a0"
        assert taken <= 5
        assert list(ordered) == expected[1:]
        as_ready = list(run(slow_first, tasks()))
    assert sorted(as_ready) == sorted(expected)
    assert as_ready[0] != "a0"
    assert multiprocessing.active_children() == []


def test_an_error_ends_all_processes_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match="a1"), pool(2, "a") as run:
        list(run(refuse, range(4)))
    assert time.monotonic() - began < 30  # the others would sleep for a minute
    for process in multiprocessing.active_children():
        process.join(10)
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerError, match="a worker was killed.*fewer than 2 --workers"),
        pool(2, "a") as run,
    ):
        list(run(end_itself, range(3)))
