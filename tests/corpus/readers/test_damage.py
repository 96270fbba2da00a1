"""Files that end early, are damaged, or were made to do harm: said, counted, and survived."""

import bz2
import gzip
import json
import lzma
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from wmtp.corpus.document import BadRecord, Document
from wmtp.corpus.readers import common_crawl, files, json_array, json_files, plain_text, tables
from wmtp.corpus.readers import wikipedia as wikipedia_module
from wmtp.corpus.readers.common_crawl import Warc, Wet
from wmtp.corpus.readers.json_array import parse_json
from wmtp.corpus.readers.json_files import JsonFiles
from wmtp.corpus.readers.json_lines import JsonLines
from wmtp.corpus.readers.json_path import parse_path
from wmtp.corpus.readers.namuwiki import Namuwiki
from wmtp.corpus.readers.nikl import Nikl
from wmtp.corpus.readers.plain_text import PlainText
from wmtp.corpus.readers.reader import Origin, Reader, UnreadableError
from wmtp.corpus.readers.reading import read
from wmtp.corpus.readers.tables import Csv, Parquet
from wmtp.corpus.readers.wikipedia import Wikipedia
from wmtp.corpus.readers.wikitext import plain_text as text_of_wikitext
from wmtp.errors import DataError

from .samples import (
    HEAD,
    PAGES,
    SEOUL,
    TAIL,
    WARC,
    as_csv,
    as_json,
    as_parquet,
    html,
    http,
    multistream,
    page,
    warc_record,
)

ORIGIN = Origin("s", "l")


def told(reader: Reader, path: Path) -> list[str]:
    return [
        one.text if isinstance(one, Document) else f"{one.place.record}: {one.reason}"
        for one in read(reader, path, path.name, ORIGIN)
    ]


def written(folder: Path, content: bytes) -> Path:
    (folder / "file").write_bytes(content)
    return folder / "file"


# ends that come early ----------------------------------------------------------------------------

MANY = b"".join(as_json({"text": f"{i} {os.urandom(300).hex()}"}) + b"\n" for i in range(600))
PACKERS: list[Callable[[bytes], bytes]] = [
    lambda content: gzip.compress(content, 1),
    lambda content: lzma.compress(content, preset=0),
    lambda content: bz2.compress(content, 1),
    zstandard.ZstdCompressor(write_checksum=True).compress,
]
packers = pytest.mark.parametrize("pack", PACKERS, ids=["gzip", "xz", "bzip2", "zstd"])


