"""Tables: the text in a column of CSV or Parquet."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import pyarrow
from pyarrow import parquet

from wmtp.corpus.document import BadRecord, Document, Place
from wmtp.corpus.readers.files import failures_told, lines_of, open_stream
from wmtp.corpus.readers.plain_text import Encoding
from wmtp.corpus.readers.reader import (
    LONGEST_RECORD_BYTES,
    DamagedFileError,
    Origin,
    RawFile,
    RawRecord,
    Start,
    UnreadableError,
    make_document,
    too_long,
)
from wmtp.untrusted import check_ordinary

_ROWS_AT_A_TIME: Final = 256


@final
@dataclass(frozen=True)
class Csv:
    """Rows of CSV.

    Attributes:
        column: name of the text's column in the first row; in a file without such a row, its
            number from 0.
        header: the first row has names.
        delimiter: between the fields of a row.
        encoding: of the bytes.
    """

    column: str = "text"
    header: bool = True
    delimiter: str = ","
    encoding: Encoding = "utf-8"

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Fields of the column; the row of names is none."""
        before = csv.field_size_limit(LONGEST_RECORD_BYTES)
        try:
            with open_stream(file) as stream:
                lines = self._decoded(lines_of(stream))
                rows = csv.reader(lines, delimiter=self.delimiter)
                yield from self._fields(rows, start)
        except csv.Error as error:
            raise DamagedFileError("CSV cannot be read from here on") from error
        finally:
            csv.field_size_limit(before)

    def _decoded(self, lines: Iterator[tuple[int, int, bytes | None]]) -> Iterator[str]:
        for _, _, line in lines:
            if line is None:
                raise DamagedFileError(f"line over {LONGEST_RECORD_BYTES >> 20} MiB")
            # a row that is of another encoding is told when its document is made
            yield line.decode(self.encoding, "surrogateescape")

    def _fields(self, rows: Iterator[list[str]], start: Start) -> Iterator[RawRecord | BadRecord]:
        first = next(rows, None) if self.header else []
        if first is None:
            return
        if self.header and self.column not in first:
            raise DamagedFileError(f"no column {self.column}")
        place = first.index(self.column) if self.header else int(self.column)
        for number, row in enumerate(rows):
            if number >= start.record and row:
                field = row[place] if place < len(row) else None
                yield RawRecord(number, field, sum(map(len, row)) * 2)

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Document:
        """The text of a row."""
        if record.content is None:
            raise UnreadableError("row without the column")
        text: str = record.content
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UnreadableError(f"not {self.encoding}") from error
        return make_document(text, place, origin)


@final
@dataclass(frozen=True)
class Parquet:
    """Rows of Parquet.

    Attributes:
        column: the text's.
    """

    column: str = "text"

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Cells of the column; row groups before the start are not read."""
        with failures_told(file.path):
            check_ordinary(file.path)
            try:
                yield from self._cells(file, start)
            except pyarrow.ArrowException as error:
                raise DamagedFileError("Parquet cannot be read from here on") from error

    def _cells(self, raw: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        # read as a dictionary, so that a value that is repeated is held once
        if self.column not in parquet.read_schema(raw.path).names:
            raise DamagedFileError(f"no column {self.column}")
        with parquet.ParquetFile(
            raw.path, read_dictionary=[self.column], pre_buffer=False, buffer_size=1 << 20
        ) as file:
            number = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if number + rows <= start.record:
                    number += rows
                    continue
                for batch in file.iter_batches(
                    _ROWS_AT_A_TIME, row_groups=[group], columns=[self.column], use_threads=False
                ):
                    for cell in batch.column(0):
                        if number >= start.record:
                            yield _cell(number, cell.as_py())
                        number += 1
                raw.consumed = raw.path.stat().st_size * (group + 1) // file.num_row_groups

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Document:
        """The text of a row."""
        if record.content is None:
            raise UnreadableError("no text")
        if not isinstance(record.content, str):
            raise UnreadableError("a value that should be text is not")
        return make_document(record.content, place, origin)


def _cell(number: int, value: Any) -> RawRecord | BadRecord:
    size = 2 * len(value) if isinstance(value, str) else 8
    return too_long(number) if size > LONGEST_RECORD_BYTES else RawRecord(number, value, size)
