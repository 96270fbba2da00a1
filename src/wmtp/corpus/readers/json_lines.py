"""JSONL: a record on each line, the text at a key or path."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

from wmtp.corpus.document import BadRecord, Document, Place
from wmtp.corpus.readers.files import compression_of, open_stream
from wmtp.corpus.readers.json_array import parse_json
from wmtp.corpus.readers.json_path import JsonPath, parse_path, text_at
from wmtp.corpus.readers.plain_text import line_records
from wmtp.corpus.readers.reader import (
    Origin,
    RawFile,
    RawRecord,
    Start,
    UnreadableError,
    make_document,
)


@final
@dataclass(frozen=True)
class JsonLines:
    r"""Lines of JSON.

    Attributes:
        path: of the text in a line, as ``text`` or ``messages[].content``.
        join: stands between texts, where the path leads to several.
    """

    path: JsonPath = field(default_factory=lambda: parse_path("text", within_record=True))
    join: str = "\n"

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Lines, as bytes."""
        may_seek = compression_of(file.path) is None
        with open_stream(file) as stream:
            yield from line_records(stream, start, may_seek)

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Document:
        """The text of a line."""
        value = parse_json(record.content)
        if not isinstance(value, dict):
            raise UnreadableError("not an object")
        return make_document(text_at(value, self.path, self.join), place, origin)
