"""Runs that save behind training, and runs whose disk refuses."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import wait_until
from tests.processes.programs import Programs
from wmtp.checkpoints.checkpoint import list_checkpoints, newest_good
from wmtp.config_check import load_settings
from wmtp.distributed.ranks import ALONE, Ranks
from wmtp.errors import ConfigError, StorageError
from wmtp.job import assembled
from wmtp.state import Snapshot, checkpoint_bytes, model_bytes
from wmtp.step import set_in_motion

from .conftest import World
from .test_every_combination import WEIGHTINGS, labelled_rows
from .test_train import assert_same_run, figures

BEHIND = ("--set", "paths.checkpoints.asynchronous=true")


def break_saves(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let the disk be full when these steps are saved."""
    real = Snapshot.write

    def write(snapshot: Snapshot, folder: Path, ranks: Ranks = ALONE) -> None:
        real(snapshot, folder)
        if snapshot.values["progress"]["step"] in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Snapshot, "write", write)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_saving_behind_training_equals_waiting_to_the_last_bit(
    world: World, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    world.recipe["model"]["dropout"] = 0.1  # draws random numbers
    world.recipe["optim"]["name"] = optimizer
    world.config["paths"]["checkpoints"] |= {"save_interval": 3, "keep_last": 4}
    world.train("waiting")
    real, slow = Snapshot.write, []

    def write_slowly(snapshot: Snapshot, folder: Path, ranks: Ranks = ALONE) -> None:
        time.sleep(0.3)  # training is two steps on when the first byte is written
        slow.append(len(figures(world.runs / "behind")))
        real(snapshot, folder)

    monkeypatch.setattr(Snapshot, "write", write_slowly)
    world.train("behind", *BEHIND)
    assert slow[0] > 4  # four rows were there when step 3 was saved
    for step in (3, 6, 8):
        assert_same_run(world.runs / "waiting", world.runs / "behind", step)


def test_a_signal_waits_for_the_save_and_resumes_to_the_same_run(world: World) -> None:
    from .test_train import stopped_at

    world.train("whole")
    stopped_at(world, "parts", 5, signal.SIGTERM, *BEHIND)
    world.train("parts", "--resume", *BEHIND)
    assert_same_run(world.runs / "whole", world.runs / "parts")


@pytest.mark.parametrize("more", [(), BEHIND], ids=["waiting", "behind"])
def test_a_full_disk_that_has_room_again_costs_one_checkpoint(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    more: tuple[str, ...],
) -> None:
    world.train("whole")
    capfd.readouterr()
    world.config["paths"]["checkpoints"]["save_interval"] = 2
    break_saves(monkeypatch, 4)
    assert world.train("run", *more) == 0
    err = " ".join(capfd.readouterr().err.split())
    assert err.count("No space left on device") == 1
    assert "the last good checkpoint is that of step 2" in err
    saved = [path.name for path in list_checkpoints(world.runs / "run" / "checkpoints")]
    assert saved == ["step-00000006", "step-00000008"]
    assert_same_run(world.runs / "whole", world.runs / "run")


@pytest.mark.parametrize("more", [(), BEHIND], ids=["waiting", "behind"])
def test_a_last_save_that_fails_ends_with_4_and_names_the_last_good_step(
    world: World, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    with monkeypatch.context() as patch:
        break_saves(patch, 8)
        with pytest.raises(StorageError, match="step-00000008 .*No space.* is that of step 4"):
            world.train("run", *more)
    run = world.runs / "run"
    assert not (run / "final").exists()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000004"]
    world.train("whole")
    assert world.train("run", "--resume", *more) == 0
    assert_same_run(world.runs / "whole", run)


def test_no_checkpoint_at_all_ends_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    break_saves(monkeypatch, 4, 8)
    with pytest.raises(StorageError, match="step-00000004 .* There is no good checkpoint"):
        world.train("run")
    assert max(row["step"] for row in figures(world.runs / "run")) == 4


def test_final_that_cannot_be_written_is_written_by_a_resume(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("wmtp.train.fill_final", full)
        with pytest.raises(StorageError, match="final could not .*No space.* that of step 8"):
            world.train("run")
    assert not list((world.runs / "run").glob(".tmp*"))
    assert world.train("run", "--resume") == 0
    assert (world.runs / "run" / "final" / "manifest.json").is_file()


def test_a_real_limit_on_file_sizes_ends_with_4(world: World) -> None:
    """The model is 130 kB and the optimizer's state twice that: the second file does not fit."""
    world.write_files()
    process = Programs(world.folder).fork(
        *("train", "--config", "config.yaml", "--recipe", "recipe.yaml", "--run-name", "real"),
        largest_file=200 * 2**10,
    )
    assert process.wait() == 4, process.said
    assert "error: " in process.said
    assert "step-00000004 could not be written: File too large" in process.said
    assert "Traceback" not in process.said
    assert list((world.runs / "real" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_space_is_asked_for_as_it_is_used(world: World, optimizer: str) -> None:
    rows = world.folder / "rows.jsonl"
    labelled_rows(rows)
    world.recipe["data"]["train"]["sources"] = [str(rows)]
    world.recipe["weighting"] = WEIGHTINGS["critic-wmtp"]
    world.recipe["optim"]["name"] = optimizer
    world.recipe["train"]["max_steps"] = 1
    world.train("run")
    found, _ = newest_good(world.runs / "run" / "checkpoints")
    written = sum((found / name).stat().st_size for name in (
        "model.safetensors", "training_state/state.safetensors"))  # fmt: skip
    with assembled(load_settings(*world.write_files()), lambda _: None) as job:
        moving = set_in_motion(job)
        expected = checkpoint_bytes(moving.model, moving.value_head, optimizer)  # type: ignore[arg-type]
        final = model_bytes(moving.model)
    # headers with names, random states and steps: some 50 kB that a real model dwarfs
    assert 0 < written - expected < 60_000
    of_final = (world.runs / "run" / "final" / "model.safetensors").stat().st_size
    assert 0 < of_final - final < 10_000


def test_a_run_that_cannot_fit_is_refused_before_its_first_step(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 2_500_000

    monkeypatch.setattr("wmtp.checkpoints.checkpoint.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(ConfigError, match=r"keep_last is 2: 3 checkpoints of .* free"):
        world.train("run")
    assert world.train("run", "--set", "paths.checkpoints.keep_last=1", "--set",
                       "paths.checkpoints.save_final=false") == 0  # fmt: skip


def test_a_second_signal_does_not_wait_for_a_save_behind_training(world: World) -> None:
    """The first waits for a disk that hangs for a minute, as it should.

    Five seconds are promised; on a machine that runs four times as much as it can, it may be more.
    """
    world.recipe["train"]["max_steps"] = 100_000
    world.write_files()
    process = Programs(world.folder).fork(
        *("train", "--config", "config.yaml", "--recipe", "recipe.yaml"),
        *("--run-name", "real", *BEHIND),
        hang_in_saves=True,
    )
    wait_until(process, (world.folder / "hangs").exists)
    process.kill(signal.SIGTERM)
    assert process.reap(1.0) is None
    started = time.monotonic()
    process.kill(signal.SIGTERM)
    assert process.wait(60.0) == 143, process.said
    assert time.monotonic() - started < 20
    assert "leaked" not in process.said
    assert "Traceback" not in process.said
