"""Ship ``metrics.jsonl`` to trackers from threads that training never waits for.

A thread per tracker reads the rows beyond a cursor that is kept in the run folder, so what could
not be sent in one session is sent in the next, and no queue grows while a tracker is down.
"""

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Protocol, Self, final

from wmtp.runtime.console import Console
from wmtp.runtime.metrics import Row, parse_row
from wmtp.runtime.run_folder import RunFolder
from wmtp.secrets import without_secrets

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_ROWS_PER_SEND: Final = 50
_FIRST_DELAY_SECONDS: Final = 1.0
_LONGEST_DELAY_SECONDS: Final = 60.0
_JOIN_SECONDS: Final = 20.0


class Destination(Protocol):
    """Where rows go; every method runs in the tracker's thread and may raise anything.

    A destination imports its library in ``connect``, so that training does not wait for it.
    """

    @property
    def name(self) -> str:
        """The user's word for it; in lower case it names the cursor file."""

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
        self._metrics_file = folder.metrics_file
        self._shippers = [_Shipper(destination, folder, console) for destination in destinations]

    def wake(self) -> None:
        """Say that there are new rows; returns at once."""
        for shipper in self._shippers:
            shipper.wake()

    def close(self, timeout_seconds: float = _JOIN_SECONDS) -> int:
        """Send what is left, for at most that long, and end the threads.

        Returns:
            Number of metrics that a tracker was not sent, over all trackers.
        """
        deadline = time.monotonic() + timeout_seconds
        for shipper in self._shippers:
            shipper.begin_close(self.status)
        unsent = 0
        for shipper in self._shippers:
            shipper.join(max(0.0, deadline - time.monotonic()))
            missing = shipper.count_unsent()
            if missing:
                self._console.warning(
                    f"{shipper.name}: {missing} metrics not sent, kept in {self._metrics_file}"
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


@dataclass
class _Cursor:
    """How far a tracker has come.

    Attributes:
        rows: rows of metrics.jsonl that are done with.
        step: the last step sent. After a resume the rows before it come again, equal to the last
            bit, and are not sent twice.
    """

    rows: int = 0
    step: int = -1


@final
class _Shipper:
    """One destination, its thread and its cursor."""

    def __init__(self, destination: Destination, folder: RunFolder, console: Console) -> None:
        self.name = destination.name
        self._destination = destination
        self._console = console
        self._metrics_file = folder.metrics_file
        self._cursor_file = folder.tracking / f"{destination.name.lower()}-cursor.json"
        self._cursor = _load_cursor(self._cursor_file)
        # rows that were sent and then cut back will come again
        self._cursor.rows = min(self._cursor.rows, _count_lines(self._metrics_file))
        self._offset_bytes = _offset_of_line(self._metrics_file, self._cursor.rows)
        self._connected = False
        self._warned = False
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
        if self._started or self.count_unsent():
            self.wake()

    def join(self, timeout_seconds: float) -> None:
        if self._started:
            self._thread.join(timeout_seconds)

    def count_unsent(self) -> int:
        rows, _ = _rows_from(self._metrics_file, self._offset_bytes, limit=None)
        return sum(len(row) - 1 for row in rows if row["step"] >= self._cursor.step)

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
                self._warned = False
            if closing:
                return

    def _ship(self) -> None:
        if not self._connected:
            if self._destination.connect():
                self._cursor, self._offset_bytes = _Cursor(), 0
                _save_cursor(self._cursor_file, self._cursor)
            self._connected = True
        while True:
            rows, length_bytes = _rows_from(
                self._metrics_file, self._offset_bytes, limit=_ROWS_PER_SEND
            )
            if not rows:
                return
            fresh = [row for row in rows if row["step"] >= self._cursor.step]
            if fresh:
                self._destination.send(fresh)
            step = max(self._cursor.step, int(rows[-1]["step"]))
            self._cursor = _Cursor(self._cursor.rows + len(rows), step)
            self._offset_bytes += length_bytes
            _save_cursor(self._cursor_file, self._cursor)

    def _warn_once(self, error: Exception) -> None:
        self._connected = False
        if not self._warned:
            self._warned = True
            self._console.warning(f"{self.name}: {_one_line(error)}; training goes on without it")


def _one_line(error: Exception) -> str:
    text = " ".join(without_secrets(str(error)).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def _rows_from(path: Path, offset_bytes: int, limit: int | None) -> tuple[list[Row], int]:
    """Whole rows from a place in the file, at most ``limit``, and their length in bytes."""
    rows: list[Row] = []
    length_bytes = 0
    if not path.exists():
        return rows, length_bytes
    with path.open("rb") as file:
        file.seek(offset_bytes)
        for line in file:
            row = parse_row(line)
            if row is None or len(rows) == limit:
                break
            rows.append(row)
            length_bytes += len(line)
    return rows, length_bytes


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def _offset_of_line(path: Path, number: int) -> int:
    if number == 0:
        return 0
    with path.open("rb") as file:
        return sum(len(next(file)) for _ in range(number))


def _load_cursor(path: Path) -> _Cursor:
    """Start from the beginning where there is no readable cursor: sent twice beats never sent."""
    try:
        saved = json.loads(path.read_bytes())
        return _Cursor(int(saved["rows"]), int(saved["step"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Cursor()


def _save_cursor(path: Path, cursor: _Cursor) -> None:
    # renamed but not synced: losing it costs a few rows sent twice
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"rows": cursor.rows, "step": cursor.step}))
    os.replace(temporary, path)
