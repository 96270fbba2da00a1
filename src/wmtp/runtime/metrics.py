"""``metrics.jsonl``: one line per logged step, and the truth that trackers are fed from."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

from wmtp.errors import DataError, StorageError
from wmtp.runtime.durable import replace_file, storage_errors
from wmtp.runtime.line_file import LineFile
from wmtp.untrusted import check_ordinary, open_ordinary

Row = dict[str, int | float]

BEFORE_ALL: Final = -1
"""For ``cut_back``: a step before the first row."""


@final
class MetricsLog:
    """Appends rows of finite numbers to a JSON-lines file, each line whole or not there.

    A row that the disk refuses is kept and written before the next one. With ``warn`` that costs
    one warning; without, ``write`` and ``sync`` say so with a StorageError. Rows that are still
    kept at the end are an error in either case.

        with MetricsLog(run.metrics_file, console.warning) as metrics:
            metrics.write({"step": 1, "loss": 3.2})
    """

    def __init__(self, path: Path, warn: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._warn = warn
        self._warned = False
        self._file = LineFile(path)

    def write(self, row: Mapping[str, int | float]) -> None:
        """Append one row; what is NaN or infinite is left out.

        Raises:
            ValueError: the row has no step.
            StorageError: the disk refused; the row is kept and tried again with the next.
        """
        if "step" not in row:
            raise ValueError(f"a row of metrics needs its step, got {sorted(row)}")
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        line = json.dumps(finite, allow_nan=False).encode() + b"\n"
        with self._warning_once():
            self._file.append(line)

    def sync(self) -> None:
        """Return when every row is on the disk; called before a checkpoint of the same step.

        Raises:
            StorageError: the disk refused.
        """
        with self._warning_once():
            self._file.sync()

    def close(self) -> None:
        """Write what is pending and close the file.

        Raises:
            StorageError: rows could not be written.
        """
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except StorageError as refused:
            if error is None or self._warn is None:
                raise
            self._warn(str(refused))  # what ended the block is the news

    @contextmanager
    def _warning_once(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            if self._warn is None:
                raise
            if not self._warned:
                self._warned = True
                self._warn(f"{error} Rows are kept and tried again; training goes on.")
        else:
            self._warned = False


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
    content = _content(path)
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
    return _parse(_content(path).splitlines(keepends=True), path)


def check_metrics_file(path: Path) -> None:
    """Refuse a pipe or a device where the rows of a run should be; they may be absent.

    Raises:
        DataError: says what is there.
    """
    if path.exists():
        with _told_plainly(path):
            check_ordinary(path)


def _content(path: Path) -> bytes:
    with _told_plainly(path), os.fdopen(open_ordinary(path), "rb") as file:
        return file.read()


@contextmanager
def _told_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


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
