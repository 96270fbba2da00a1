"""Checkpoints that two ranks write together: killed at every call of it, and damaged."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes.ranks import fork_ranks
from wmtp.checkpoints.checkpoint import list_checkpoints

from .harness import Outcome, Toy, assert_same_result, assert_tidy, copied, note_loss
from .jobs import BEHIND, SLICED
from .test_damage import TO_A_FILE, swap

# four saves; the third is the first that removes an older one
SHORT = ("--set", "recipe.train.num_epochs=null", "--set", "recipe.train.max_steps=17")
SHARDS = [f"training_state/shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)]

CALLS_OF_FIRST_RANK = range(24, 85)  # on temporary names, from the second save to the end of it all
CALLS_OF_SECOND_RANK = range(1, 9)


def train_together(toy: Toy, name: str, *more: str, killed: dict[int, int] | None = None) -> str:
    """Train as two ranks; what they said.

    Args:
        toy: of the kind "ranks".
        name: of the run.
        more: arguments of ``wmtp train``.
        killed: the call before which a rank is killed.
    """
    spoiled = {rank: {"kill_before": number} for rank, number in (killed or {}).items()}
    ranks = fork_ranks(toy.programs, *toy.arguments(name, *SLICED, *SHORT, *more), spoiled=spoiled)
    codes = ranks.wait()
    for rank, code in enumerate(codes):
        if not killed:
            assert code == 0, ranks.said
        elif rank in killed:
            assert code == -signal.SIGKILL, ranks.said
    assert "Traceback" not in ranks.said
    return ranks.said


@pytest.fixture
def toy(toys: Callable[[str], Toy]) -> Toy:
    toy = toys("ranks")
    if not (toy.runs / "whole").exists():
        train_together(toy, "whole")
    return toy


def killed_and_resumed(
    toy: Toy, rank: int, number: int, behind: tuple[str, ...], note: Callable[..., None]
) -> None:
    name, outcome = f"killed-{rank}-{number}-{len(behind)}", Outcome(kills=1)
    train_together(toy, name, *behind, killed={rank: number})
    goes_on = note_loss(toy.runs / name, outcome)
    train_together(toy, name, *behind, *(["--resume"] if goes_on else []))
    assert_same_result(toy.runs / "whole", toy.runs / name)
    assert_tidy(toy.runs / name)
    note(outcome)


@pytest.mark.parametrize("number", CALLS_OF_FIRST_RANK)
def test_first_rank_killed(toy: Toy, number: int, note: Callable[..., None]) -> None:
    """Waiting for the save, or with the save behind training, in turn."""
    killed_and_resumed(toy, 0, number, BEHIND if number % 2 else (), note)


@pytest.mark.parametrize("behind", [(), BEHIND], ids=["waiting", "behind"])
@pytest.mark.parametrize("number", CALLS_OF_SECOND_RANK)
def test_second_rank_killed(
    toy: Toy, number: int, behind: tuple[str, ...], note: Callable[..., None]
) -> None:
    killed_and_resumed(toy, 1, number, behind, note)


def cross(checkpoint: Path) -> None:
    """A slice of the checkpoint before in place of its own: as large, and well formed."""
    before = list_checkpoints(checkpoint.parent)[-2]
    (checkpoint / SHARDS[1]).write_bytes((before / SHARDS[1]).read_bytes())


DAMAGES: dict[str, Callable[[Path], None]] = {
    "slices swapped": swap(*SHARDS),
    "a slice of another step": cross,
    "a slice too many": lambda path: (path / SHARDS[0].replace("1-m", "3-m")).write_text("x"),
}
DAMAGES |= {
    f"{name}, {damage}": lambda path, name=name, change=change: change(path / name)  # type: ignore[misc]
    for damage, change in TO_A_FILE.items()
    for name in [*SHARDS, "training_state/state.json"]
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(toy: Toy, damage: str, note: Callable[..., None]) -> None:
    run = copied(toy, "".join(c if c.isalnum() else "-" for c in damage))
    newest = list_checkpoints(run / "checkpoints")[-1]
    DAMAGES[damage](newest)
    said = train_together(toy, run.name, "--resume")
    assert said.count(f"warning: checkpoint {newest.name} ") == 1, said
    assert_same_result(toy.runs / "whole", run)
    assert_tidy(run)
    note(Outcome())


@pytest.mark.parametrize("lacking", [0, 1])
def test_no_good_one_is_left(toy: Toy, lacking: int, note: Callable[..., None]) -> None:
    """The reason is told once; the second rank may be told to go before it went by itself."""
    run = copied(toy, f"none-left-{lacking}")
    for checkpoint in list_checkpoints(run / "checkpoints"):
        (checkpoint / SHARDS[lacking]).unlink()
    ranks = fork_ranks(toy.programs, *toy.arguments(run.name, *SLICED, *SHORT, "--resume"))
    first, second = ranks.wait()
    assert first == 2
    assert second != 0
    assert ranks.said.count("error: ") == 1, ranks.said
    assert "Start anew with another --run-name" in ranks.said
    note(Outcome())
