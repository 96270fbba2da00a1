"""``metrics.jsonl``: one line per logged step, and the truth that trackers are fed from."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

from wmtp.errors import DataError
from wmtp.runtime.durable import replace_file, storage_errors

Row = dict[str, int | float]

BEFORE_ALL: Final = -1
"""For ``cut_back``: a step before the first row."""


@final
class MetricsLog:
    """Appends rows of finite numbers to a JSON-lines file, each line whole or not there.

    A row that the disk refuses is kept and written before the next one; ``write`` says so with a
    StorageError, which the caller may turn into a warning.

        with MetricsLog(run.metrics_file) as metrics:
            metrics.write({"step": 1, "loss": 3.2})
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten: list[bytes] = []
        with storage_errors(f"{path} could not be opened"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o644)
            self._good_bytes = os.fstat(self._descriptor).st_size

    def write(self, row: Mapping[str, int | float]) -> None:
        """Append one row; what is NaN or infinite is left out.

        Raises:
            ValueError: the row has no step.
            StorageError: the disk refused; the row is kept and tried again with the next.
        """
        if "step" not in row:
            raise ValueError(f"a row of metrics needs its step, got {sorted(row)}")
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        self._unwritten.append(json.dumps(finite, allow_nan=False).encode() + b"\n")
        self._write_pending()

    def sync(self) -> None:
        """Return when every row is on the disk; called before a checkpoint of the same step.

        Raises:
            StorageError: the disk refused.
        """
        self._write_pending()
        with storage_errors(f"{self.path} could not be written"):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what is pending and close the file.

        Raises:
            StorageError: rows could not be written.
        """
        try:
            self._write_pending()
        finally:
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write_pending(self) -> None:
        while self._unwritten:
            self._write_line(self._unwritten[0])
            del self._unwritten[0]

    def _write_line(self, line: bytes) -> None:
        with storage_errors(f"{self.path} could not be written"):
            try:
                written = os.write(self._descriptor, line)
                if written < len(line):  # a full disk takes part of a line first
                    os.write(self._descriptor, line[written:])
            except OSError:
                os.ftruncate(self._descriptor, self._good_bytes)
                raise
        self._good_bytes += len(line)


def cut_back(path: Path, step: int) -> int:
    """Remove the rows after ``step`` and a torn last line, before a run is resumed from there.

    To be called before ``MetricsLog`` opens the file.

    Returns:
        Number of rows removed.

    Raises:
        DataError: a line other than the last is not a row.
        StorageError: the disk refused; the file is as it was.
    """
    if not path.exists():
        return 0
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    rows = _parse(lines, path)
    kept = b"".join(line for line, row in zip(lines, rows, strict=False) if row["step"] <= step)
    if kept != content:
        with storage_errors(f"{path} could not be cut back to step {step}"):
            replace_file(path, kept)
    return len(lines) - kept.count(b"\n")


def read_metrics(path: Path) -> list[Row]:
    """Read every row; a torn last line, from a run that is writing or was killed, is left out.

    Raises:
        DataError: the file is missing, or a line other than the last is not a row.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return _parse(content.splitlines(keepends=True), path)


def _parse(lines: list[bytes], path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(lines, start=1):
        row = parse_row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise DataError(f"{path}:{number} is not a row of metrics.")
    return rows


def parse_row(line: bytes) -> Row | None:
    """Read one line, None if it is not a whole row."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return {str(name): value for name, value in row.items() if isinstance(value, int | float)}
