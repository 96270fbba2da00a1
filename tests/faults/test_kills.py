"""SIGKILL at any moment: what is resumed ends as what was never stopped."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from .harness import (
    Toy,
    assert_same_result,
    assert_tidy,
    finish,
    killed_after,
    killed_at_call,
    killed_at_system_call,
    system_calls,
)

MOST_KILLS = 5
BY_TIME = {
    "baseline": 8,
    "two workers": 4,
    "saving behind": 6,
    "rho1": 6,
    "rho1 cached": 6,
    "critic": 8,
}
"""Runs of each toy that are killed at random moments, each one to five times."""

INSIDE = {"baseline": 24, "saving behind": 12, "rho1": 10, "critic": 18}
"""Runs of each toy that are killed at a system call on a file of a checkpoint."""

CHANGING = (
    "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,"
    "mkdirat,ftruncate,fallocate,msync"
)


def seeds(counts: dict[str, int]) -> list[Any]:
    return [
        pytest.param(name, seed, id=f"{name}-{seed}")
        for name, count in counts.items()
        for seed in range(count)
    ]


@pytest.fixture(scope="module")
def seconds_of(toys: Callable[[str], Toy]) -> Callable[[str], float]:
    """How long a toy takes by the fork server when nothing disturbs it."""
    known: dict[str, float] = {}

    def seconds(name: str) -> float:
        if name not in known:
            toy = toys(name)
            toy.whole()  # its shards are made now
            known[name] = finish(toy, "timed", []).seconds
            assert_same_result(toy.whole(), toy.runs / "timed")
        return known[name]

    return seconds


def check(toy: Toy, name: str) -> None:
    assert_same_result(toy.whole(), toy.runs / name)
    assert_tidy(toy.runs / name)


@pytest.mark.parametrize(("toy_name", "seed"), seeds(BY_TIME))
def test_killed_at_any_moment(
    toys: Callable[[str], Toy],
    seconds_of: Callable[[str], float],
    note: Callable[..., None],
    toy_name: str,
    seed: int,
) -> None:
    toy, whole = toys(toy_name), seconds_of(toy_name)
    draw = random.Random(f"{toy_name} {seed}")
    moments = [draw.uniform(0, whole) for _ in range(draw.randint(1, MOST_KILLS))]
    outcome = finish(toy, f"by-time-{seed}", [killed_after(toy, at) for at in moments], seed)
    note(outcome, whole)
    check(toy, f"by-time-{seed}")


@pytest.fixture(scope="module")
def calls_of(toys: Callable[[str], Toy], needs_strace: None) -> Callable[[str], list[Any]]:
    """The system calls on files of checkpoints that a whole run makes: name and number of each.

    Reading is left out: being killed there changes nothing.
    """
    known: dict[str, list[tuple[str, int]]] = {}

    def calls(name: str) -> list[tuple[str, int]]:
        if name not in known:
            toy = toys(name)
            toy.whole()
            known[name] = system_calls(toy, CHANGING)
        return known[name]

    return calls


@pytest.mark.parametrize(("toy_name", "seed"), seeds(INSIDE))
def test_killed_inside_a_save(
    toys: Callable[[str], Toy],
    calls_of: Callable[[str], list[tuple[str, int]]],
    note: Callable[..., None],
    toy_name: str,
    seed: int,
) -> None:
    """Each kind of call is drawn alike: a save makes many writes and one rename."""
    toy, calls = toys(toy_name), calls_of(toy_name)
    draw = random.Random(f"{toy_name} {seed} inside")
    kind = draw.choice(sorted({call for call, _ in calls}))
    number = draw.choice([number for call, number in calls if call == kind])
    name = f"inside-{seed}"
    outcome = finish(toy, name, [killed_at_system_call(toy, kind, number)], seed)
    assert outcome.kills == 1, f"{kind} {number} was never reached"
    note(outcome)
    check(toy, name)


@pytest.mark.parametrize("number", range(4, 52, 4))
def test_killed_at_a_call_of_a_save(
    toys: Callable[[str], Toy], note: Callable[..., None], number: int
) -> None:
    """Without ``strace``: calls of Python's in the first saves, one after the other."""
    toy = toys("baseline")
    toy.whole()
    name = f"call-{number}"
    outcome = finish(toy, name, [killed_at_call(toy, number)])
    assert outcome.kills == 1
    note(outcome)
    check(toy, name)


@pytest.mark.parametrize("moment", [0.5, 2.0, 3.0, 3.5, 4.0])
def test_the_real_program_killed(
    toys: Callable[[str], Toy], note: Callable[..., None], moment: float
) -> None:
    """The same by ``python -m wmtp``, which shares nothing with the run it is compared with."""
    toy = toys("baseline")
    toy.whole()

    def start(arguments: tuple[str, ...]) -> Any:
        run = toy.programs.real(*arguments)
        if run.reap(moment) is None:
            run.kill()
        return run

    name = f"real-{moment}"
    outcome = finish(toy, name, [start])
    note(outcome)
    check(toy, name)
