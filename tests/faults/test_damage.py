"""Every way to damage a checkpoint: the newest good one is used and says why, or none is."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from wmtp.checkpoints.checkpoint import list_checkpoints

from .harness import Outcome, Toy, assert_same_result, assert_tidy, copied, figures

FILES = (
    "config.json",
    "generation_config.json",
    "manifest.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_state/state.json",
    "training_state/state.safetensors",
)


@pytest.fixture
def toy(toys: Callable[[str], Toy]) -> Toy:
    return toys("baseline")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_a_copy(path: Path) -> None:
    copy = path.parents[3] / f"copy-{path.name}"
    path.rename(copy)
    path.symlink_to(copy)


def put_a_pipe_there(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


TO_A_FILE: dict[str, Callable[[Path], None]] = {
    "truncated by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "truncated to nothing": lambda path: os.truncate(path, 0),
    "one byte longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a bit flipped": flip_a_bit,
    "removed": Path.unlink,
    "a folder in its place": put_a_folder_there,
    "a link in its place": link_to_a_copy,
    "a pipe in its place": put_a_pipe_there,
    "an empty object": lambda path: path.write_text("{}"),
    "nested without end": lambda path: path.write_text("[" * 100_000),
}


# what a manifest says is the same without its last newline, and wherever it is kept
HARMLESS = {
    ("truncated by a byte", "manifest.json"),
    ("one byte longer", "manifest.json"),
    ("a link in its place", "manifest.json"),
}


def check_refused(toy: Toy, run: Path, newest: str, note: Callable[..., None]) -> None:
    """One line names the newest checkpoint, the run goes on from the one before to the same end."""
    process = toy.programs.fork(*toy.arguments(run.name, "--resume"))
    assert process.wait() == 0, process.said
    lines = [line for line in process.said.splitlines() if f"checkpoint {newest}" in line]
    assert len(lines) == 1, process.said
    assert re.fullmatch(rf"warning: checkpoint {newest} .+: not used", lines[0]), lines
    assert "Traceback" not in process.said
    assert_same_result(toy.whole(), run)
    assert_tidy(run)
    note(Outcome())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", TO_A_FILE)
def test_a_damaged_file(toy: Toy, damage: str, name: str, note: Callable[..., None]) -> None:
    run = copied(toy, f"{damage}-{Path(name).name}".replace(" ", "-"))
    newest = list_checkpoints(run / "checkpoints")[-1]
    TO_A_FILE[damage](newest / name)
    if (damage, name) in HARMLESS:
        process = toy.programs.fork(*toy.arguments(run.name, "--resume"))
        assert process.wait() == 0, process.said
        assert_same_result(toy.whole(), run)
        note(Outcome())
        return
    check_refused(toy, run, newest.name, note)
    # nothing is deleted that a person may want to look at
    assert (run / "checkpoints" / f"set-aside-{newest.name}").exists()


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def replace_by_a_file(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.write_text("not a folder")


def link_nowhere(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.symlink_to("nowhere")


def link_to_the_one_before(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.symlink_to(list_checkpoints(checkpoint.parent)[0].name)


def swap(one: str, other: str) -> Callable[[Path], None]:
    def swapped(checkpoint: Path) -> None:
        (checkpoint / one).rename(checkpoint / "x")
        (checkpoint / other).rename(checkpoint / one)
        (checkpoint / "x").rename(checkpoint / other)

    return swapped


TO_A_FOLDER: dict[str, Callable[[Path], None]] = {
    "empty": empty,
    "a file in its place": replace_by_a_file,
    "a link to nowhere": link_nowhere,
    "a link to the one before": link_to_the_one_before,
    "weights and state swapped": swap("model.safetensors", "training_state/state.safetensors"),
    "configs swapped": swap("config.json", "tokenizer_config.json"),
    "state and manifest swapped": swap("manifest.json", "training_state/state.json"),
    "a file too many": lambda checkpoint: (checkpoint / "model.bin").write_text("x"),
    "without its state": lambda checkpoint: shutil.rmtree(checkpoint / "training_state"),
}


@pytest.mark.parametrize("damage", TO_A_FOLDER)
def test_a_damaged_folder(toy: Toy, damage: str, note: Callable[..., None]) -> None:
    run = copied(toy, damage.replace(" ", "-"))
    newest = list_checkpoints(run / "checkpoints")[-1]
    TO_A_FOLDER[damage](newest)
    check_refused(toy, run, newest.name, note)


def test_a_checkpoint_of_the_future_is_not_taken_for_one(
    toy: Toy, note: Callable[..., None]
) -> None:
    """Its name says more steps than the recipe has, and there is nothing in it."""
    run = copied(toy, "future")
    (run / "checkpoints" / "step-99999999").mkdir()
    check_refused(toy, run, "step-99999999", note)


def test_what_an_interrupted_save_left_is_removed_without_a_word(toy: Toy) -> None:
    run = copied(toy, "leftovers")
    newest = list_checkpoints(run / "checkpoints")[-1]
    for stale in (".tmp-step-00000099-1", f".tmp-replaced-{newest.name}"):
        shutil.copytree(newest, run / "checkpoints" / stale)
    shutil.copytree(newest, run / ".tmp-final-1")
    (run / ".tmp-metrics.jsonl-1").write_text("half a li")
    process = toy.programs.fork(*toy.arguments("leftovers", "--resume"))
    assert process.wait() == 0, process.said
    assert ".tmp" not in process.said
    told = [line for line in process.said.splitlines() if line.startswith("warning")]
    assert len(told) == 1  # that the copied run has another name
    assert_same_result(toy.whole(), run)
    assert_tidy(run)


def exchange_steps(run: Path) -> None:
    one, other = list_checkpoints(run / "checkpoints")
    one.rename(run / "x")
    other.rename(one)
    (run / "x").rename(other)


def exchange_models(run: Path) -> None:
    one, other = (path / "model.safetensors" for path in list_checkpoints(run / "checkpoints"))
    one.rename(run / "x")
    other.rename(one)
    (run / "x").rename(other)


def flip_in_all(run: Path) -> None:
    for path in list_checkpoints(run / "checkpoints"):
        flip_a_bit(path / "training_state" / "state.safetensors")


def remove_all(run: Path) -> None:
    for path in list_checkpoints(run / "checkpoints"):
        shutil.rmtree(path)


TO_ALL: dict[str, Callable[[Path], None]] = {
    "names exchanged": exchange_steps,
    "models exchanged": exchange_models,
    "a bit flipped in each": flip_in_all,
    "all removed": remove_all,
}


@pytest.mark.parametrize("damage", TO_ALL)
def test_no_good_one_is_left(toy: Toy, damage: str, note: Callable[..., None]) -> None:
    """Refused with each reason and what to do; the run stays as it is, and is not begun again."""
    run = copied(toy, damage.replace(" ", "-"))
    names = [path.name for path in list_checkpoints(run / "checkpoints")]
    TO_ALL[damage](run)
    left = [path.name for path in list_checkpoints(run / "checkpoints")]
    before = figures(run / "metrics.jsonl")
    for arguments in (("--resume",), ("--resume", f"runs/{run.name}/checkpoints/{names[-1]}")):
        process = toy.programs.fork(*toy.arguments(run.name, *arguments))
        assert process.wait() == 2, process.said
        (line,) = process.said.splitlines()
        assert line.startswith("error: ")
        if arguments == ("--resume",):
            assert "Start anew with another --run-name" in line
            assert all(name in line for name in left)
    assert figures(run / "metrics.jsonl") == before
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == left
    again = toy.programs.fork(*toy.arguments(run.name))
    assert again.wait() == 2
    assert "already exists" in again.said
    note(Outcome())
