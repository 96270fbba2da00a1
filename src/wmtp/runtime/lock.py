"""One process to a run: the second is refused, the first never notices."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wmtp.errors import ConfigError, StorageError
from wmtp.runtime.durable import storage_errors

_held_descriptors: set[int] = set()


@contextmanager
def hold_run_lock(path: Path, run_name: str) -> Iterator[None]:
    """Hold the run's lock file for the length of the block.

    The kernel drops the lock when the process ends, however it ends, so none is ever stale. The
    file itself stays: removing it would let two processes lock two files of one name.

    Args:
        path: the lock file, created if missing; its folder exists.
        run_name: the user's name for the run, for the message.

    Raises:
        ConfigError: another process holds the lock.
        StorageError: the file system cannot lock files.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{path} could not be opened: {error.strerror}.") from error
    try:
        _lock(descriptor, path, run_name)
        _held_descriptors.add(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        _held_descriptors.discard(descriptor)
        os.close(descriptor)


@contextmanager
def no_rank_left(path: Path, run_name: str) -> Iterator[None]:
    """Refuse a run that ranks of an earlier start still write, though its first one is gone.

    Call it holding the run's lock. Ranks that start later join with ``hold_rank_lock``.

    Raises:
        ConfigError: such a rank lives.
        StorageError: the file system cannot lock files.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{path} could not be opened: {error.strerror}.") from error
    try:
        _lock(descriptor, path, run_name)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # now beside the others
        _held_descriptors.add(descriptor)
        yield
    finally:
        _held_descriptors.discard(descriptor)
        os.close(descriptor)


@contextmanager
def hold_rank_lock(path: Path) -> Iterator[None]:
    """Hold a run's second lock together with its other ranks for the length of the block.

    Raises:
        StorageError: the file cannot be opened or locked.
    """
    with storage_errors(f"{path} could not be locked"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held_descriptors.add(descriptor)
    try:
        yield
    finally:
        _held_descriptors.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, path: Path, run_name: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        by = f"process {holder}" if holder.isdigit() else "another process"
        raise ConfigError(
            f"run '{run_name}' is being written by {by}. "
            "Wait for it, stop it, or choose another --run-name."
        ) from error
    except OSError as error:
        hint = " Choose paths.checkpoints.base_path on a disk of this machine."
        unsupported = error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
        raise StorageError(
            f"{path} could not be locked: {error.strerror}.{hint if unsupported else ''}"
        ) from error


def _close_in_child() -> None:
    """Without this a forked loader worker would keep the lock of a parent that was killed."""
    while _held_descriptors:
        os.close(_held_descriptors.pop())


os.register_at_fork(after_in_child=_close_in_child)
