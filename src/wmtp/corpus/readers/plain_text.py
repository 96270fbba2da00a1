"""Plain text: a document for each file, line, or paragraph."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal, final

from wmtp.corpus.document import BadRecord, Document, Place
from wmtp.corpus.readers.files import compression_of, lines_of, open_stream
from wmtp.corpus.readers.reader import (
    LONGEST_RECORD_BYTES,
    Origin,
    RawFile,
    RawRecord,
    Start,
    UnreadableError,
    make_document,
    too_long,
)

Encoding = Literal["utf-8", "cp949"]
Split = Literal["file", "lines", "paragraphs"]


@final
@dataclass(frozen=True)
class PlainText:
    """Text files.

    Attributes:
        split: what a document is: the whole file, a line, or lines between blank ones.
        encoding: of the bytes.
    """

    split: Split = "file"
    encoding: Encoding = "utf-8"

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Bytes of each document; blank ones are none."""
        may_seek = compression_of(file.path) is None
        with open_stream(file) as stream:
            if self.split == "file":
                content = stream.read(LONGEST_RECORD_BYTES + 1)
                if len(content) > LONGEST_RECORD_BYTES:
                    yield too_long(0)
                elif content.strip() and start.record == 0:
                    yield RawRecord(0, content, len(content))
            else:
                cut = line_records if self.split == "lines" else _paragraphs
                yield from cut(stream, start, may_seek)

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Document:
        """The text as it stands."""
        return make_document(decode(record.content, self.encoding), place, origin)


def decode(content: bytes, encoding: Encoding) -> str:
    r"""The characters of bytes; every line ends in ``\n``, whatever wrote the file.

    Raises:
        UnreadableError: they are of another encoding.
    """
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not {encoding}") from error
    return text.replace("\r\n", "\n").strip("\n")


def line_records(
    stream: IO[bytes], start: Start, may_seek: bool
) -> Iterator[RawRecord | BadRecord]:
    """Lines that are not blank, from ``start`` on; their numbers count blank ones too."""
    if start.offset:
        stream.seek(start.offset)
    first = start.record if start.offset else 0
    for number, offset, line in lines_of(stream, first):
        if number < start.record:
            continue
        if line is None:
            yield too_long(number)
        elif not line.isspace():
            yield RawRecord(number, line, len(line), Start(number, offset) if may_seek else None)


def _paragraphs(stream: IO[bytes], start: Start, may_seek: bool) -> Iterator[RawRecord | BadRecord]:
    number = start.record if start.offset else 0
    if start.offset:
        stream.seek(start.offset)
    lines: list[bytes | None] = []  # None stands for what is too much to hold
    length = begun = 0
    for _, offset, line in lines_of(stream):
        if line is None or not line.isspace():
            begun = begun if lines else offset
            length += LONGEST_RECORD_BYTES + 1 if line is None else len(line)
            if length > LONGEST_RECORD_BYTES:
                lines = [None]
            else:
                lines.append(line)
        elif lines:
            yield from _paragraph(number, lines, Start(number, begun) if may_seek else None, start)
            number += 1
            lines, length = [], 0
    if lines:
        yield from _paragraph(number, lines, Start(number, begun) if may_seek else None, start)


def _paragraph(
    number: int, lines: list[bytes | None], here: Start | None, wanted: Start
) -> Iterator[RawRecord | BadRecord]:
    if number < wanted.record:
        return
    content = b"".join(line for line in lines if line is not None)
    yield too_long(number) if None in lines else RawRecord(number, content, len(content), here)
