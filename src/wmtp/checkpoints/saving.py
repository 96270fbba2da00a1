"""When checkpoints are written, at once or behind training, and what a refusing disk means."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

from safetensors import SafetensorError

from wmtp.checkpoints.checkpoint import newest_good, step_of, write_checkpoint
from wmtp.checkpoints.uploads import Uploads
from wmtp.distributed.ranks import ALONE, Ranks
from wmtp.errors import CheckpointError, StorageError

_SECONDS_LEFT_TO_A_SAVE_WHEN_ENDED_AT_ONCE: Final = 0.2

Fill = Callable[[Path], None]
"""Writes every file of a checkpoint into the empty folder that it is given."""


@dataclass
class _Save:
    """A save in the background; ``error`` is set by its thread, and read when that has ended."""

    step: int
    thread: threading.Thread
    error: BaseException | None = None


@final
class Saver:
    """Writes the checkpoints of one run, for the length of a ``with`` block.

    A checkpoint that the disk refuses leaves the older ones as they were. While a good one is
    there a refusal costs a warning, and the next interval tries again; where none is there, or
    where it was the run's last save, it is an error. At most one save is under way.

        with Saver(folder.checkpoints, 2, console.warning, asynchronous=True) as saver:
            for step in ...:
                saver.look()
                saver.wait()  # before the copy is taken: two would be in memory
                saver.save(step, take_snapshot(...).write, last=...)

    An exception that leaves the block waits for the save under way, so that no more than one
    interval is lost; KeyboardInterrupt and SystemExit, the second signal, leave it behind, and
    what is left of it is removed by the next start.
    """

    def __init__(
        self,
        checkpoints: Path,
        keep_last: int,
        warn: Callable[[str], None],
        *,
        asynchronous: bool = False,
        ranks: Ranks = ALONE,
        uploads: Uploads | None = None,
    ) -> None:
        """Write nothing yet.

        Args:
            checkpoints: folder of the run's checkpoints; it exists.
            keep_last: checkpoints to keep, at least 1.
            warn: shows a line to the user.
            asynchronous: write in a thread; what fills the folder must not change meanwhile.
            ranks: who writes together; each fills its part of the same folder, and all must
                save the same steps. Nobody else may use them to talk.
            uploads: is told of each new checkpoint, and keeps the one that it reads.
        """
        self._checkpoints = checkpoints
        self._keep_last = keep_last
        self._warn = warn
        self._asynchronous = asynchronous
        self._ranks = ranks
        self._uploads = uploads
        self._under_way: _Save | None = None

    def save(self, step: int, fill: Fill, *, last: bool = False) -> None:
        """Save, or begin to; waits for the save under way first.

        Args:
            step: optimizer steps done.
            fill: writes the checkpoint's files.
            last: no save comes after this one: return when it is there.

        Raises:
            StorageError: the disk refused, and there is no older good checkpoint or this is the
                last one; or so did the save before. Names path, reason and the last good step.
        """
        self.wait()
        if not self._asynchronous:
            try:
                self._write(step, fill)
            except StorageError as error:
                self._judge(step, error, last)
            return

        def run() -> None:
            try:
                self._write(step, fill)
            except BaseException as error:  # raised again by whoever waits or looks
                save.error = error

        save = _Save(step, threading.Thread(target=run, name="wmtp-save", daemon=True))
        self._under_way = save
        save.thread.start()
        if last:
            self._collect(last=True)

    def look(self) -> None:
        """Notice a save that has failed in the background; never waits.

        Raises:
            StorageError: as ``save``.
        """
        if self._under_way is not None and not self._under_way.thread.is_alive():
            self._collect()

    def wait(self) -> None:
        """Return when no save is under way.

        Raises:
            StorageError: as ``save``.
        """
        self._collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._under_way is None:
            return
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._under_way.thread.join(_SECONDS_LEFT_TO_A_SAVE_WHEN_ENDED_AT_ONCE)
            return
        try:
            self._collect(last=True)
        except StorageError as refused:
            if error is None:
                raise
            self._warn(str(refused))  # what ended the block is the news

    def _write(self, step: int, fill: Fill) -> None:
        if not self._ranks.is_first:
            help_to_write(fill, self._ranks)
            return
        with lead_writing(fill, self._ranks) as fill_together:
            write_checkpoint(
                self._checkpoints, step, fill_together, self._keep_last, self._is_in_use
            )
        if self._uploads is not None:
            self._uploads.wake()

    def _is_in_use(self, checkpoint: Path) -> bool:
        return self._uploads is not None and self._uploads.is_reading(checkpoint)

    def _collect(self, *, last: bool = False) -> None:
        if self._under_way is None:
            return
        self._under_way.thread.join()  # a signal's handler runs, and may raise, meanwhile
        save, self._under_way = self._under_way, None
        if isinstance(save.error, StorageError):
            self._judge(save.step, save.error, last)
        elif save.error is not None:
            raise save.error

    def _judge(self, step: int, error: StorageError, last: bool) -> None:
        good = last_good_step(self._checkpoints)
        if good == step:  # it is there; an older one could not be removed
            self._warn(str(error))
        elif good is None or last:
            raise StorageError(f"{error} {how_to_go_on(good)}") from error
        else:
            self._warn(
                f"{error} Training goes on and saves again at the next interval; the last good "
                f"checkpoint is that of step {good}."
            )


@contextmanager
def lead_writing(fill: Fill, ranks: Ranks) -> Iterator[Fill]:
    """On the first rank: a ``fill`` in which all ranks fill the folder; the block puts it in place.

    The others are in ``help_to_write`` meanwhile, and leave it when the block ends.
    """
    if ranks.count == 1:
        yield fill
        return
    filled = False

    def fill_together(folder: Path) -> None:
        nonlocal filled
        filled = True
        ranks.from_first(lambda: str(folder))
        if failures := _fill(fill, folder, ranks):
            raise OSError("; ".join(failures))  # told with the name that the folder is to have

    try:
        yield fill_together
    except BaseException as error:
        reason = str(error)
        if not filled:
            ranks.from_first(lambda: None)
        ranks.from_first(lambda: reason)
        raise
    ranks.from_first(lambda: None)


def help_to_write(fill: Fill, ranks: Ranks) -> None:
    """On the other ranks: fill this rank's part, and return when the checkpoint is in place.

    Raises:
        StorageError: some rank was refused; the reason is the same on all.
    """
    folder = ranks.from_first(lambda: None)
    if folder is not None:
        _fill(fill, Path(folder), ranks)
    failure = ranks.from_first(lambda: None)
    if failure is not None:
        raise StorageError(failure)


def _fill(fill: Fill, folder: Path, ranks: Ranks) -> list[str]:
    """Fill this rank's part; the failures of all ranks."""
    failure = None
    try:
        fill(folder)
    except (OSError, SafetensorError, StorageError) as error:
        failure = str(error)
    return ranks.everywhere(failure)


@contextmanager
def naming_last_good(checkpoints: Path) -> Iterator[None]:
    """Add to a StorageError of the block where the run can be gone on from."""
    try:
        yield
    except StorageError as error:
        raise StorageError(f"{error} {how_to_go_on(last_good_step(checkpoints))}") from error


def last_good_step(checkpoints: Path) -> int | None:
    """Step of the newest complete checkpoint, None if there is none; reads every byte of it."""
    try:
        newest, _ = newest_good(checkpoints)
    except CheckpointError:
        return None
    return step_of(newest)


def how_to_go_on(good: int | None) -> str:
    """What is left after a failed save, and what to do."""
    if good is None:
        return "There is no good checkpoint. Free space, or set another base_path, and start anew."
    return f"The last good checkpoint is that of step {good}: free space, then go on with --resume."
