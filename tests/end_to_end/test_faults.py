"""A few real kills and damages; ``make faults`` does this, and more, a hundred times over."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import (
    Toy,
    assert_same_result,
    assert_tidy,
    copied,
    finish,
    killed_after,
    killed_at_call,
    make_toy,
)
from tests.faults.jobs import RAISES
from tests.faults.test_damage import check_refused, flip_a_bit
from tests.processes.ranks import fork_ranks
from wmtp.checkpoints.checkpoint import list_checkpoints

from .conftest import TEXT

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def short(folder: Path, config: Any, recipe: Any) -> None:
    (folder / "text.txt").write_text(TEXT[: len(TEXT) // 2])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = make_toy(tmp_path_factory.mktemp("faults"), short)
    toy.whole(forked=True)
    return toy


@pytest.mark.parametrize("seconds", [0.3, 0.7])
def test_killed_at_a_moment_it_ends_as_if_it_had_not_been(toy: Toy, seconds: float) -> None:
    name = f"moment-{seconds}"
    finish(toy, name, [killed_after(toy, seconds)])
    assert_same_result(toy.whole(), toy.runs / name)
    assert_tidy(toy.runs / name)


@pytest.mark.parametrize("number", [10, 28, 40])
def test_killed_inside_a_save_it_ends_as_if_it_had_not_been(toy: Toy, number: int) -> None:
    """The number of a call on something with a temporary name, from the first save on."""
    name = f"call-{number}"
    outcome = finish(toy, name, [killed_at_call(toy, number)])
    assert outcome.kills == 1
    assert_same_result(toy.whole(), toy.runs / name)
    assert_tidy(toy.runs / name)


@pytest.mark.parametrize(
    "file", ["manifest.json", "model.safetensors", "training_state/state.safetensors"]
)
def test_a_damaged_checkpoint_is_passed_over_with_one_line(toy: Toy, file: str) -> None:
    run = copied(toy, f"damaged-{Path(file).name}")
    newest = list_checkpoints(run / "checkpoints")[-1]
    flip_a_bit(newest / file)
    check_refused(toy, run, newest.name, lambda *_: None)


def test_a_mistake_of_a_later_rank_ends_the_job_and_is_told(toy: Toy) -> None:
    """The first rank, which only lost it, leaves it the word."""
    (toy.folder / "bad.py").write_text(RAISES)
    weighting = "recipe.weighting={algorithm: ./bad.py, rank: 1, text: a mistake}"
    ranks = fork_ranks(toy.programs, *toy.arguments("ranks", "--set", weighting))
    assert ranks.wait()[1] == 2
    first, second = (rank.said for rank in ranks.ranks)
    assert "rank 1: error: weighting.algorithm ./bad.py: weights() raised" in second
    assert "RuntimeError: a mistake" in second
    assert "error" not in first
    assert "Traceback" not in first + second
