"""Common Crawl: WARC files of pages as they were served, WET files of text that was taken out."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, final

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding
from resiliparse.parse.html import HTMLTree

from wmtp.corpus.document import BadRecord, Document, Place
from wmtp.corpus.readers.files import CHUNK_BYTES, CountedFile, failures_told
from wmtp.corpus.readers.reader import (
    LONGEST_RECORD_BYTES,
    DamagedFileError,
    Origin,
    Parsed,
    PassedOver,
    RawFile,
    RawRecord,
    Start,
    UnreadableError,
    make_document,
    too_long,
)
from wmtp.untrusted import check_ordinary

_PAGES: Final = ("text/html", "application/xhtml+xml")
_KOREAN: Final = frozenset(
    ("euc-kr", "euckr", "ks_c_5601-1987", "ksc5601", "ksc_5601", "ks_c_5601", "uhc", "windows-949")
)
_LONGEST_HTML_BYTES: Final = 8 << 20
_DEEPEST_HTML: Final = 2_000
"""Browsers build no deeper trees than 512; the search for main text takes time as its square."""

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)")
_END_NEEDED: Final = re.compile(
    r"(?!(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr|p|li|dt|dd|rt|rp"
    r"|option|optgroup|tbody|thead|tfoot|tr|td|th)$)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Page:
    uri: str
    own_id: str
    date: str
    kind: str
    charset: str | None
    status: int | None
    payload: bytes


@final
@dataclass(frozen=True)
class Warc:
    """Responses that are HTML, reduced to their main text.

    Attributes:
        main_content: leave out navigation, footers and the like; False keeps all that is visible.
    """

    main_content: bool = True

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Responses; each can be started with, compressed or not."""
        yield from _records(file, start, WarcRecordType.response)

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Parsed:
        """The page's main text, with its title and address."""
        page: _Page = record.content
        if page.status is not None and page.status != 200:
            return PassedOver(place, f"HTTP status {page.status}")
        if page.kind not in _PAGES:
            return PassedOver(place, "no HTML")
        if len(page.payload) > _LONGEST_HTML_BYTES:
            raise UnreadableError(f"HTML over {_LONGEST_HTML_BYTES >> 20} MiB")
        try:
            html = _decode(page)
            _check_depth(html)
            tree = HTMLTree.parse(html)
            text = extract_plain_text(
                tree, main_content=self.main_content, alt_texts=False, list_bullets=False
            )
        except (ValueError, RuntimeError) as error:  # what its parser raises
            raise UnreadableError("HTML cannot be read") from error
        meta = {"url": page.uri, "date": page.date, "title": (tree.title or "").strip()}
        return make_document(text, place, origin, page.own_id, meta)


@final
@dataclass(frozen=True)
class Wet:
    """Conversions: the text as Common Crawl took it out."""

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Conversions; each can be started with, compressed or not."""
        yield from _records(file, start, WarcRecordType.conversion)

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Document:
        """The text, with its address."""
        page: _Page = record.content
        try:
            text = page.payload.decode()
        except UnicodeDecodeError as error:
            raise UnreadableError("not UTF-8") from error
        meta = {"url": page.uri, "date": page.date}
        return make_document(text, place, origin, page.own_id, meta)


def _records(file: RawFile, start: Start, kind: Any) -> Iterator[RawRecord | BadRecord]:
    number = start.record if start.offset else 0
    with failures_told(file.path):
        check_ordinary(file.path)
        with io.BufferedReader(CountedFile(file), CHUNK_BYTES) as stream:
            if stream.read(1) == b"":
                return
            stream.seek(start.offset)
            for record in _iterate(stream, kind):
                offset = record.stream_pos
                page = _page(record)
                if number >= start.record:
                    if page is None:
                        yield too_long(number)
                    else:
                        yield RawRecord(number, page, len(page.payload), Start(number, offset))
                number += 1


def _iterate(file: IO[bytes], kind: Any) -> Iterator[WarcRecord]:
    archive = ArchiveIterator(file, record_types=kind, parse_http=True, auto_decode="all")
    records = iter(archive)
    while True:
        try:
            record = next(records, None)
        except (OSError, ValueError, RuntimeError) as error:
            # the library names no kinds: all but the disk's own failures are of the content
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DamagedFileError("WARC is damaged") from error
        if record is None:
            return
        yield record


def _page(record: WarcRecord) -> _Page | None:
    """What is needed of a record; None if it is too long to hold."""
    http = record.http_headers
    is_plain = http is None or not ({"content-encoding", "transfer-encoding"} & _names(http))
    expected = record.content_length
    payload = record.reader.read(LONGEST_RECORD_BYTES + 1)
    if len(payload) > LONGEST_RECORD_BYTES:
        return None
    if is_plain and len(payload) < expected:
        raise DamagedFileError("WARC ends early")
    return _Page(
        uri=record.headers.get("WARC-Target-URI") or "",
        own_id=(record.record_id or "").strip("<>"),
        date=record.headers.get("WARC-Date") or "",
        kind=(record.http_content_type or "").lower(),
        charset=record.http_charset,
        status=None if http is None else http.status_code,
        payload=payload,
    )


def _names(headers: Any) -> set[str]:
    return {str(name).lower() for name, _ in headers.items()}


def _check_depth(html: str) -> None:
    """Refuse what would take hours.

    Raises:
        UnreadableError: elements that need an end are nested too deeply.
    """
    if html.count("<") < _DEEPEST_HTML:
        return
    depth = 0
    for tag in _TAG.finditer(html):
        if _END_NEEDED.match(tag[2]):
            depth = max(0, depth - 1) if tag[1] else depth + 1
            if depth > _DEEPEST_HTML:
                raise UnreadableError("HTML nested too deeply")


def _decode(page: _Page) -> str:
    """The page's characters: by what HTTP says, else what the page says or looks like."""
    named = page.charset or detect_encoding(page.payload, from_html_meta=True) or "utf-8"
    for encoding in (named, "utf-8"):
        name = "cp949" if encoding.lower() in _KOREAN else encoding
        try:
            return page.payload.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    raise UnreadableError("encoding is not what it says")
