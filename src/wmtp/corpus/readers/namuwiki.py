"""Namuwiki's dumps: one JSON array of pages in its own markup."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from namuwiki.extractor import extract_text

from wmtp.corpus.document import BadRecord, Place
from wmtp.corpus.readers.json_array import parse_json
from wmtp.corpus.readers.json_files import json_records
from wmtp.corpus.readers.reader import (
    Origin,
    Parsed,
    PassedOver,
    RawFile,
    RawRecord,
    Start,
    UnreadableError,
    make_document,
)

LICENSE: Final = "CC-BY-NC-SA-2.0-KR"


@final
@dataclass(frozen=True)
class Namuwiki:
    """Pages of the main namespace that are no redirects, without their markup."""

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Pages, as bytes of JSON."""
        yield from json_records(file, ("[]",), start)

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Parsed:
        """The page's text."""
        page = parse_json(record.content)
        text, title = (page.get("text"), page.get("title")) if isinstance(page, dict) else (0, 0)
        if not isinstance(text, str) or not isinstance(title, str):
            raise UnreadableError("no page of Namuwiki")
        if str(page.get("namespace")) != "0":
            return PassedOver(place, "other namespace")
        if text.lstrip().lower().startswith(("#redirect", "#넘겨주기")):
            return PassedOver(place, "redirect")
        try:
            plain = extract_text(text)
        except (ValueError, IndexError, KeyError, RecursionError) as error:
            raise UnreadableError("markup cannot be read") from error
        return make_document(plain, place, origin, meta={"title": title})
