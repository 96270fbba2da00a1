"""A disk that refuses: older checkpoints stay, training goes on, the end says what was lost."""

import os
import random
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes.running import Running
from tests.processes.strace import traced
from wmtp.checkpoints.checkpoint import find_damage, list_checkpoints

from .harness import (
    KEEP_LAST,
    SAVE_INTERVAL,
    Outcome,
    Toy,
    assert_same_result,
    assert_tidy,
    good_step,
    last_step,
    system_calls,
    wait_until,
)

REASONS = {
    "ENOSPC": "No space left on device",
    "EIO": "Input/output error",
    "EDQUOT": "Disk quota exceeded",
}
WRITING = ("write", "mkdir", "fsync", "rename")
"""Not ``openat``: threads that hash open files in any order, so that a number names no call."""
SMALLER_THAN_A_MODEL = 200_000
"""A largest file size in bytes: metrics and logs still fit, a checkpoint does not."""


@pytest.fixture(scope="module")
def calls(toys: Callable[[str], Toy], needs_strace: None) -> list[tuple[str, int]]:
    toy = toys("baseline")
    toy.whole()
    return system_calls(toy, ",".join(WRITING))


def asynchronous(wanted: bool) -> tuple[str, ...]:
    return ("--set", f"config.paths.checkpoints.asynchronous={str(wanted).lower()}")


def check_warned_and_equal(toy: Toy, name: str, process: Running, reason: str) -> None:
    """The run reached its end in spite of it, with one line for each refusal."""
    assert process.wait() == 0, process.said
    warnings = [line for line in process.said.splitlines() if line.startswith("warning: ")]
    assert any(reason in line for line in warnings), process.said
    assert "Traceback" not in process.said
    assert_same_result(toy.whole(), toy.runs / name)
    assert_tidy(toy.runs / name)


