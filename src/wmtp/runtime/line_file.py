"""Lines appended to a file, each whole or not there, and none lost while the disk is full."""

import os
from pathlib import Path
from typing import final

from wmtp.runtime.durable import storage_errors


@final
class LineFile:
    """Appends lines; one that the disk refuses is kept and written before the next.

    Each line is in the file as soon as it is appended, so that a killed process leaves all of
    them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten: list[bytes] = []
        with storage_errors(f"{path} could not be opened"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o644)
            self._good_bytes = os.fstat(self._descriptor).st_size

    def append(self, line: bytes) -> None:
        """Append a line, which ends in a newline.

        Raises:
            StorageError: the disk refused; the line is kept.
        """
        self._unwritten.append(line)
        with storage_errors(f"{self.path} could not be written"):
            self._write_kept()

    def sync(self) -> None:
        """Return when every line is on the disk.

        Raises:
            StorageError: the disk refused.
        """
        with storage_errors(f"{self.path} could not be written"):
            self._write_kept()
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what is pending and close the file.

        Raises:
            StorageError: lines could not be written, and are lost.
        """
        try:
            with storage_errors(f"the last {len(self._unwritten)} lines of {self.path} are lost"):
                self._write_kept()
        finally:
            os.close(self._descriptor)

    def _write_kept(self) -> None:
        while self._unwritten:
            self._write_line(self._unwritten[0])
            del self._unwritten[0]

    def _write_line(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):  # a full disk takes part of a line first
                os.write(self._descriptor, line[written:])
        except OSError:
            os.ftruncate(self._descriptor, self._good_bytes)
            raise
        self._good_bytes += len(line)