@packers
def test_a_cut_archive_gives_what_came_before(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    whole = told(JsonLines(), written(tmp_path, pack(MANY)))
    assert len(whole) == 600
    packed = pack(MANY)
    cut = told(JsonLines(), written(tmp_path, packed[: len(packed) * 3 // 4]))
    assert cut[:-1] == whole[: len(cut) - 1]
    assert cut[-1] == f"{len(cut) - 1}: file ends here: compressed data end early"
    assert 300 < len(cut) < 600


@packers
def test_a_damaged_archive_is_no_end_of_the_program(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    packed = bytearray(pack(MANY))
    packed[len(packed) // 2 : len(packed) // 2 + 400] = b"\xff" * 400
    last = told(JsonLines(), written(tmp_path, bytes(packed)))[-1]
    assert last.partition(": ")[2].startswith(("file ends here: compressed data", "not JSON"))


ENDS: dict[str, tuple[Reader, bytes, list[str]]] = {
    "json": (Nikl(), as_json({"document": [{"sentence": [{"form": SEOUL}]}] * 2})[:-30],
             [SEOUL, "1: file ends here: JSON ends early"]),
    "json in a string": (Namuwiki(), b'[{"title": "', ["0: file ends here: JSON ends early"]),
    "json without the array": (Nikl(), b'{"documents": [{}]}',
                               ["0: file ends here: no array at document[]"]),
    "json, an object for an array": (Nikl(), b'{"document": {"a": {}}}',
                                     ["0: file ends here: no array at document[]"]),
    "json of another kind": (Namuwiki(), b"]]]", ["0: file ends here: not JSON"]),
    "json, nothing": (Namuwiki(), b"", ["0: file ends here: no array at []"]),
    "json, one broken element": (
        JsonFiles(parse_path("[].t")), b'[{"t": "a"}, {"t": x}, {"t" "a"}, {"t": "b"}]',
        ["a", "1: not JSON", "2: not JSON", "b"]),
    "wikipedia": (Wikipedia(), (HEAD + PAGES[0] + PAGES[3][:-20]).encode(),
                  [SEOUL, "1: file ends here: XML ends early"]),
    "wikipedia, a stream is cut": (
        Wikipedia(), multistream(PAGES[:1] * 2, 1)[:-70],
        [SEOUL, "1: file ends here: compressed data end early"]),
    "wikipedia, a page is no XML": (
        Wikipedia(), (HEAD + page(1, "a", "a & b") + PAGES[0] + TAIL).encode(),
        ["0: not XML", SEOUL]),
    "warc": (Warc(), WARC[:-60], []),
    "warc, no WARC": (Warc(), b"garbage\n" * 1000, ["0: file ends here: WARC is damaged"]),
    "csv, an open quote": (Csv("a"), b'a\nb\n"c\nd', ["b", "c\nd"]),
    "csv, no such column": (Csv("x"), b"a\nb\n", ["0: file ends here: no column x"]),
    "parquet": (Parquet(), as_parquet([SEOUL] * 9)[:-9],
                ["0: file ends here: Parquet cannot be read from here on"]),
    "parquet, no such column": (Parquet("x"), as_parquet([SEOUL]),
                                ["0: file ends here: no column x"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS)
def test_an_end_that_is_none_is_said(tmp_path: Path, case: tuple[Reader, bytes, list[str]]) -> None:
    reader, content, given = case
    found = told(reader, written(tmp_path, content))
    if given:
        assert found == given
    else:
        assert found[-1].partition(": ")[2].startswith("file ends here: WARC")
        assert found[0] == SEOUL


def test_what_cannot_be_opened_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        told(JsonLines(), tmp_path / "nothing")
    with pytest.raises(DataError, match="zip archive"):
        told(JsonLines(), written(tmp_path, b"PK\x03\x04...."))
    os.mkfifo(tmp_path / "pipe")
    for reader in (JsonLines(), Warc(), Parquet(), Wikipedia()):
        with pytest.raises(DataError, match="Not an ordinary file"):
            told(reader, tmp_path / "pipe")


# records that are too long -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        (JsonLines(), b'{"text": "' + b"a" * 9000 + b'"}\n{"text": "b"}'),
        (PlainText("lines"), b"a" * 9000 + b"\nb"),
        (PlainText("paragraphs"), (b"a" * 3000 + b"\n") * 3 + b"\nb"),
        (JsonFiles(parse_path("[].t")), b'[{"t": "' + b"a" * 9000 + b'"}, {"t": "b"}]'),
        (Wikipedia(), (HEAD + page(1, "a", "a" * 9000) + page(2, "b", "b") + TAIL).encode()),
        (Wet(), warc_record("conversion", 1, b"a" * 9000) + warc_record("conversion", 2, b"b")),
        (Parquet(), as_parquet(["a" * 9000, "b"])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_record_that_is_too_long_is_left_out_and_the_next_one_is_read(
    tmp_path: Path, reader: Reader, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, content)
    assert told(reader, path)[-1] == "b"
    assert told(reader, path)[0].startswith("aaa")  # not so with a smaller limit
    for module in (files, json_array, json_files, plain_text, tables, common_crawl,
                   wikipedia_module):  # fmt: skip
        monkeypatch.setattr(module, "LONGEST_RECORD_BYTES", 4096)
        if module is not common_crawl and module is not tables:
            monkeypatch.setattr(module, "CHUNK_BYTES", 512, raising=False)
    assert told(reader, path) == ["0: record over 64 MiB", "b"]


def test_the_rest_of_a_table_is_not_read_behind_a_line_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_RECORD_BYTES", 4096)
    monkeypatch.setattr(tables, "LONGEST_RECORD_BYTES", 4096)
    path = written(tmp_path, as_csv([["text"], ["a"], ["b" * 5000], ["c"]]))
    assert told(Csv(), path) == ["a", "1: file ends here: line over 0 MiB"]
    path.write_bytes(b'text\na\n"' + b"b\n" * 4000)  # a quote that nobody closes
    assert told(Csv(), path) == ["a", "1: file ends here: CSV cannot be read from here on"]


# files that were made to do harm -----------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b"[[" + b"[" * 200_000 + b"]" * 200_000 + b"]]",
        b'[{"a":' * 100_000,
        b'[{"t": ' + b"9" * 100_000 + b"}]",
        b"\\" * 300_000,
        b'"' * 299_999,
        b'[{"t": "\\ud800"}]',
    ],
    ids=["arrays", "closed", "objects", "digits", "backslashes", "quotes", "surrogate"],
)
def test_json_that_ends_other_parsers_is_refused(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, content)
    started = time.process_time()
    for reader in (JsonFiles(parse_path("[].t")), JsonFiles(parse_path("t")), JsonLines()):
        assert all(line[0].isdigit() for line in told(reader, path))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "wikitext",
    ["{{a" * 9_000, "{{a" * 9_000 + "}}" * 9_000, "[http://a " * 40_000, "<ref>" * 90_000,
     "<!--" * 90_000, "<b>" * 90_000, "[[a|" * 40_000, "''" * 90_000, "a" * 2_100_000],
    ids=lambda text: text[:5],
)  # fmt: skip
def test_markup_that_no_author_writes_takes_no_minutes(wikitext: str) -> None:
    started = time.process_time()
    try:
        text_of_wikitext(wikitext)
    except UnreadableError as error:
        assert str(error) in (  # noqa: PT017  # both ends are right, and told apart by time alone
            "too much markup", "markup nested too deeply", "page over 2 MiB",
        )  # fmt: skip
    assert time.process_time() - started < 10


def test_html_that_is_nested_deeply_ends_nothing(tmp_path: Path) -> None:
    deep = html("<div>" * 200_000 + SEOUL)
    path = written(
        tmp_path,
        warc_record("response", 1, deep, http()) + warc_record("response", 2, html(SEOUL), http()),
    )
    started = time.process_time()
    assert told(Warc(), path) == ["0: HTML nested too deeply", SEOUL]
    assert time.process_time() - started < 5


def test_html_as_deep_as_may_be_is_read(tmp_path: Path) -> None:
    """Also with elements that have no end, of which a page may have any number."""
    deep = html("<div>" * 1_900 + "<p>가<br>" * 3_000 + SEOUL)
    path = written(tmp_path, warc_record("response", 1, deep, http()))
    started = time.process_time()
    assert told(Warc(), path)[0].endswith(SEOUL)
    assert time.process_time() - started < 10


def test_entities_of_xml_do_not_grow(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n'
    path = written(tmp_path, (bomb + HEAD + page(1, "a", "&b;") + TAIL).encode())
    assert told(Wikipedia(), path) == ["0: not XML"]


def test_parsing_says_what_it_refuses() -> None:
    with pytest.raises(UnreadableError, match="not JSON"):
        parse_json(b"{")
    assert parse_json(b'{"a": [1]}') == {"a": [1]}


def test_a_text_with_half_a_character_is_bad(tmp_path: Path) -> None:
    path = written(
        tmp_path, json.dumps([{"namespace": "0", "title": "\ud800", "text": "가"}]).encode()
    )
    (one,) = read(Namuwiki(), path, "a", ORIGIN)
    assert isinstance(one, BadRecord)


def test_a_csv_file_leaves_the_limit_of_fields_as_it_was(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    assert told(Csv("a"), written(tmp_path, as_csv([["a"], ["b"]]))) == ["b"]
    assert csv.field_size_limit() == before
