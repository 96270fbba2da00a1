"""What a tracker was not sent yet: rows of metrics beyond a cursor that the run folder keeps."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from wmtp.runtime.metrics import Row, parse_row
from wmtp.runtime.run_folder import RunFolder

_ROWS_PER_SEND: Final = 50


@final
class Outbox:
    """The unsent rows of one run for one tracker: stage 1's as ``stage1/...``, then the run's own.

    Reads the files anew at every call, so nothing is kept in memory while a tracker is down, and
    what one process could not send another one can.
    """

    def __init__(self, folder: RunFolder, tracker: str) -> None:
        """Find the cursors of the tracker, which its name in lower case names."""
        name = tracker.lower()
        of_stage1 = folder.tracking / f"{name}-stage1-cursor.json"
        of_run = folder.tracking / f"{name}-cursor.json"
        self._files = [
            _UnsentRows(folder.stage1.metrics_file, of_stage1, "stage1/"),
            _UnsentRows(folder.metrics_file, of_run, ""),
        ]

    def count_unsent(self) -> int:
        """Number of metrics that were not sent."""
        return sum(file.count() for file in self._files)

    def start_anew(self) -> None:
        """Count everything as unsent: the tracker has lost the run, or never had it."""
        for file in self._files:
            file.start_anew()

    def send(self, send_rows: Callable[[Sequence[Row]], None]) -> int:
        """Give away every unsent row, in order and in portions; whatever fails is not moved past.

        Args:
            send_rows: returns when its rows are stored.

        Returns:
            Number of metrics sent.
        """
        return sum(file.send(send_rows) for file in self._files)


@dataclass
class _Cursor:
    """How far a tracker has come.

    Attributes:
        rows: rows of the file that are done with.
        step: the last step sent. After a resume the rows before it come again, equal to the last
            bit, and are not sent twice.
    """

    rows: int = 0
    step: int = -1


@final
class _UnsentRows:
    """One file of metrics and its cursor."""

    def __init__(self, metrics_file: Path, cursor_file: Path, prefix: str) -> None:
        self._metrics_file = metrics_file
        self._cursor_file = cursor_file
        self._prefix = prefix
        self._cursor = _load_cursor(cursor_file)
        # rows that were sent and then cut back will come again
        self._cursor.rows = min(self._cursor.rows, _count_lines(metrics_file))
        self._offset_bytes = _offset_of_line(metrics_file, self._cursor.rows)

    def count(self) -> int:
        rows, _ = _rows_from(self._metrics_file, self._offset_bytes, limit=None)
        return _count_metrics([row for row in rows if row["step"] >= self._cursor.step])

    def start_anew(self) -> None:
        self._offset_bytes = 0
        if self._cursor != _Cursor():
            self._move(_Cursor())

    def send(self, send_rows: Callable[[Sequence[Row]], None]) -> int:
        sent = 0
        while True:
            rows, length_bytes = _rows_from(
                self._metrics_file, self._offset_bytes, limit=_ROWS_PER_SEND
            )
            if not rows:
                return sent
            fresh = [row for row in rows if row["step"] >= self._cursor.step]
            if fresh:
                send_rows([_renamed(row, self._prefix) for row in fresh])
                sent += _count_metrics(fresh)
            step = max(self._cursor.step, int(rows[-1]["step"]))
            self._offset_bytes += length_bytes
            self._move(_Cursor(self._cursor.rows + len(rows), step))

    def _move(self, cursor: _Cursor) -> None:
        self._cursor = cursor
        # renamed but not synced: losing it costs a few rows sent twice
        temporary = self._cursor_file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"rows": cursor.rows, "step": cursor.step}))
        os.replace(temporary, self._cursor_file)


def _renamed(row: Row, prefix: str) -> Row:
    return {name if name == "step" else prefix + name: value for name, value in row.items()}


def _count_metrics(rows: Sequence[Row]) -> int:
    return sum(len(row) - 1 for row in rows)


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
