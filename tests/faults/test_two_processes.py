"""Two processes on one run: the second is refused, the first never notices."""

from collections.abc import Callable

import pytest

from .harness import Outcome, Toy, assert_same_result, assert_tidy, figures, wait_until


@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["anew", "resumed"])
def test_the_second_is_refused(
    toys: Callable[[str], Toy], note: Callable[..., None], more: tuple[str, ...]
) -> None:
    toy = toys("baseline")
    toy.whole()
    name = f"two-{len(more)}"
    first = toy.programs.fork(*toy.arguments(name))
    wait_until(first, lambda: len(figures(toy.runs / name / "metrics.jsonl")) > 3)
    for _ in range(2):
        second = toy.programs.fork(*toy.arguments(name, *more))
        assert second.wait() == 2, second.said
        (line,) = second.said.splitlines()
        expected = f"is being written by process {first.pid}" if more else "already exists"
        assert expected in line
    assert first.reap(0) is None, "the first was done before the second had begun"
    assert first.wait() == 0, first.said
    assert_same_result(toy.whole(), toy.runs / name)
    assert_tidy(toy.runs / name)
    note(Outcome())


def test_averaging_keeps_its_hands_off_a_run_that_is_written(
    toys: Callable[[str], Toy], note: Callable[..., None]
) -> None:
    toy = toys("baseline")
    toy.whole()
    first = toy.programs.fork(*toy.arguments("averaged"))
    checkpoints = toy.runs / "averaged" / "checkpoints"
    wait_until(first, lambda: (checkpoints / "step-00000005").is_dir())
    second = toy.programs.fork("average", "runs/averaged", "--last", "1")
    assert second.wait() == 2, second.said
    assert f"process {first.pid}" in second.said
    assert first.wait() == 0, first.said
    assert_same_result(toy.whole(), toy.runs / "averaged")
    note(Outcome())


def test_two_that_start_at_once_do_not_share_a_run(
    toys: Callable[[str], Toy], note: Callable[..., None]
) -> None:
    """Whichever takes the lock trains; the other says so. They also meet in the cache of shards."""
    toy = toys("baseline")
    toy.whole()
    for number in range(5):
        name = f"at-once-{number}"
        anew = ("--set", f"config.paths.checkpoints.base_path=runs-{number}")
        both = [toy.programs.fork(*toy.arguments(name, *anew)) for _ in range(2)]
        codes = [process.wait() for process in both]
        assert sorted(codes) == [0, 2], "\n".join(process.said for process in both)
        assert_same_result(toy.whole(), toy.folder / f"runs-{number}" / name)
    note(Outcome())