def check_ended(toy: Toy, name: str, process: Running, reason: str) -> None:
    """Exit 4 that names path, reason and last good step; what is there is good; it can go on."""
    assert process.wait() == 4, process.said
    run = toy.runs / name
    errors = [line for line in process.said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, process.said
    assert "Traceback" not in process.said
    assert f"runs/{name}/" in errors[0]
    assert reason in errors[0]
    left = list_checkpoints(run / "checkpoints")
    assert [find_damage(path) for path in left] == [None] * len(left)
    assert not any((run / "checkpoints").glob(".tmp-*"))
    good = good_step(run)
    assert ("There is no good checkpoint" if good is None else f"of step {good}") in errors[0]


def check_resumes(toy: Toy, name: str) -> None:
    process = toy.programs.fork(*toy.arguments(name, "--resume"))
    assert process.wait() == 0, process.said
    assert_same_result(toy.whole(), toy.runs / name)
    assert_tidy(toy.runs / name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", WRITING)
@pytest.mark.parametrize("error", REASONS)
def test_a_call_that_fails_once(
    toys: Callable[[str], Toy],
    calls: list[tuple[str, int]],
    note: Callable[..., None],
    error: str,
    kind: str,
    seed: int,
) -> None:
    """In the middle of the run: that save is given up, the next interval makes one."""
    toy = toys("baseline")
    draw = random.Random(f"{error} {kind} {seed}")
    numbers = [number for call, number in calls if call == kind]
    number = draw.choice(numbers[len(numbers) // 4 : len(numbers) // 2])
    name = f"once-{error}-{kind}-{seed}"
    rules = (f"trace={kind}", f"inject={kind}:error={error}:when={number}")
    with traced(toy.programs, *toy.arguments(name), rules=rules) as process:
        check_warned_and_equal(toy, name, process, REASONS[error])
    note(Outcome())


@pytest.mark.parametrize("kind", ["mkdir", "fsync", "rename"])
@pytest.mark.parametrize("error", REASONS)
def test_calls_that_fail_from_then_on(
    toys: Callable[[str], Toy],
    calls: list[tuple[str, int]],
    note: Callable[..., None],
    error: str,
    kind: str,
) -> None:
    toy = toys("baseline")
    numbers = [number for call, number in calls if call == kind]
    name = f"on-{error}-{kind}"
    rules = (
        f"trace={kind}",
        f"inject={kind}:error={error}:when={numbers[len(numbers) // 2]}+",
    )
    with traced(toy.programs, *toy.arguments(name), rules=rules) as process:
        check_ended(toy, name, process, REASONS[error])
    # it went on to the end of the recipe, and only the saves are missing
    assert last_step(toy.runs / name) == last_step(toy.whole())
    check_resumes(toy, name)
    note(Outcome())


@pytest.mark.parametrize("behind", [False, True], ids=["at once", "asynchronous"])
def test_files_that_may_not_grow_from_the_start(
    toys: Callable[[str], Toy], note: Callable[..., None], behind: bool
) -> None:
    """Not one checkpoint is possible: the run ends at the first and does not train for nothing."""
    toy = toys("baseline")
    toy.whole()
    name = f"never-{behind}"
    process = toy.programs.fork(
        *toy.arguments(name, *asynchronous(behind)), largest_file=SMALLER_THAN_A_MODEL
    )
    check_ended(toy, name, process, "File too large")
    assert last_step(toy.runs / name) <= SAVE_INTERVAL * (2 if behind else 1)
    note(Outcome())


def limit_files(process: Running, largest: int) -> None:
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))


@pytest.mark.parametrize("recovers", [True, False], ids=["for a while", "for good"])
@pytest.mark.parametrize("behind", [False, True], ids=["at once", "asynchronous"])
def test_files_that_may_not_grow(
    toys: Callable[[str], Toy], note: Callable[..., None], behind: bool, recovers: bool
) -> None:
    toy = toys("baseline")
    toy.whole()
    name = f"limited-{behind}-{recovers}"
    process = toy.programs.fork(*toy.arguments(name, *asynchronous(behind)))
    wait_until(process, lambda: last_step(toy.runs / name) >= 12)
    limit_files(process, SMALLER_THAN_A_MODEL)
    wait_until(process, lambda: last_step(toy.runs / name) >= 28)
    if recovers:
        limit_files(process, resource.RLIM_INFINITY)
        check_warned_and_equal(toy, name, process, "File too large")
    else:
        check_ended(toy, name, process, "File too large")
        check_resumes(toy, name)
    note(Outcome())


# a small file system ------------------------------------------------------------------------------


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture
def needs_mount() -> None:
    if not can_mount():
        pytest.skip("no file system may be mounted here")


def on_small_disk(toy: Toy, place: str, size: str, *arguments: str) -> tuple[Running, Path]:
    """``python -m wmtp`` that has a small file system at ``place``, and a way to look into it."""
    (toy.folder / place).mkdir(exist_ok=True)
    mounted = f'mount -t tmpfs -o size={size} none {place} && exec "$@"'
    process = toy.programs.real(*arguments, prefix=("unshare", "-rm", "sh", "-c", mounted, "sh"))
    inside = Path(f"/proc/{process.pid}/root") / (toy.folder / place).relative_to("/")
    return process, inside


def fill_up(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return filler


@pytest.mark.parametrize("recovers", [True, False], ids=["for a while", "for good"])
@pytest.mark.parametrize("behind", [False, True], ids=["at once", "asynchronous"])
def test_a_full_disk(
    toys: Callable[[str], Toy],
    note: Callable[..., None],
    needs_mount: None,
    behind: bool,
    recovers: bool,
    tmp_path: Path,
) -> None:
    """Everything is on it: metrics, log, checkpoints, final. Rows wait until there is room."""
    toy = toys("baseline")
    whole = toy.whole()
    place = f"small-{behind}-{recovers}"
    base = ("--set", f"config.paths.checkpoints.base_path={place}", *asynchronous(behind))
    process, disk = on_small_disk(toy, place, "8m", *toy.arguments("run", *base))
    run = disk / "run"
    wait_until(process, lambda: last_step(run) >= 12)
    filler = fill_up(disk)
    taken = copy_of(run, tmp_path / "before")
    if recovers:
        wait_until(process, lambda: "No space left" in process.said)
        filler.unlink()
    # the file system is gone with the process: look while it is held
    held = os.open(disk, os.O_RDONLY)
    try:
        assert process.wait() == (0 if recovers else 4), process.said
        copy_of(Path(f"/proc/self/fd/{held}/run"), tmp_path / "after")
    finally:
        os.close(held)
    assert "Traceback" not in process.said
    assert "No space left on device" in process.said
    if recovers:
        assert_same_result(whole, tmp_path / "after")
    else:
        good = good_step(tmp_path / "after")
        assert good is not None
        assert good >= (good_step(taken) or 0)
        assert re.search(rf"^error: .*No space left on device.* step {good}\b", process.said, re.M)
    assert len(list_checkpoints(tmp_path / "after" / "checkpoints")) <= KEEP_LAST
    assert not list((tmp_path / "after").rglob(".tmp-*"))
    note(Outcome())


def copy_of(run: Path, target: Path) -> Path:
    shutil.copytree(run, target, ignore=shutil.ignore_patterns(".tmp-*", ".lock"))
    return target


def test_a_disk_too_small_is_refused_before_training(
    toys: Callable[[str], Toy], note: Callable[..., None], needs_mount: None
) -> None:
    toy = toys("baseline")
    base = ("--set", "config.paths.checkpoints.base_path=tiny")
    process, _ = on_small_disk(toy, "tiny", "1500k", *toy.arguments("run", *base))
    assert process.wait() == 2, process.said
    assert re.search(
        r"^error: paths\.checkpoints\.keep_last is 2: 3 checkpoints", process.said, re.M
    )
    assert "step 1/" not in process.said
    note(Outcome())
