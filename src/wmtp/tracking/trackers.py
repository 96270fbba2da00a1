"""Ship ``metrics.jsonl`` to trackers from threads that training never waits for.

A thread per tracker reads the rows beyond a cursor that is kept in the run folder, so what could
not be sent in one session is sent in the next, and no queue grows while a tracker is down.
"""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Literal, Protocol, Self, final

from wmtp.runtime.console import Console
from wmtp.runtime.metrics import Row
from wmtp.runtime.run_folder import RunFolder
from wmtp.secrets import one_line
from wmtp.tracking.outbox import Outbox

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_FIRST_DELAY_SECONDS: Final = 1.0
_LONGEST_DELAY_SECONDS: Final = 60.0
_LAST_TRY_SECONDS: Final = 5.0


class Destination(Protocol):
    """Where rows go; every method runs in the tracker's thread and may raise anything.

    A destination imports its library in ``connect``, so that training does not wait for it.
    """

    @property
    def name(self) -> str:
        """The user's word for it; in lower case it names the cursor file."""

    @property
    def close_seconds(self) -> float:
        """How long the end of a run waits for it at most."""

    def connect(self) -> bool:
        """Open or make the run there; called again after a failure. True if the run is empty."""

    def send(self, rows: Sequence[Row]) -> None:
        """Store the rows; returns when they are stored."""

    def close(self, status: RunStatus) -> None:
        """Mark the run as ended and let go of files and connections."""


@final
class Trackers:
    """The trackers of one run, for the length of a ``with`` block.

    Their failures never reach the block: one line when a tracker fails, and at the end how many
    metrics it was not sent and where they are kept. An exception that leaves the block marks the
    tracked run FAILED, KeyboardInterrupt and SystemExit KILLED; otherwise ``status`` counts.

        with Trackers([mlflow_destination], folder, console) as trackers:
            metrics.write(row)
            trackers.wake()
    """

    def __init__(
        self, destinations: Sequence[Destination], folder: RunFolder, console: Console
    ) -> None:
        self.status: RunStatus = "FINISHED"
        self._console = console
        self._folder = folder
        self._shippers = [_Shipper(destination, folder, console) for destination in destinations]

    def wake(self) -> None:
        """Say that there are new rows; returns at once."""
        for shipper in self._shippers:
            shipper.wake()

    def close(self, timeout_seconds: float | None = None) -> int:
        """Send what is left, for each tracker's time at most, and end the threads.

        A tracker that fails when this begins, or while it lasts, gets one short last try.

        Args:
            timeout_seconds: instead of each tracker's own time.

        Returns:
            Number of metrics that a tracker was not sent, over all trackers.
        """
        if self._shippers:
            self._keep_status()
        began = time.monotonic()
        for shipper in self._shippers:
            shipper.begin_close(self.status)
        unsent = 0
        for shipper in self._shippers:
            shipper.join(began + (timeout_seconds or shipper.close_seconds))
            missing = shipper.outbox.count_unsent()
            if missing:
                self._console.warning(
                    f"{shipper.name}: {missing} metrics not sent, kept in "
                    f"{self._folder.metrics_file}; send with: wmtp sync {self._folder.root}"
                )
            unsent += missing
        self._shippers = []
        return unsent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.status = "KILLED"
        elif error is not None:
            self.status = "FAILED"
        self.close()

    def _keep_status(self) -> None:
        try:
            self._folder.status_file.write_text(f"{self.status}\n")
        except OSError as error:  # wmtp sync would call the run KILLED
            self._console.warning(
                f"{self._folder.status_file} could not be written: {error.strerror}"
            )


@final
class _Shipper:
    """One destination, its thread and what it was not sent."""

    def __init__(self, destination: Destination, folder: RunFolder, console: Console) -> None:
        self.name = destination.name
        self.close_seconds = destination.close_seconds
        self.outbox = Outbox(folder, destination.name)
        self._destination = destination
        self._console = console
        self._connected = False
        self._failing = False
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._status: RunStatus = "FINISHED"
        self._thread = threading.Thread(
            target=self._run, name=f"wmtp-{destination.name}", daemon=True
        )
        self._started = False

    def wake(self) -> None:
        # Not before the first row: until then the main thread is importing and building, and two
        # threads that import the same libraries at once can meet half-made modules.
        if not self._started:
            self._started = True
            self._thread.start()
        self._woken.set()

    def begin_close(self, status: RunStatus) -> None:
        self._status = status
        self._closing.set()
        if self._started or self.outbox.count_unsent():
            self.wake()

    def join(self, deadline: float) -> None:
        """Wait for the thread's end; of a tracker that fails, not for long."""
        if not self._started:
            return
        last_try_ends = None
        while self._thread.is_alive() and time.monotonic() < deadline:
            if not self._failing:
                last_try_ends = None
            elif last_try_ends is None:
                last_try_ends = time.monotonic() + _LAST_TRY_SECONDS
            elif time.monotonic() >= last_try_ends:
                return
            self._thread.join(min(0.05, max(0.0, deadline - time.monotonic())))

    def _run(self) -> None:
        delay_seconds = _FIRST_DELAY_SECONDS
        while True:
            self._woken.wait()
            self._woken.clear()
            closing = self._closing.is_set()
            try:
                self._ship()
                if closing:
                    self._destination.close(self._status)
            except Exception as error:
                # whatever a tracker's library raises: it must not end training, nor be tried
                # again at every row
                self._warn_once(error)
                self._closing.wait(delay_seconds)
                delay_seconds = min(2 * delay_seconds, _LONGEST_DELAY_SECONDS)
                self._woken.set()
            else:
                delay_seconds = _FIRST_DELAY_SECONDS
                self._failing = False
            if closing:
                return

    def _ship(self) -> None:
        if not self._connected:
            if self._destination.connect():
                self.outbox.start_anew()
            self._connected = True
        self.outbox.send(self._send)

    def _send(self, rows: Sequence[Row]) -> None:
        self._destination.send(rows)
        self._failing = False

    def _warn_once(self, error: Exception) -> None:
        self._connected = False
        if not self._failing:
            self._failing = True
            self._console.warning(f"{self.name}: {one_line(error)}; training goes on without it")
