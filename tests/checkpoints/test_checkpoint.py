import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wmtp.checkpoints import checkpoint as checkpoint_module
from wmtp.checkpoints.checkpoint import (
    find_damage,
    newest_good,
    remove_leftovers,
    require_space,
    set_aside_after,
    verify,
    write_checkpoint,
    write_folder,
)
from wmtp.errors import CheckpointError, ConfigError, StorageError


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "training_state").mkdir()
    (folder / "training_state" / "state.json").write_text("{}\n")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_checkpoint_is_good(tmp_path: Path) -> None:
    target = write_checkpoint(tmp_path, 100, fill, keep_last=1)
    assert target == tmp_path / "step-00000100"
    assert find_damage(target) is None
    verify(target)
    assert names(target) == ["manifest.json", "model.safetensors", "training_state"]
    assert newest_good(tmp_path) == (target, [])


def test_oldest_are_removed_after_the_newest_is_there(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        write_checkpoint(tmp_path, step, fill, keep_last=2)
    assert names(tmp_path) == ["step-00000015", "step-00000020"]
    for step in (25, 30):
        write_checkpoint(tmp_path, step, fill, keep_last=None)
    assert len(names(tmp_path)) == 4


def test_the_one_just_written_is_never_removed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 50, fill, keep_last=1)
    write_checkpoint(tmp_path, 40, fill, keep_last=1)
    assert names(tmp_path) == ["step-00000040"]


def test_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    target = write_checkpoint(tmp_path, 5, fill, keep_last=2)
    (target / "model.safetensors").write_bytes(b"damaged")
    write_checkpoint(tmp_path, 5, fill, keep_last=2)
    assert newest_good(tmp_path) == (target, [])
    assert names(tmp_path) == ["step-00000005"]


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[350] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 10)


def lose_a_file(folder: Path) -> None:
    (folder / "training_state" / "state.json").unlink()


def add_a_file(folder: Path) -> None:
    (folder / "extra.bin").touch()


def swap_files(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "x")
    (folder / "training_state" / "state.json").rename(folder / "model.safetensors")
    (folder / "x").rename(folder / "training_state" / "state.json")


def put_a_link(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder.parent / "elsewhere").write_bytes(content)
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def empty_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("")


def nest_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


def manifest_of_another_kind(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": 1, "step": 100, "files": [1]}')


def manifest_pointing_out(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"bytes": 0, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def empty_the_folder(folder: Path) -> None:
    lose_a_file(folder)
    (folder / "training_state").rmdir()
    for path in folder.iterdir():
        path.unlink()


def take_anothers_place(folder: Path) -> None:
    folder.rename(folder.with_name("x"))
    (folder.with_name("step-00000050")).rename(folder)


def become_a_file(folder: Path) -> None:
    empty_the_folder(folder)
    folder.rmdir()
    folder.touch()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "is damaged: model.safetensors differs from its checksum"),
        (truncate, "is damaged: model.safetensors has 10 bytes, not 700"),
        (lose_a_file, "lacks training_state/state.json"),
        (add_a_file, "holds extra.bin, which is not in its manifest.json"),
        (swap_files, "is damaged: model.safetensors has 3 bytes, not 700"),
        (put_a_link, "holds model.safetensors, which is not an ordinary file"),
        (lose_the_manifest, "has no manifest.json"),
        (empty_the_manifest, "has a manifest.json that cannot be read"),
        (nest_the_manifest, "has a manifest.json that cannot be read"),
        (manifest_of_another_kind, "has a manifest.json that cannot be read"),
        (manifest_pointing_out, "lacks ../../secret"),
        (empty_the_folder, "has no manifest.json"),
        (take_anothers_place, "holds step 50 under another step's name"),
        (become_a_file, "is a file, not a folder"),
    ],
)
def test_damage_is_found_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    older = write_checkpoint(tmp_path, 20, fill, keep_last=None)
    write_checkpoint(tmp_path, 50, fill, keep_last=None)
    newest = write_checkpoint(tmp_path, 100, fill, keep_last=None)
    if damage is not take_anothers_place:
        (tmp_path / "step-00000050").rename(tmp_path / "another")
    damage(newest)
    with pytest.raises(CheckpointError) as caught:
        verify(newest)
    assert str(caught.value).startswith(f"checkpoint {newest} {reason}")
    found, refused = newest_good(tmp_path)
    assert found == older
    assert [path for path, _ in refused] == [newest]
    assert refused[0][1].startswith(reason)


def test_every_single_flipped_bit_of_the_manifest_is_found(tmp_path: Path) -> None:
    target = write_checkpoint(tmp_path, 100, fill, keep_last=None)
    good = (target / "manifest.json").read_bytes()
    meaning = json.loads(good)
    for place in range(len(good)):
        content = bytearray(good)
        content[place] ^= 1 << (place % 8)
        (target / "manifest.json").write_bytes(content)
        try:
            same = json.loads(content) == meaning  # a blank more or less
        except ValueError:
            same = False
        assert same or find_damage(target) is not None, content


def test_no_good_one_is_an_error_that_names_each(tmp_path: Path) -> None:
    truncate(write_checkpoint(tmp_path, 1, fill, keep_last=None))
    lose_a_file(write_checkpoint(tmp_path, 2, fill, keep_last=None))
    with pytest.raises(CheckpointError) as caught:
        newest_good(tmp_path)
    message = str(caught.value)
    assert message.index("step-00000002 lacks") < message.index("step-00000001 is damaged")
    assert message.endswith("Start anew with another --run-name.")
    with pytest.raises(CheckpointError, match="it is empty"):
        newest_good(tmp_path / "none")


