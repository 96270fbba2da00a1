"""Several ranks under a real ``torchrun``: what befalls one ends all soon, and is told.

Seconds are counted from the fault until no process of the job is left.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.test_two_ranks import assert_equal
from tests.processes.running import ownerless_memory

from .harness import Outcome, Toy, assert_tidy, good_step, last_step, wait_until
from .jobs import BEHIND, RAISES, SLICED, Job, seen, start, told


@pytest.fixture
def toy(toys: Callable[[str], Toy]) -> Toy:
    return toys("ranks")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A run's name, one for each test."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


@pytest.fixture
def keep(record_property: Callable[..., None], note: Callable[..., None]) -> Callable[..., None]:
    """Take down the seconds that a job took to end."""

    def keep_seconds(seconds: float) -> None:
        record_property("seconds", round(seconds, 1))
        print(f"ended after {seconds:.1f} s")
        note(Outcome(seconds=seconds))

    return keep_seconds


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("text", "sliced"),
    [("a mistake of the user", ()), ("can't allocate memory", SLICED)],
    ids=["mistake", "memory"],
)
def test_a_weighting_that_raises_on_one_rank(
    toy: Toy, name: str, keep: Callable[..., None], rank: int, sliced: tuple[str, ...], text: str
) -> None:
    (toy.folder / "bad.py").write_text(RAISES)
    weighting = f'recipe.weighting={{algorithm: ./bad.py, rank: {rank}, text: "{text}"}}'
    job = start(toy, name, "--set", weighting, *sliced)
    seen(job, "step 2/")
    keep(job.ended())
    assert job.launcher.code == 1
    expected = f"rank {rank} ran out of memory" if "memory" in text else f"RuntimeError: {text}"
    assert expected in told(job, rank)


@pytest.mark.parametrize("behind", [(), BEHIND], ids=["at once", "behind training"])
def test_a_full_disk_of_one_rank(
    toy: Toy, name: str, keep: Callable[..., None], behind: tuple[str, ...]
) -> None:
    """Before there is any checkpoint that is an error, and its half is removed."""
    job = start(toy, name, *SLICED, *behind, by="full disk")
    seen(job, "step 4/")
    keep(job.ended())
    assert (
        "checkpoints/step-00000005 could not be written: rank 1: File too large. There is no "
        "good checkpoint"
    ) in told(job, 0)
    assert list((toy.runs / name / "checkpoints").iterdir()) == []


def test_data_that_one_rank_lacks(toy: Toy, name: str, keep: Callable[..., None]) -> None:
    elsewhere = toy.folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    for file in ("config.yaml", "recipe.yaml", "tokenizer"):
        (elsewhere / file).unlink(missing_ok=True)
        (elsewhere / file).symlink_to(toy.folder / file)
    base = ("--set", f"config.paths.checkpoints.base_path={toy.runs}")
    job = start(toy, name, *base, by="elsewhere")
    seen(job, "run folder")
    keep(job.ended())
    assert "text.txt" in told(job, 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_rank_stops_all_of_them(
    toy: Toy, name: str, keep: Callable[..., None], rank: int
) -> None:
    job = start(toy, name, *SLICED, *BEHIND)
    seen(job, "step 4/")
    os.kill(job.rank(rank), signal.SIGTERM)
    keep(job.ended())
    assert "Traceback" not in job.said.partition("torch/distributed/elastic")[0]
    run = toy.runs / name
    assert last_step(run) <= (good_step(run) or 0) <= last_step(run) + 1
    assert "exitcode  : 143" in job.said, job.said


MOMENTS: dict[str, tuple[str, Callable[[Job, Path], bool]]] = {
    "preparing data": ("much text", lambda job, run: "tokenizing text.txt" in job.said),
    "before the first step": ("ranks", lambda job, run: "model:" in job.said),
    "training": ("ranks", lambda job, run: "step 4/" in job.said),
    "saving": ("ranks", lambda job, run: any((run / "checkpoints").glob(".tmp-step-*"))),
    "stage 1": ("critic", lambda job, run: "value step 4/" in job.said),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_rank_ends_the_job(
    toys: Callable[[str], Toy], name: str, keep: Callable[..., None], moment: str, rank: int
) -> None:
    kind, reached = MOMENTS[moment]
    toy = toys(kind)
    base = f"runs-{rank}" if kind == "much text" else "runs"
    job = start(toy, name, *SLICED, *BEHIND, "--set", f"config.paths.checkpoints.base_path={base}")
    victim = job.rank(rank)
    wait_until(job.launcher, lambda: reached(job, toy.runs / name))
    os.kill(victim, signal.SIGKILL)
    keep(job.ended())
    root = job.said.partition("Root Cause")[2]
    assert re.search(rf"rank +: {rank} ", root), job.said
    assert "SIGKILL" in root or "-9" in root, job.said


@pytest.mark.parametrize("seconds", [1.0, 3.0, 5.0])
def test_ranks_that_only_begin_end_with_their_launcher(
    toy: Toy, name: str, keep: Callable[..., None], seconds: float
) -> None:
    job = start(toy, name)
    job.rank(1)
    time.sleep(seconds)
    job.launcher.kill()
    keep(job.ended())


@pytest.mark.parametrize("sliced", [(), SLICED], ids=["copied", "sliced"])
def test_ranks_save_and_end_when_their_launcher_is_killed(
    toys: Callable[[str], Toy], name: str, keep: Callable[..., None], sliced: tuple[str, ...]
) -> None:
    """With two workers each, of which nothing is left."""
    toy, began = toys("two workers"), time.time() - 1
    job = start(toy, name, *sliced)
    seen(job, "step 7/")
    job.launcher.kill()
    keep(job.ended())
    run = toy.runs / name
    assert "stopped by" in job.said
    assert (good_step(run) or 0) >= last_step(run) >= 7
    assert ownerless_memory(began) == set()
    assert_tidy(run)


def test_a_second_launcher_is_refused(toy: Toy, name: str, keep: Callable[..., None]) -> None:
    """And the first one goes on, until it is told to stop."""
    run = toy.runs / name
    first = start(toy, name, "--set", "recipe.train.num_epochs=200")
    seen(first, "step 6/")
    second = start(toy, name, "--set", "recipe.train.num_epochs=200", "--resume")
    keep(second.ended())
    assert f"is being written by process {first.rank(0)}" in told(second, 0)
    assert "exitcode  : 2 " in second.said
    step = last_step(run)
    wait_until(first.launcher, lambda: last_step(run) > step + 5)
    os.kill(first.rank(1), signal.SIGTERM)
    first.ended()
    assert "stopped by a signal to another rank" in first.said
    assert good_step(run) in (last_step(run), last_step(run) + 1)
    assert_tidy(run)


def test_a_second_sigterm_ends_all_ranks_at_once(
    toys: Callable[[str], Toy], name: str, keep: Callable[..., None]
) -> None:
    """To a whole job, as a scheduler sends it; the step that is under way takes a minute."""
    toy = toys("ranks")
    (toy.folder / "slow.py").write_text(SLOW)
    job = start(toy, name, "--set", "recipe.weighting={algorithm: ./slow.py}")
    seen(job, "step 2/")
    ranks = [job.rank(0), job.rank(1)]
    for _ in range(2):
        time.sleep(1.0)
        for rank in ranks:
            os.kill(rank, signal.SIGTERM)
    keep(seconds := job.ended())
    assert seconds < 5.0, job.said


SLOW = '''
import os, time, torch
from wmtp.weighting import Weighting

class Slow(Weighting):
    """The first rank takes its time in the seventh step, the other waits for it."""
    scope = "known"

    def start_memory(self):
        return {"seen": torch.zeros(())}

    def start_sums(self):
        return {"seen": torch.zeros(())}

    def remember(self, memory, sums):
        memory["seen"] += sums["seen"]

    def weights(self, signals):
        signals.sums["seen"] += 1
        if os.environ["RANK"] == "0" and signals.memory["seen"] > 10:
            time.sleep(60)
        return signals.valid_BSH.float()
'''


def test_a_resumed_job_equals_one_that_was_never_stopped(
    toy: Toy, name: str, keep: Callable[..., None]
) -> None:
    whole = start(toy, f"{name}-whole", *SLICED)
    assert whole.launcher.wait() == 0, whole.said
    for number, rank in enumerate((0, 1)):
        job = start(toy, name, *SLICED, *BEHIND, *(["--resume"] if number else []))
        seen(job, "step 20/" if number == 0 else "step 40/")
        os.kill(job.rank(rank), signal.SIGKILL)
        keep(job.ended())
    last = start(toy, name, *SLICED, "--resume")
    assert last.launcher.wait() == 0, last.said
    assert_equal(toy.runs / f"{name}-whole", toy.runs / name)
    assert_tidy(toy.runs / name)
