"""Copy what a run makes to an object store, from a thread that training never waits for."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

from wmtp.checkpoints.checkpoint import MANIFEST, list_checkpoints
from wmtp.checkpoints.object_store import (
    CHECKPOINTS,
    ObjectStore,
    prune,
    send_folder,
    set_aside_there,
)
from wmtp.errors import CheckpointError, StorageError
from wmtp.runtime.console import Console
from wmtp.runtime.run_folder import RunFolder

_DELAYS_AT_THE_END_SECONDS: Final = (0.0, 2.0, 8.0)


@final
class Uploads:
    """The copies of one run in a store, for the length of a ``with`` block.

    What is there when the thread looks is copied: settings and metrics, then the newest
    checkpoint, then the results. A failure costs one warning, and is tried again at the next
    checkpoint; leaving the block waits for the last one, or says that it never arrived.
    KeyboardInterrupt and SystemExit do not wait.

        with Uploads(store, folder, 2, console) as uploads:
            write_checkpoint(...)
            uploads.wake()
    """

    def __init__(
        self, store: ObjectStore, folder: RunFolder, keep_last: int, console: Console
    ) -> None:
        """Copy nothing yet.

        Args:
            store: the run's place in it.
            folder: the run.
            keep_last: checkpoints to keep in the store.
            console: what the user sees.
        """
        self._store, self._folder, self._keep_last = store, folder, keep_last
        self._console = console
        self._in_use: Path | None = None
        self._failure: str | None = None
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wmtp-upload", daemon=True)

    def wake(self) -> None:
        """Say that there is a new checkpoint; returns at once."""
        self._woken.set()

    def set_aside_after(self, step: int) -> None:
        """Let the copies of checkpoints beyond ``step`` no longer count; before the first wake.

        Raises:
            StorageError: the store failed.
        """
        for name in set_aside_there(self._store, step):
            self._console.warning(f"{self._store.url}: {name} is set aside, beyond step {step}")

    def is_reading(self, checkpoint: Path) -> bool:
        """True while that checkpoint is copied, and must stay."""
        return self._in_use == checkpoint

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._given_up.set()
            self.wake()
            return
        self._closing.set()
        self.wake()
        if self._thread.is_alive():
            self._console.line(f"waiting until all is in {self._store.url}")
        self._thread.join()  # a signal's handler runs, and may raise, meanwhile
        if self._failure is None:
            return
        lost = (
            f"{self._failure} Not all of the run is in {self._store.url}; what is in "
            f"{self._folder.root} is safe, and --resume sends it again."
        )
        if error is None:
            raise StorageError(lost)
        self._console.warning(lost)  # what ended the block is the news

    def _run(self) -> None:
        while not self._closing.is_set():
            self._woken.wait()
            self._woken.clear()
            if self._given_up.is_set():
                return
            if not self._closing.is_set():
                self._try()
        for delay_seconds in _DELAYS_AT_THE_END_SECONDS:
            time.sleep(delay_seconds)
            self._try()
            if self._failure is None:
                return

    def _try(self) -> None:
        try:
            self._copy_all()
        except (StorageError, CheckpointError) as error:
            if self._failure is None and not self._closing.is_set():
                self._console.warning(
                    f"{error} Training goes on; it is tried again at the next checkpoint."
                )
            self._failure = str(error)
        else:
            self._failure = None

    def _copy_all(self) -> None:
        store, folder = self._store, self._folder
        # the metrics before the checkpoint: they must reach as far as it does
        for file in (folder.settings_file, folder.metrics_file):
            if file.is_file():
                store.write(file.name, file.read_bytes())
        newest = self._take_newest()
        if newest is not None:
            try:
                sent = send_folder(store, newest, f"{CHECKPOINTS}/{newest.name}")
            finally:
                self._in_use = None
            if sent:
                prune(store, self._keep_last)
        for result in (folder.final, folder.average):
            if (result / MANIFEST).is_file():
                send_folder(store, result, result.name)

    def _take_newest(self) -> Path | None:
        """The newest checkpoint, which ``is_reading`` keeps from being removed from here on."""
        found = list_checkpoints(self._folder.checkpoints)
        self._in_use = found[-1] if found else None
        return self._in_use