KILLED_WRITERS = """
import os, signal, sys
from pathlib import Path
from wmtp.checkpoints import checkpoint

def fill(path):
    (path / "a").write_text("one")
    (path / "b").mkdir()
    (path / "b" / "c").write_text("two")

def write_and_be_killed(folder, moment):
    calls = 0

    def counted(function):
        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)
        return call

    for name in ("sync_file", "sync_folder", "remove", "_write_manifest"):
        setattr(checkpoint, name, counted(getattr(checkpoint, name)))
    for name in ("rename", "mkdir", "write_text", "rmdir", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))
    os.unlink, os.rmdir = counted(os.unlink), counted(os.rmdir)
    for step in (1, 2, 2, 3):
        checkpoint.write_checkpoint(folder, step, fill, keep_last=1)

moment, was_killed, newest = 0, True, 0
while was_killed:
    moment += 1
    folder = Path(sys.argv[1]) / str(moment)
    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            write_and_be_killed(folder, moment)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    was_killed = os.WIFSIGNALED(status)
    assert was_killed or os.WEXITSTATUS(status) == 0
    found = checkpoint.list_checkpoints(folder)
    for path in found:
        assert checkpoint.find_damage(path) is None, (moment, path)
    checkpoint.remove_leftovers(folder)
    assert not list(folder.glob(".tmp*"))
    # the first save's moments apart, and the instant in which step 2 is replaced, one is there
    assert found or newest in (0, 2), moment
    newest = checkpoint.step_of(found[-1]) if found else newest
print(moment, *[path.name for path in sorted(folder.iterdir())])
"""


def test_writer_killed_at_any_moment_leaves_no_torn_checkpoint(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED_WRITERS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    moments, *left = result.stdout.split()
    assert int(moments) > 60
    assert left == ["step-00000003"]


def test_disk_error_leaves_older_ones_and_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = write_checkpoint(tmp_path, 1, fill, keep_last=1)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for part in ("sync_file", "sync_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_module, part, full)
            with pytest.raises(StorageError) as caught:
                write_checkpoint(tmp_path, 2, fill, keep_last=1)
        assert str(caught.value) == (
            f"{tmp_path / 'step-00000002'} could not be written: No space left on device."
        )
        assert names(tmp_path) == [older.name]
    assert find_damage(older) is None


def test_real_size_limit_reached_inside_safetensors_is_a_storage_error(tmp_path: Path) -> None:
    code = f"""
import resource, signal, torch
from pathlib import Path
from wmtp.checkpoints.checkpoint import write_checkpoint
from wmtp.checkpoints.training_state import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
def fill(path):
    save_state(path / "training_state", {{"x": torch.zeros(100_000)}}, {{}})
try:
    write_checkpoint(Path({str(tmp_path)!r}), 1, fill, keep_last=1)
except Exception as error:
    print(type(error).__name__, error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith("StorageError"), result.stderr
    assert "File too large" in result.stdout
    assert names(tmp_path) == []


def test_exception_in_the_callback_is_not_disguised(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 1, fail, keep_last=1)
    assert names(tmp_path) == []


def test_leftovers_of_others_are_removed_and_nothing_else(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, fill, keep_last=1)
    (tmp_path / ".tmp-step-00000002-77").mkdir()
    (tmp_path / "notes.txt").touch()
    assert remove_leftovers(tmp_path) == [".tmp-step-00000002-77"]
    assert names(tmp_path) == ["notes.txt", "step-00000001"]
    assert remove_leftovers(tmp_path / "none") == []


def test_later_checkpoints_are_set_aside_whole(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, fill, keep_last=None)
    moved = set_aside_after(tmp_path, 1)
    assert [path.name for path in moved] == ["set-aside-step-00000002", "set-aside-step-00000003"]
    assert newest_good(tmp_path)[0].name == "step-00000001"
    verify(moved[0])


def test_final_folder_is_written_and_replaced_the_same_way(tmp_path: Path) -> None:
    write_folder(tmp_path / "final", 10, fill)
    write_folder(tmp_path / "final", 20, fill)
    verify(tmp_path / "final")
    assert names(tmp_path) == ["final"]


def test_run_whose_checkpoints_cannot_fit_is_refused(tmp_path: Path) -> None:
    require_space(tmp_path, 1000, keep_last=2)
    with pytest.raises(ConfigError, match=r"keep_last is 2: 3 checkpoints of .* GB and"):
        require_space(tmp_path, 10**15, keep_last=2)
    with pytest.raises(ConfigError, match=r"results of 1000000.00 GB need 1000000.00 GB more"):
        require_space(tmp_path, 1000, keep_last=2, result_bytes=10**15)


def test_keeping_none_is_a_programmers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_last is 0"):
        write_checkpoint(tmp_path, 1, fill, keep_last=0)


def test_file_that_cannot_be_read_is_a_reason_and_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_checkpoint(tmp_path, 1, fill, keep_last=1)
    real = checkpoint_module.checksum

    def fail_on_state(path: Path) -> str:
        if path.name == "state.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(checkpoint_module, "checksum", fail_on_state)
    assert find_damage(target) == "cannot be read: Input/output error"
    with pytest.raises(StorageError, match="could not be written: Input/output error"):
        write_checkpoint(tmp_path, 2, fill, keep_last=1)
    assert names(tmp_path) == ["step-00000001"]
