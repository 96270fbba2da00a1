"""Files that are whole on disk or not there at all."""

import fcntl
import glob
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from wmtp.errors import StorageError

# On macOS fsync only reaches the drive's cache; this flushes the drive as well.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
_SECONDS_OF_A_DAY: Final = 86_400.0


@contextmanager
def storage_errors(failure: str) -> Iterator[None]:
    """Turn a failed write inside the block into a StorageError that begins with ``failure``.

    Example:
        >>> with storage_errors("results.json could not be written"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ...
        wmtp.errors.StorageError: results.json could not be written: No space left on device.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{failure}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise StorageError(f"{failure}: {error}.") from error


def sync_file(path: Path) -> None:
    """Return when the file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Return when the folder's entries (new names, renames, removals) are on the disk."""
    sync_file(path)


def temporary_name(path: Path) -> Path:
    """What this process calls, until it is whole, what is to become ``path``."""
    return path.with_name(f".tmp-{path.name}-{os.getpid()}")


def temporary_beside(path: Path) -> Path:
    """As ``temporary_name``, in a folder that no lock guards.

    What a killed process left under such a name is removed when it is a day old: a younger one may
    be another process's that is at work, on this machine or on another one of a shared disk.
    """
    yesterday = time.time() - _SECONDS_OF_A_DAY
    for left in path.parent.glob(f".tmp-{glob.escape(path.name)}-*"):
        with suppress(OSError):
            if max(one.lstat().st_mtime for one in (left, *left.rglob("*"))) < yesterday:
                remove(left)
    return temporary_name(path)


def remove(path: Path) -> None:
    """Remove a file or a link, or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a reader, or a crash, meets the old file or the new.

    Raises:
        OSError: nothing was changed, and no temporary file is left.
    """
    with whole_file(path, temporary_name(path)):
        temporary_name(path).write_bytes(content)


@contextmanager
def whole_file(path: Path, temporary: Path) -> Iterator[None]:
    """What the block writes to ``temporary`` becomes ``path``, or nothing does if it fails.

    Raises:
        OSError: nothing was changed, and no temporary file is left.
    """
    try:
        yield
        sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _sync(descriptor: int) -> None:
    if _FULL_SYNC is not None:
        try:
            fcntl.fcntl(descriptor, _FULL_SYNC)
        except OSError:  # network drives do not know it
            pass
        else:
            return
    os.fsync(descriptor)
