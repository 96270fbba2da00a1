"""Runs that are copied to an S3 server, and go on from there on another machine."""

import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.object_store import BUCKET, Server, s3_server
from wmtp.checkpoints.checkpoint import find_damage
from wmtp.checkpoints.object_store import ObjectStore, complete_checkpoints
from wmtp.errors import CheckpointError, ConfigError, StorageError

from .conftest import World
from .test_train import assert_same_run, stopped_at


@pytest.fixture
def server() -> Iterator[Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def stored(world: World, server: Server) -> World:
    world.config["paths"]["checkpoints"] |= {
        "upload_to": f"s3://{BUCKET}/team",
        "asynchronous": True,
    }
    return world


def store_of(name: str) -> ObjectStore:
    return ObjectStore(f"s3://{BUCKET}/team/{name}")


def test_a_run_goes_on_from_the_store_on_another_machine(
    stored: World, capfd: pytest.CaptureFixture[str]
) -> None:
    stored.train("whole", "--set", "paths.checkpoints.upload_to=null")
    stopped_at(stored, "parts", 5, signal.SIGTERM)
    assert "step-00000005" in complete_checkpoints(store_of("parts"))
    shutil.rmtree(stored.runs / "parts")
    assert stored.train("parts", "--resume") == 0
    assert "step-00000005 was brought from s3://runs/team/parts" in capfd.readouterr().err
    assert_same_run(stored.runs / "whole", stored.runs / "parts")
    there = store_of("parts")
    assert complete_checkpoints(there)[-1] == "step-00000008"
    assert {"final/manifest.json", "run.yaml", "metrics.jsonl"} <= there.sizes().keys()
    assert there.read("metrics.jsonl") == (stored.runs / "parts" / "metrics.jsonl").read_bytes()


def test_damage_here_and_there_is_passed_over(stored: World) -> None:
    stored.train("run")
    newest = stored.runs / "run" / "checkpoints" / "step-00000008"
    for checkpoint in (stored.runs / "run" / "checkpoints").iterdir():
        (checkpoint / "model.safetensors").write_bytes(b"damaged")
    assert stored.train("run", "--resume") == 0  # nothing is left to do but what is brought
    assert find_damage(newest) is None
    for name in complete_checkpoints(store_of("run")):
        store_of("run").write(f"checkpoints/{name}/model.safetensors", b"damaged")
    shutil.rmtree(stored.runs / "run")
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from"):
        stored.train("run", "--resume")


def test_a_name_taken_in_the_store_is_refused(stored: World) -> None:
    stored.train("run")
    shutil.rmtree(stored.runs / "run")
    with pytest.raises(ConfigError, match="'run' already exists in s3://runs/team/run"):
        stored.train("run")
    with pytest.raises(ConfigError, match="holds no run"):
        stored.train("another", "--resume")


def test_an_older_checkpoint_here_is_told_of_the_newer_one_there(
    stored: World, capfd: pytest.CaptureFixture[str]
) -> None:
    stored.train("run", "--set", "paths.checkpoints.keep_last=3")
    shutil.rmtree(stored.runs / "run" / "checkpoints" / "step-00000008")
    assert stored.train("run", "--resume") == 0
    err = " ".join(capfd.readouterr().err.split())
    assert "has step-00000008, but step-00000004 of this machine is resumed" in err
    assert "step-00000008 is set aside, beyond step 4" in err
    assert complete_checkpoints(store_of("run"))[-1] == "step-00000008"


def test_a_store_that_fails_until_the_end_is_4_and_a_resume_makes_up_for_it(
    stored: World, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmtp.checkpoints.uploads._DELAYS_AT_THE_END_SECONDS", (0.0,))
    server.refuses_after = 1  # the probe
    with pytest.raises(StorageError, match="runs/run is safe, and --resume sends it again"):
        stored.train("run")
    assert (stored.runs / "run" / "final" / "manifest.json").is_file()
    server.recover()
    assert stored.train("run", "--resume") == 0
    assert complete_checkpoints(store_of("run")) == ["step-00000008"]


def test_a_store_as_base_path_is_one_plain_error(world: World) -> None:
    world.config["paths"]["checkpoints"]["base_path"] = "s3://bucket/runs"
    with pytest.raises(ConfigError, match="must be a folder of this machine: set upload_to"):
        world.train("run")
