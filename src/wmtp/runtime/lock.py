"""One process to a run: the second is refused, the first never notices."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wmtp.errors import ConfigError, StorageError

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
