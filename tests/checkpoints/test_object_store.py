import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from tests.object_store import BUCKET, Server, s3_server

from wmtp.checkpoints.checkpoint import (
    find_damage,
    list_checkpoints,
    write_checkpoint,
    write_folder,
)
from wmtp.checkpoints.object_store import (
    ObjectStore,
    bring_folder,
    bring_newest,
    complete_checkpoints,
    prune,
    send_folder,
    set_aside_there,
)
from wmtp.checkpoints.uploads import Uploads
from wmtp.errors import CheckpointError, ConfigError, StorageError
from wmtp.runtime.console import Console
from wmtp.runtime.run_folder import RunFolder

URL = f"s3://{BUCKET}/team/run"


@pytest.fixture
def server() -> Iterator[Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def store(server: Server) -> ObjectStore:
    return ObjectStore(URL)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.settings_file.write_text("seed: 0\n")
    run.metrics_file.write_text('{"step": 1}\n')
    return run


def save(run: RunFolder, step: int, keep_last: int | None = None) -> Path:
    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights" * step)
        (folder / "training_state").mkdir()
        (folder / "training_state" / "state.json").write_text("{}\n")

    return write_checkpoint(run.checkpoints, step, fill, keep_last)


def fill_otherwise(folder: Path) -> None:
    (folder / "a").write_text("x")


def send(store: ObjectStore, checkpoint: Path) -> bool:
    return send_folder(store, checkpoint, f"checkpoints/{checkpoint.name}")


def test_folder_arrives_with_its_manifest_last_and_comes_back_whole(
    server: Server, store: ObjectStore, run: RunFolder, tmp_path: Path
) -> None:
    sent = save(run, 5)
    assert send(store, sent)
    assert server.puts == [
        f"team/run/checkpoints/step-00000005/{name}"
        for name in ("model.safetensors", "training_state/state.json", "manifest.json")
    ]
    brought = bring_folder(store, "checkpoints/step-00000005", tmp_path / "step-00000005")
    assert find_damage(brought) is None
    assert (brought / "model.safetensors").read_bytes() == b"weights" * 5
    assert (brought / "manifest.json").read_bytes() == (sent / "manifest.json").read_bytes()
    server.puts.clear()
    assert not send(store, sent)  # nothing has changed
    assert server.puts == []


def test_copy_of_another_course_is_replaced(
    store: ObjectStore, run: RunFolder, tmp_path: Path
) -> None:
    send(store, save(run, 5))
    assert send(store, write_checkpoint(run.checkpoints, 5, fill_otherwise, None))
    brought = bring_folder(store, "checkpoints/step-00000005", tmp_path / "step-00000005")
    assert [path.name for path in sorted(brought.iterdir())] == ["a", "manifest.json"]


def test_server_that_fails_in_the_middle_leaves_no_complete_copy(
    server: Server, store: ObjectStore, run: RunFolder
) -> None:
    send(store, save(run, 5))
    server.refuses_after = 1
    with pytest.raises(StorageError, match=rf"{URL}/checkpoints/step-00000006/.* not be written"):
        send(store, save(run, 6))
    assert complete_checkpoints(store) == ["step-00000005"]
    server.recover()
    assert send(store, run.checkpoints / "step-00000006")
    assert complete_checkpoints(store) == ["step-00000005", "step-00000006"]


def test_replacing_a_copy_that_fails_in_the_middle_leaves_no_mixture(
    server: Server, store: ObjectStore, run: RunFolder
) -> None:
    send(store, save(run, 5))
    other = write_checkpoint(run.checkpoints, 5, fill_otherwise, None)
    server.refuses_after = 0
    with pytest.raises(StorageError):
        send(store, other)
    assert complete_checkpoints(store) == []


KILLED = """
import sys
from pathlib import Path
from wmtp.checkpoints.object_store import ObjectStore, send_folder
send_folder(ObjectStore(sys.argv[1]), Path(sys.argv[2]), "checkpoints/step-00000007")
"""


def test_killed_upload_is_not_taken_for_a_checkpoint_and_is_cleared_away(
    server: Server, store: ObjectStore, run: RunFolder
) -> None:
    half = save(run, 7)
    server.stalls_after = 1
    process = subprocess.Popen([sys.executable, "-c", KILLED, URL, str(half)])
    assert server.stalled.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(store.sizes("checkpoints")) == ["step-00000007/model.safetensors"]
    assert complete_checkpoints(store) == []
    server.recover()
    send(store, save(run, 8))
    prune(store, 2)
    time.sleep(0.1)
    prune(store, 2)
    assert {name.partition("/")[0] for name in store.sizes("checkpoints")} == {"step-00000008"}


def test_old_copies_are_removed_manifest_first(store: ObjectStore, run: RunFolder) -> None:
    for step in (1, 2, 3):
        send(store, save(run, step))
    removed: list[str] = []
    real = store.remove

    def remove(name: str) -> None:
        removed.append(name)
        real(name)

    store.remove = remove  # type: ignore[method-assign]
    prune(store, 2)
    assert complete_checkpoints(store) == ["step-00000002", "step-00000003"]
    assert removed[0] == "checkpoints/step-00000001/manifest.json"
    assert len(removed) == 3
    assert not any("step-00000001" in name for name in store.sizes("checkpoints"))


def test_copies_of_a_course_given_up_no_longer_count(store: ObjectStore, run: RunFolder) -> None:
    for step in (1, 2, 3):
        send(store, save(run, step))
    assert set_aside_there(store, 1) == ["step-00000002", "step-00000003"]
    assert complete_checkpoints(store) == ["step-00000001"]
    assert "step-00000003/model.safetensors" in store.sizes("checkpoints")
    send(store, run.checkpoints / "step-00000003")
    prune(store, 1)
    assert "step-00000002/set-aside-manifest.json" in store.sizes("checkpoints")


def test_damaged_copy_is_passed_over_and_leaves_nothing(
    store: ObjectStore, run: RunFolder, tmp_path: Path
) -> None:
    for step in (1, 2):
        send(store, save(run, step))
    store.write("checkpoints/step-00000002/model.safetensors", b"weightsWeights")
    store.write("metrics.jsonl", b'{"step": 2}\n')
    store.write("run.yaml", b"seed: 1\n")
    empty = RunFolder(tmp_path / "elsewhere")
    empty.checkpoints.mkdir(parents=True)
    told: list[str] = []
    brought = bring_newest(store, empty, told.append)
    assert brought == empty.checkpoints / "step-00000001"
    assert told == [
        f"{URL}/checkpoints/step-00000002 is damaged: model.safetensors differs from its "
        "checksum. Not used."
    ]
    assert [path.name for path in empty.checkpoints.iterdir()] == ["step-00000001"]
    assert empty.metrics_file.read_text() == '{"step": 2}\n'
    assert empty.settings_file.read_text() == "seed: 1\n"


@pytest.mark.parametrize(
    "name", ["../../escaped", "/tmp/escaped", "a/../../escaped", "..", "a//b", "..\\x", ""]
)
def test_manifest_that_points_out_of_its_folder_is_refused(
    store: ObjectStore, tmp_path: Path, name: str
) -> None:
    manifest = {"format": 1, "step": 1, "files": {name: {"bytes": 1, "sha256": ""}}}
    store.write("checkpoints/step-00000001/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(CheckpointError, match=r"has a manifest.json that names"):
        bring_folder(store, "checkpoints/step-00000001", tmp_path / "run" / "step-00000001")
    assert not list(tmp_path.iterdir())


def test_manifest_that_is_none_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    for content in (b"", b"[]", b"\xff", b'{"format": 1, "step": 2, "files": {}}'):
        store.write("checkpoints/step-00000001/manifest.json", content)
        with pytest.raises(CheckpointError, match="that is none, or another step's"):
            bring_folder(store, "checkpoints/step-00000001", tmp_path / "step-00000001")


def test_store_that_cannot_be_used_is_told_at_once_without_secrets(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ObjectStore(URL).check()
    assert ObjectStore(URL).sizes() == {}  # the probe is gone
    with pytest.raises(ConfigError, match="upload_to cannot be used: s3://gone/run.*bucket does"):
        ObjectStore("s3://gone/run").check()
    server.refuses_after = 0
    with pytest.raises(ConfigError, match="Check the address, the credentials and the network"):
        ObjectStore(URL).check()
    assert "hunter2" not in ObjectStore("s3://me:hunter2@bucket/run").url
    with pytest.raises(ConfigError, match="no-such://b.*Use an address such as s3://bucket"):
        ObjectStore("no-such://b")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'wmtp\[s3\]'"):
        ObjectStore(URL)


def test_folder_of_a_shared_disk_serves_as_well(run: RunFolder, tmp_path: Path) -> None:
    store = ObjectStore((tmp_path / "shared" / "run").as_uri())
    store.check()
    send(store, save(run, 3))
    assert complete_checkpoints(store) == ["step-00000003"]
    assert bring_folder(store, "checkpoints/step-00000003", tmp_path / "step-00000003").is_dir()


# the thread ---------------------------------------------------------------------------------------


def test_everything_is_there_when_the_block_ends(store: ObjectStore, run: RunFolder) -> None:
    with Console(stream=StringIO()) as console, Uploads(store, run, 2, console) as uploads:
        for step in (1, 2, 3):
            save(run, step)
            uploads.wake()
        write_folder(run.final, 3, fill_otherwise)
    assert complete_checkpoints(store)[-1] == "step-00000003"
    assert len(complete_checkpoints(store)) <= 2
    assert {"run.yaml", "metrics.jsonl", "final/a", "final/manifest.json"} <= set(store.sizes())


def test_checkpoint_that_is_being_copied_stays_on_the_disk(
    server: Server, store: ObjectStore, run: RunFolder
) -> None:
    first = save(run, 1)
    server.stalls_after = 2  # settings and metrics pass
    with Console(stream=StringIO()) as console, Uploads(store, run, 1, console) as uploads:
        uploads.wake()
        assert server.stalled.wait(30)
        assert uploads.is_reading(first)
        write_checkpoint(run.checkpoints, 2, fill_otherwise, 1, uploads.is_reading)
        assert [path.name for path in list_checkpoints(run.checkpoints)] == [
            "step-00000001", "step-00000002",
        ]  # fmt: skip
        server.recover()
    write_checkpoint(run.checkpoints, 3, fill_otherwise, 1, uploads.is_reading)
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step-00000003"]
    assert complete_checkpoints(store) == ["step-00000002"]


def test_failure_is_told_once_and_made_up_for(
    server: Server, store: ObjectStore, run: RunFolder
) -> None:
    shown = StringIO()
    with Console(stream=shown) as console, Uploads(store, run, 2, console) as uploads:
        server.refuses_after = 0
        for step in (1, 2):
            save(run, step)
            uploads.wake()
            deadline = time.monotonic() + 30
            while uploads._failure is None and time.monotonic() < deadline:
                time.sleep(0.01)
        server.recover()
    assert shown.getvalue().count("warning") == 1
    assert "tried again at the next checkpoint" in " ".join(shown.getvalue().split())
    assert complete_checkpoints(store) == ["step-00000002"]


def test_what_never_arrives_is_an_error_that_says_what_is_safe(
    server: Server, store: ObjectStore, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmtp.checkpoints.uploads._DELAYS_AT_THE_END_SECONDS", (0.0, 0.01))
    server.refuses_after = 0
    save(run, 1)

    def train(error: Exception | None) -> None:
        with Console(stream=shown) as console, Uploads(store, run, 2, console) as uploads:
            uploads.wake()
            if error is not None:
                raise error

    shown = StringIO()
    with pytest.raises(StorageError) as caught:
        train(None)
    assert caught.value.exit_code == 4
    assert f"what is in {run.root} is safe, and --resume sends it again" in str(caught.value)
    with pytest.raises(KeyError, match="another"):
        train(KeyError("another"))
    assert "is safe" in " ".join(shown.getvalue().split())
    said = shown.getvalue() + str(caught.value)
    assert "a-secret-key" not in said


def test_second_signal_does_not_wait_for_a_store_that_hangs(
    server: Server, store: ObjectStore, run: RunFolder
) -> None:
    server.stalls_after = 0

    def train() -> None:
        with Console(stream=StringIO()) as console, Uploads(store, run, 2, console) as uploads:
            uploads.wake()
            assert server.stalled.wait(30)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train()
    assert time.monotonic() - started < 5
