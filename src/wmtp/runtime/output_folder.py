"""A folder that a command fills over time, to be gone on with by the same command alone."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from wmtp.errors import ConfigError
from wmtp.runtime.lock import hold_run_lock

_TOLD = 3


@contextmanager
def hold_output_folder(lock_file: Path, out: Path) -> Iterator[None]:
    """Hold the folder's lock for the length of the block.

    Args:
        lock_file: created if missing; its folder exists.
        out: what the user calls the folder.

    Raises:
        ConfigError: another process writes it.
        StorageError: the file system cannot lock files.
    """
    with ExitStack() as held:
        try:
            held.enter_context(hold_run_lock(lock_file, str(out)))
        except ConfigError as error:
            raise ConfigError(
                f"'{out}' is being written by another process. Wait for it, or name another folder."
            ) from error
        yield


def refuse_other_beginning(folder: Path, changed: Sequence[str]) -> None:
    """Do not go on where something else was begun.

    Args:
        folder: which was begun.
        changed: what differs now, in plain words; nothing if all is the same.

    Raises:
        ConfigError: something differs.
    """
    if changed:
        raise ConfigError(
            f"'{folder}' was begun with something else: {first_few(changed)}.\n"
            "Put that back, delete the folder, or name another one."
        )


def first_few(changed: Sequence[str]) -> str:
    """The first three things that differ, and how many more there are.

    Example:
        >>> first_few(["a", "b", "c", "d"])
        'a; b; c (and 1 more)'
    """
    more = f" (and {len(changed) - _TOLD} more)" if len(changed) > _TOLD else ""
    return "; ".join(changed[:_TOLD]) + more
