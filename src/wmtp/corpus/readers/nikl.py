"""The Modu corpora (모두의 말뭉치) of the National Institute of Korean Language, as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

from wmtp.corpus.document import BadRecord, Document, Place
from wmtp.corpus.readers.json_array import parse_json
from wmtp.corpus.readers.json_files import json_records
from wmtp.corpus.readers.json_path import texts_at
from wmtp.corpus.readers.reader import (
    Origin,
    RawFile,
    RawRecord,
    Start,
    UnreadableError,
    make_document,
)

_RECORDS: Final = ("document", "[]")
_PARTS: Final = ("paragraph", "utterance", "sentence")
_FACTS: Final = ("title", "author", "publisher", "date", "topic", "category")


@final
@dataclass(frozen=True)
class Nikl:
    """A document is an element of ``document``.

    A line of its text is a paragraph (written), an utterance (spoken, messenger) or a sentence,
    whichever the corpus has.
    """

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Elements of ``document``, as bytes; files have over 1 GB."""
        yield from json_records(file, _RECORDS, start)

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Document:
        """The forms of the document's parts, a line each."""
        value = parse_json(record.content)
        if not isinstance(value, dict):
            raise UnreadableError("not an object")
        part = next((part for part in _PARTS if value.get(part)), None)
        if part is None:
            raise UnreadableError(f"none of {', '.join(_PARTS)}")
        text = "\n".join(texts_at(value[part], ("[]", "form")))
        own_id = value.get("id")
        return make_document(
            text,
            place,
            origin,
            own_id if isinstance(own_id, str) else None,
            facts_of(value.get("metadata"), _FACTS),
        )


def facts_of(value: Any, keys: tuple[str, ...]) -> dict[str, str]:
    """Those of a record's keys that are short text."""
    if not isinstance(value, dict):
        return {}
    return {
        key: fact for key in keys if isinstance(fact := value.get(key), str) and len(fact) < 1000
    }
