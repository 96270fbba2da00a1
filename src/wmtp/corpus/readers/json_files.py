"""JSON files whose text lies at a path that is declared: AI Hub's data sets and their like."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from wmtp.corpus.document import BadRecord, Document, Place
from wmtp.corpus.readers.files import compression_of, open_stream
from wmtp.corpus.readers.json_array import cut_array, parse_json
from wmtp.corpus.readers.json_path import JsonPath, text_at
from wmtp.corpus.readers.reader import (
    LONGEST_RECORD_BYTES,
    Origin,
    RawFile,
    RawRecord,
    Start,
    make_document,
    too_long,
)

LAYOUTS: Final = {
    "daily_conversation": "info[].annotations.lines[].norm_text",
    "dialogue_summary": "data[].body.dialogue[].utterance",
    "document_summary": "documents[].text[][].sentence",
    "news": "data[].paragraphs[].context",
    "web_corpus": "SJML.text[].content",
    "web_corpus_labels": "named_entity[].content[].sentence",
}
"""Paths of AI Hub's data sets: 주제별 텍스트 일상 대화, 한국어 대화 요약, 문서요약 텍스트,
뉴스 기사 기계독해, 대규모 웹데이터 기반 한국어 말뭉치 (raw, labelled); docs/korean.md says by what
each was confirmed."""


@final
@dataclass(frozen=True)
class JsonFiles:
    r"""Records are the elements of the path's first array; the rest of the path leads to texts.

    Attributes:
        path: as ``documents[].text[][].sentence``.
        join: stands between the texts of a record.
    """

    path: JsonPath
    join: str = "\n"

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Elements of the array, as bytes; the whole file if the path has no array."""
        yield from json_records(file, self.path.records, start)

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Document:
        """All texts of the record, joined."""
        value = parse_json(record.content)
        return make_document(text_at(value, self.path, self.join), place, origin)


def json_records(
    file: RawFile, steps: tuple[str, ...], start: Start
) -> Iterator[RawRecord | BadRecord]:
    """Elements of an array in a file, as bytes; without steps the whole file is one record.

    Raises:
        DamagedFileError: see ``cut_array``.
    """
    may_seek = compression_of(file.path) is None
    with open_stream(file) as stream:
        if steps:
            if start.offset:
                stream.seek(start.offset)
            yield from cut_array(stream, steps, start, stream.tell() if may_seek else None)
        elif start.record == 0 and (content := stream.read(LONGEST_RECORD_BYTES + 1)):
            is_too_long = len(content) > LONGEST_RECORD_BYTES
            yield too_long(0) if is_too_long else RawRecord(0, content, len(content))
