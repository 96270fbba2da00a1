"""SIGTERM and SIGINT at any moment: the exit code says so, nothing is left, nothing is lost."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes.running import Running, ownerless_memory
from tests.processes.strace import traced

from .harness import Outcome, Toy, assert_same_result, assert_tidy, list_checkpoints, wait_until

NUMBERS = [signal.SIGTERM, signal.SIGINT]
SECOND_SIGNAL_SECONDS = 5.0


@pytest.fixture
def shared_memory() -> Callable[[], set[str]]:
    """What the test has left in /dev/shm."""
    began = time.time() - 1  # a file system's clock may lag behind
    return lambda: ownerless_memory(began)


def check_stopped(run: Running, number: int, new_in_shared_memory: set[str]) -> None:
    """The exit code of that signal, and nothing left behind.

    Before the program has set its handlers the signal itself ends it, which a shell shows as the
    same number.
    """
    assert run.code in (128 + number, -number), run.said
    assert "leaked" not in run.said, run.said
    assert "Traceback" not in run.said, run.said
    assert run.left_behind(SECOND_SIGNAL_SECONDS) == []
    assert new_in_shared_memory == set()


def go_on(toy: Toy, name: str) -> None:
    """Resume, or start anew where the signal came before there was anything to resume."""
    run = toy.runs / name
    resumes = bool(list_checkpoints(run / "checkpoints"))
    process = toy.programs.fork(*toy.arguments(name, *(["--resume"] if resumes else [])))
    assert process.wait() == 0, process.said
    assert_same_result(toy.whole(), run)
    assert_tidy(run)


def temporaries(run: Path) -> bool:
    return any((run / "checkpoints").glob(".tmp-step-*"))


MOMENTS: dict[str, Callable[[Running, Path], bool]] = {
    # not before the forked process has its own handlers, as a fresh one has from the start
    "at once": lambda process, run: time.monotonic() - process.started > 0.1,
    "reading data": lambda process, run: "run folder" in process.said,
    "before the first step": lambda process, run: "model:" in process.said,
    "after the first evaluation": lambda process, run: "eval/loss" in process.said,
    "saving": lambda process, run: temporaries(run),
    "evaluating": lambda process, run: "step 7/" in process.said,
    "after the last step": lambda process, run: any(run.glob(".tmp-final-*")),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_at_a_moment(
    toys: Callable[[str], Toy],
    note: Callable[..., None],
    shared_memory: Callable[[], set[str]],
    moment: str,
    number: int,
) -> None:
    toy = toys("baseline")
    toy.whole()
    name = f"{moment}-{number}".replace(" ", "-")
    process = toy.programs.fork(*toy.arguments(name))
    wait_until(process, lambda: MOMENTS[moment](process, toy.runs / name))
    process.kill(number)
    if process.wait() != 0 or moment != "after the last step":  # then it may be done already
        check_stopped(process, number, shared_memory())
    go_on(toy, name)
    note(Outcome())


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("toy_name", ["baseline", "critic"])
@pytest.mark.parametrize("seed", range(8))
def test_at_a_random_moment(
    toys: Callable[[str], Toy],
    note: Callable[..., None],
    shared_memory: Callable[[], set[str]],
    toy_name: str,
    seed: int,
    number: int,
) -> None:
    """Stopped three times, resumed in between."""
    toy = toys(toy_name)
    toy.whole()
    draw = random.Random(f"{toy_name} {seed} {number}")
    name = f"random-{seed}-{number}"
    for _ in range(3):
        run = toy.runs / name
        resumes = any(list_checkpoints(path / "checkpoints") for path in (run, run / "stage1"))
        process = toy.programs.fork(*toy.arguments(name, *(["--resume"] if resumes else [])))
        if process.reap(draw.uniform(0.1, 2.5)) is None:
            process.kill(number)
        if process.wait() == 0:
            break
        check_stopped(process, number, shared_memory())
    finish_by_resuming(toy, name)
    note(Outcome())


def finish_by_resuming(toy: Toy, name: str) -> None:
    run = toy.runs / name
    resumes = any(list_checkpoints(path / "checkpoints") for path in (run, run / "stage1"))
    process = toy.programs.fork(*toy.arguments(name, *(["--resume"] if resumes else [])))
    assert process.wait() == 0, process.said
    assert_same_result(toy.whole(), run)
    assert_tidy(run)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.4, 0.8, 1.2, 1.8])
def test_the_real_program_while_it_is_imported(
    toys: Callable[[str], Toy],
    note: Callable[..., None],
    shared_memory: Callable[[], set[str]],
    number: int,
    seconds: float,
) -> None:
    toy = toys("baseline")
    toy.whole()
    name = f"import-{number}-{seconds}"
    process = toy.programs.real(*toy.arguments(name))
    assert process.reap(seconds) is None
    process.kill(number)
    process.wait()
    assert process.code in (128 + number, -number), process.said
    assert process.left_behind(SECOND_SIGNAL_SECONDS) == []
    assert shared_memory() == set()
    # before the first line of wmtp is run, Ctrl-C is Python's own
    if "Traceback" in process.said:
        assert process.said.endswith("\nKeyboardInterrupt\n"), process.said
        assert "in main" not in process.said
    go_on(toy, name)
    note(Outcome())


@pytest.mark.parametrize("number", NUMBERS)
def test_while_data_is_prepared(
    toys: Callable[[str], Toy],
    note: Callable[..., None],
    shared_memory: Callable[[], set[str]],
    number: int,
    tmp_path: Path,
) -> None:
    """A long text, so that the signal comes in the middle of it; no temporary folder stays."""
    toy = toys("much text")
    base = f"runs-{number}"
    more = ("--set", f"config.paths.checkpoints.base_path={base}")
    process = toy.programs.fork(*toy.arguments("run", *more), temporary=str(tmp_path))
    wait_until(process, lambda: any((toy.folder / base / ".cache").glob(".tmp-*/tokens*")))
    process.kill(number)
    process.wait()
    check_stopped(process, number, shared_memory())
    assert list((toy.folder / base / ".cache").iterdir()) == []
    assert list(tmp_path.iterdir()) == []
    note(Outcome())


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("moment", ["after the first evaluation", "saving"])
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_second_signal_ends_it_within_seconds(
    toys: Callable[[str], Toy],
    note: Callable[..., None],
    needs_strace: None,
    shared_memory: Callable[[], set[str]],
    asynchronous: str,
    moment: str,
    number: int,
) -> None:
    """Every fsync takes a fifth of a second: the save that the first waits for takes several."""
    toy = toys("baseline")
    toy.whole()
    name = f"second-{moment}-{number}-{asynchronous}".replace(" ", "-")
    slow = ("trace=fsync", "inject=fsync:delay_enter=200000")
    more = ("--set", f"config.paths.checkpoints.asynchronous={asynchronous}")
    with traced(toy.programs, *toy.arguments(name, *more), rules=slow) as process:
        wait_until(process, lambda: MOMENTS[moment](process, toy.runs / name))
        process.kill(number)
        wait_until(process, lambda: "stopping after this step" in process.said)
        wait_until(process, lambda: temporaries(toy.runs / name))
        time.sleep(0.5)
        assert process.reap(0) is None
        second = time.monotonic()
        process.kill(number)
        process.wait()
        assert time.monotonic() - second < SECOND_SIGNAL_SECONDS
    check_stopped(process, number, shared_memory())
    begun = toy.programs.fork(*toy.arguments(name, "--resume"))
    assert begun.wait() == 0, begun.said
    assert "no checkpoint was made yet: the run begins anew" in begun.said  # no save was in time
    assert_same_result(toy.whole(), toy.runs / name)
    note(Outcome())


def leave_by(ending: str, process: Running) -> None:
    if ending == "SIGTERM":
        process.kill(signal.SIGTERM)
    if ending == "SIGKILL":
        process.kill()


ENDINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "normal": (0, {}),
    "exception": (4, {"largest_file": 100_000}),  # no checkpoint can be written
    "SIGTERM": (143, {}),
    "SIGKILL": (-9, {}),
}


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_workers_leave_nothing(
    toys: Callable[[str], Toy],
    note: Callable[..., None],
    shared_memory: Callable[[], set[str]],
    ending: str,
    start_method: str,
) -> None:
    """However the run ends, and whichever way of starting processes Python was told to use."""
    toy = toys("two workers")
    name = f"{ending}-{start_method}"
    code, request = ENDINGS[ending]
    process = toy.programs.fork(*toy.arguments(name), start_method=start_method, **request)
    metrics = toy.runs / name / "metrics.jsonl"
    wait_until(process, lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
    if ending in ("SIGTERM", "SIGKILL"):
        assert len(process.left_behind()) > 2, "no workers were there"
        leave_by(ending, process)
    assert process.wait() == code, process.said
    assert process.left_behind(20.0) == []  # torch's workers look for their parent every 5 s
    assert shared_memory() == set()
    if ending != "SIGKILL":
        assert "leaked" not in process.said
        assert "Traceback" not in process.said
    note(Outcome())
