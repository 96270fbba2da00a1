import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wmtp.checkpoints import checkpoint as checkpoint_module
from wmtp.checkpoints.checkpoint import find_damage
from wmtp.checkpoints.saving import Saver, last_good_step, naming_last_good
from wmtp.errors import StorageError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def fill(folder: Path) -> None:
    (folder / "weights").write_bytes(b"weights")


def refuse(number: int) -> Callable[[Path], None]:
    def fill_half(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    return fill_half


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save_and_leave(
    folder: Path,
    told: list[str],
    step: int,
    fill: Callable[[Path], None],
    error: BaseException | None,
    asynchronous: bool = True,
) -> None:
    """Begin a save and leave the block, with an exception if one is given."""
    with Saver(folder, 1, told.append, asynchronous=asynchronous) as saver:
        saver.save(step, fill)
        if error is not None:
            raise error


@pytest.fixture
def told() -> list[str]:
    return []


def test_training_goes_on_while_it_is_written(tmp_path: Path, told: list[str]) -> None:
    go_on = threading.Event()

    def fill_later(folder: Path) -> None:
        assert go_on.wait(10)
        fill(folder)

    with Saver(tmp_path, 2, told.append, asynchronous=True) as saver:
        saver.save(1, fill_later)
        assert last_good_step(tmp_path) is None
        saver.look()
        go_on.set()
        saver.wait()
        assert last_good_step(tmp_path) == 1
    assert told == []


def test_at_most_one_save_is_under_way_and_the_last_is_waited_for(
    tmp_path: Path, told: list[str]
) -> None:
    at_once = 0
    most = 0

    def fill_slowly(folder: Path) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        fill(folder)
        at_once -= 1

    with Saver(tmp_path, 2, told.append, asynchronous=True) as saver:
        for step in (1, 2, 3, 4):
            saver.save(step, fill_slowly, last=step == 4)
        assert names(tmp_path) == ["step-00000003", "step-00000004"]
    assert most == 1


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("number", DISK_ERRORS)
def test_refused_save_warns_and_the_next_is_tried(
    tmp_path: Path, told: list[str], number: int, asynchronous: bool
) -> None:
    with Saver(tmp_path, 1, told.append, asynchronous=asynchronous) as saver:
        saver.save(10, fill)
        saver.save(20, refuse(number))
        saver.wait()
        assert names(tmp_path) == ["step-00000010"]
        assert find_damage(tmp_path / "step-00000010") is None
        assert told == [
            f"{tmp_path / 'step-00000020'} could not be written: {os.strerror(number)}. Training "
            "goes on and saves again at the next interval; the last good checkpoint is that of "
            "step 10."
        ]
        saver.save(30, fill, last=True)
    assert names(tmp_path) == ["step-00000030"]


def test_refusal_in_the_background_is_noticed_at_the_next_look(
    tmp_path: Path, told: list[str]
) -> None:
    with Saver(tmp_path, 1, told.append, asynchronous=True) as saver:
        saver.save(10, refuse(errno.ENOSPC))
        time.sleep(0.2)  # the thread needs a millisecond
        with pytest.raises(StorageError, match="There is no good checkpoint"):
            saver.look()
    assert names(tmp_path) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_refusal_without_an_older_good_one_ends_training(
    tmp_path: Path, told: list[str], asynchronous: bool
) -> None:
    with Saver(tmp_path, 1, told.append) as saver:
        saver.save(5, fill)
    (tmp_path / "step-00000005" / "weights").write_bytes(b"damaged")
    message = "could not be written: Input/output error. There is no good checkpoint."
    with pytest.raises(StorageError, match=message):
        save_and_leave(tmp_path, told, 10, refuse(errno.EIO), None, asynchronous)
    assert told == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_refusal_of_the_last_save_is_an_error_that_names_the_last_good_step(
    tmp_path: Path, told: list[str], asynchronous: bool
) -> None:
    with Saver(tmp_path, 1, told.append, asynchronous=asynchronous) as saver:
        saver.save(10, fill)
        with pytest.raises(StorageError) as caught:
            saver.save(20, refuse(errno.EDQUOT), last=True)
    assert caught.value.exit_code == 4
    assert str(caught.value) == (
        f"{tmp_path / 'step-00000020'} could not be written: {os.strerror(errno.EDQUOT)}. The "
        "last good checkpoint is that of step 10: free space, then go on with --resume."
    )
    assert told == []


def test_mistake_of_ours_in_the_thread_is_raised_as_it_is(tmp_path: Path, told: list[str]) -> None:
    def fail(folder: Path) -> None:
        raise ZeroDivisionError("in the thread")

    with pytest.raises(ZeroDivisionError, match="in the thread"):
        save_and_leave(tmp_path, told, 1, fail, None)


def test_old_checkpoint_that_cannot_be_removed_is_a_warning_even_at_the_end(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Saver(tmp_path, 1, told.append) as saver:
        saver.save(1, fill)
        monkeypatch.setattr(checkpoint_module, "_prune", lambda *_: refuse_removal())
        saver.save(2, fill, last=True)
    assert told == ["step 1 could not be removed."]
    assert last_good_step(tmp_path) == 2


def refuse_removal() -> None:
    raise StorageError("step 1 could not be removed.")


def test_exception_in_the_block_waits_for_the_save_under_way(
    tmp_path: Path, told: list[str]
) -> None:
    def fill_slowly(folder: Path) -> None:
        time.sleep(0.2)
        fill(folder)

    with pytest.raises(KeyError, match="in the loop"):
        save_and_leave(tmp_path, told, 1, fill_slowly, KeyError("in the loop"))
    assert last_good_step(tmp_path) == 1
    with pytest.raises(KeyError, match="in the loop"):
        save_and_leave(tmp_path, told, 2, refuse(errno.EIO), KeyError("in the loop"))
    assert "The last good checkpoint is that of step 1" in told[0]


def test_second_signal_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, told: list[str]) -> None:
    let_go = threading.Event()

    def hang(folder: Path) -> None:
        let_go.wait(30)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        save_and_leave(tmp_path, told, 1, hang, KeyboardInterrupt())
    assert time.monotonic() - started < 5
    let_go.set()


def test_results_that_cannot_be_written_name_where_to_go_on_from(
    tmp_path: Path, told: list[str]
) -> None:
    with Saver(tmp_path, 1, told.append) as saver:
        saver.save(7, fill)
    with (
        pytest.raises(StorageError, match="final is full. The last good .* is that of step 7: fr"),
        naming_last_good(tmp_path),
    ):
        raise StorageError("final is full.")
