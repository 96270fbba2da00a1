"""Dumps of Wikipedia: ``pages-articles.xml.bz2``, of one bzip2 stream or many, or plain XML."""

import bz2
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final
from xml.etree import ElementTree

from wmtp.corpus.document import BadRecord, Place
from wmtp.corpus.readers.files import (
    CHUNK_BYTES,
    CountedFile,
    compression_of,
    failures_told,
    open_stream,
)
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
from wmtp.corpus.readers.wikitext import plain_text

LICENSE: Final = "CC-BY-SA-4.0"
_BEGIN, _END = b"<page>", b"</page>"
_DUMP_ENDS: Final = b"</mediawiki>"


@final
@dataclass(frozen=True)
class Wikipedia:
    """Articles (namespace 0) that are no redirects, without their markup."""

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """Pages as bytes of XML.

        A multistream dump can be started with at each of its streams, which are of 100 pages.
        """
        pages = _Pages(start)
        if compression_of(file.path) == "bzip2":
            for chunk, offset in _bzip2_chunks(file, start.offset):
                yield from pages.cut(chunk, offset)
        else:
            with open_stream(file) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield from pages.cut(chunk, None)
        pages.check_end()

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Parsed:
        """The article's text, under the number of its page."""
        try:
            page = ElementTree.fromstring(record.content)
        except ElementTree.ParseError as error:
            raise UnreadableError("not XML") from error
        if page.findtext("ns") != "0":
            return PassedOver(place, "other namespace")
        if page.find("redirect") is not None:
            return PassedOver(place, "redirect")
        wikitext = page.findtext("revision/text")
        if not wikitext:
            return PassedOver(place, "page without text")
        if (model := page.findtext("revision/model") or "wikitext") != "wikitext":
            return PassedOver(place, f"page of {model[:20]}")
        text = plain_text(wikitext)
        meta = {"title": page.findtext("title") or ""}
        return make_document(text, place, origin, page.findtext("id"), meta)


@final
class _Pages:
    """Cuts out pages, from one tag to the other; in text a tag is written ``&lt;page&gt;``."""

    def __init__(self, start: Start) -> None:
        self._number = start.record if start.offset else 0
        self._wanted = start.record
        self._buffer = bytearray()
        self._is_too_long = False
        self._has_ended = False

    def cut(self, chunk: bytes, stream_offset: int | None) -> Iterator[RawRecord | BadRecord]:
        """The pages that end in the chunk.

        Args:
            chunk: of the dump.
            stream_offset: where in the file the chunk's stream begins, if the chunk is its first.
        """
        start = None
        if stream_offset and _BEGIN not in self._buffer and not self._is_too_long:
            start = Start(self._number, stream_offset)
        self._buffer += chunk
        done = 0
        while (end := self._buffer.find(_END, done)) >= 0:
            begin = self._buffer.find(_BEGIN, done, end)
            after = end + len(_END)
            if self._number >= self._wanted:
                if self._is_too_long:
                    yield too_long(self._number)
                elif begin < 0:
                    yield BadRecord(Place("", self._number), "page without its beginning")
                else:
                    yield RawRecord(
                        self._number, bytes(self._buffer[begin:after]), after - begin, start
                    )
            self._number += 1
            start, self._is_too_long = None, False
            done = after
        self._has_ended = self._buffer.find(_DUMP_ENDS, done) >= 0
        del self._buffer[:done]
        if len(self._buffer) > LONGEST_RECORD_BYTES:
            self._is_too_long = True
            del self._buffer[: -len(_DUMP_ENDS)]

    def check_end(self) -> None:
        """Refuse an end that is none of a dump.

        Raises:
            DamagedFileError: it does not end with ``</mediawiki>``.
        """
        if not self._has_ended:
            raise DamagedFileError("XML ends early")


def _bzip2_chunks(raw: RawFile, offset: int) -> Iterator[tuple[bytes, int | None]]:
    """Pieces of a file of bzip2 streams; the first of each stream with where the stream begins."""
    with failures_told(raw.path), io.BufferedReader(CountedFile(raw), CHUNK_BYTES) as file:
        file.seek(offset)
        decompressor, begins, data = bz2.BZ2Decompressor(), offset, b""
        is_first, has_begun = True, False
        while True:
            if decompressor.eof:
                data = decompressor.unused_data
                begins = file.tell() - len(data)
                decompressor, is_first, has_begun = bz2.BZ2Decompressor(), True, False
            if decompressor.needs_input and not data:
                data = file.read(CHUNK_BYTES)
                if not data:
                    if has_begun:
                        raise EOFError
                    return
            has_begun = True
            chunk = decompressor.decompress(data, CHUNK_BYTES)
            data = b""
            if chunk:
                yield chunk, begins if is_first else None
                is_first = False
