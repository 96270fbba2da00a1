"""A small file of every format, of our own making, and what is to be read from it."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import zstandard
from pyarrow import parquet

from wmtp.corpus.readers.common_crawl import Warc, Wet
from wmtp.corpus.readers.json_files import LAYOUTS, JsonFiles
from wmtp.corpus.readers.json_lines import JsonLines
from wmtp.corpus.readers.json_path import parse_path
from wmtp.corpus.readers.namuwiki import Namuwiki
from wmtp.corpus.readers.nikl import Nikl
from wmtp.corpus.readers.plain_text import PlainText
from wmtp.corpus.readers.reader import Reader
from wmtp.corpus.readers.tables import Csv, Parquet
from wmtp.corpus.readers.wikipedia import Wikipedia

SEOUL = "서울은 대한민국의 수도이다."
BUSAN = "부산은 바다에 닿아 있다."
LAUGH = "ㅋㅋㅋ 2000000원이라니 👍🏽"


@dataclass(frozen=True)
class Sample:
    """A file, and what a reader gives of it: a text, or the reason why there is none."""

    reader: Reader
    name: str
    content: bytes
    given: tuple[str, ...]


def page(number: int, title: str, text: str, ns: int = 0, redirect: bool = False) -> str:
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>{ns}</ns>\n    <id>{number}</id>\n"
        + ('    <redirect title="x" />\n' if redirect else "")
        + "    <revision>\n      <id>9</id>\n      <model>wikitext</model>\n"
        f'      <text xml:space="preserve">{text}</text>\n    </revision>\n  </page>\n'
    )


PAGES = [
    page(1, "서울", f"'''{SEOUL}'''&lt;ref>x&lt;/ref>\n\n== 역사 ==\n{{{{틀}}}}\n[[분류:도시]]"),
    page(2, "넘겨주기", "#넘겨주기 [[서울]]", redirect=True),
    page(3, "분류:도시", "[[분류:지리]]", ns=14),
    page(4, "부산", f"[[대한민국|{BUSAN[:2]}]]{BUSAN[2:]} &amp;lt; {LAUGH}"),
    page(5, "빈", "{{틀}}"),
]
HEAD = '<mediawiki xml:lang="ko">\n  <siteinfo><sitename>위키백과</sitename></siteinfo>\n'
TAIL = "</mediawiki>\n"


def multistream(pages: Sequence[str], per_stream: int = 2) -> bytes:
    """As the dumps are: a stream for the head, one for every so many pages, one for the tail."""
    groups = ["".join(pages[i : i + per_stream]) for i in range(0, len(pages), per_stream)]
    return b"".join(bz2.compress(part.encode()) for part in (HEAD, *groups, TAIL))


def warc_record(kind: str, number: int, body: bytes, http: str = "") -> bytes:
    block = (http.encode() + b"\r\n" if http else b"") + body
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n"
        f"WARC-Target-URI: https://example.kr/{number}\r\n"
        f"WARC-Date: 2026-01-0{number}T00:00:00Z\r\n"
        f"Content-Length: {len(block)}\r\n"
    )
    head += "Content-Type: application/http; msgtype=response\r\n" if http else ""
    return gzip.compress(head.encode() + b"\r\n" + block + b"\r\n\r\n", mtime=0)


def html(text: str, encoding: str = "utf-8", meta: bool = False) -> bytes:
    named = f'<meta charset="{encoding}">' if meta else ""
    return (
        f"<html><head>{named}<title>제목</title></head><body><nav><a href='/'>홈</a></nav>"
        f"<article><p>{text}</p></article><script>var x = 1;</script></body></html>"
    ).encode(encoding)


def http(kind: str = "text/html; charset=utf-8", status: str = "200 OK") -> str:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"


WARC = b"".join(
    [
        warc_record("warcinfo", 1, b"software: x\r\n"),
        warc_record("response", 2, html(SEOUL), http()),
        # a syllable that EUC-KR has not and CP949 has
        warc_record("response", 3, html(BUSAN + " 똠", "cp949"), http("text/html; charset=euc-kr")),
        warc_record("response", 4, html(LAUGH), http(status="404 Not Found")),
        warc_record("response", 5, b"%PDF", http("application/pdf")),
        warc_record("response", 6, html(LAUGH, "utf-8", meta=True), http("text/html")),
    ]
)
WET = b"".join(
    [
        warc_record("warcinfo", 1, b"software: x\r\n"),
        warc_record("conversion", 2, SEOUL.encode()),
        warc_record("conversion", 3, BUSAN.encode("cp949")),
        warc_record("conversion", 4, LAUGH.encode()),
    ]
)


def as_json(value: object, **more: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, **more).encode()  # type: ignore[arg-type]


def as_csv(rows: Sequence[Sequence[str]], encoding: str = "utf-8", delimiter: str = ",") -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue().encode(encoding)


def as_parquet(texts: Sequence[str | None], rows_in_group: int = 2) -> bytes:
    file = io.BytesIO()
    table = pyarrow.table({"n": list(range(len(texts))), "text": texts})
    parquet.write_table(table, file, row_group_size=rows_in_group)
    return file.getvalue()


LINES = b"\n".join(
    [as_json({"text": SEOUL}), b"", b"{", as_json([1]), as_json({"text": BUSAN}), as_json({"t": 1}),
     b'{"text": "\xff"}', as_json({"text": LAUGH})]
)  # fmt: skip
LINES_GIVEN = (SEOUL, "not JSON", "not an object", BUSAN, "no text at text", "not JSON", LAUGH)

NAMU = [
    {"namespace": "0", "title": "서울", "text": f"'''{SEOUL}'''\n[[분류:도시]]"},
    {"namespace": "0", "title": "넘", "text": "#redirect 서울"},
    {"namespace": "1", "title": "틀", "text": "x"},
    {"namespace": "0", "title": "표 없음", "text": None},
    {"namespace": "0", "title": "부산", "text": f"{BUSAN}\n'''{LAUGH}'''"},
]
NIKL = {
    "id": "X", "metadata": {"title": "말뭉치"},
    "document": [
        {"id": "X.1", "metadata": {"title": "수도", "topic": "지리"},
         "paragraph": [{"id": "X.1.1", "form": SEOUL}, {"form": ""}, {"form": BUSAN}]},
        {"id": "X.2", "metadata": {}, "utterance": [{"form": LAUGH, "speaker_id": "1"}]},
        {"id": "X.3", "sentence": [{"form": BUSAN}]},
        {"id": "X.4", "metadata": {}},
    ],
}  # fmt: skip


def json_files(layout: str) -> JsonFiles:
    return JsonFiles(parse_path(LAYOUTS[layout]))


SAMPLES = {
    "wikipedia": Sample(
        Wikipedia(), "kowiki.xml.bz2", multistream(PAGES),
        (SEOUL, "redirect", "other namespace", f"{BUSAN} < {LAUGH}", "no text"),
    ),
    "wikipedia, one stream": Sample(
        Wikipedia(), "kowiki.xml.bz2", bz2.compress((HEAD + "".join(PAGES) + TAIL).encode()),
        (SEOUL, "redirect", "other namespace", f"{BUSAN} < {LAUGH}", "no text"),
    ),
    "wikipedia, plain": Sample(
        Wikipedia(), "kowiki.xml", (HEAD + "".join(PAGES) + TAIL).encode(),
        (SEOUL, "redirect", "other namespace", f"{BUSAN} < {LAUGH}", "no text"),
    ),
    "namuwiki": Sample(
        Namuwiki(), "namu.json", as_json(NAMU),
        (SEOUL, "redirect", "other namespace", "no page of Namuwiki", f"{BUSAN}\n{LAUGH}"),
    ),
    "daily conversation": Sample(
        json_files("daily_conversation"), "a.json",
        as_json({"dataset": {"x": [1]}, "info": [
            {"id": 1, "mediatype": "m", "category": "c", "date": "d", "annotations": {
                "subject": "s", "speaker_type": "1:1", "text": f"1 : {SEOUL}\n2 : {LAUGH}",
                "lines": [
                    {"id": 1, "text": f"1 : {SEOUL}", "norm_text": SEOUL, "speechAct": "a",
                     "morpheme": "서울/NNP"},
                    {"id": 2, "text": f"2 : {LAUGH}", "norm_text": LAUGH, "speechAct": "b",
                     "morpheme": ""}]}},
            {"id": 2, "annotations": {"lines": []}}]}),
        (f"{SEOUL}\n{LAUGH}", "no text at info[].annotations.lines[].norm_text"),
    ),
    "dialogue summary": Sample(
        json_files("dialogue_summary"), "a.json",
        as_json({"numberOfItems": 1, "data": [{
            "header": {"dialogueInfo": {"dialogueID": "d"}, "participantsInfo": [{"age": "20"}]},
            "body": {"dialogue": [
                {"utteranceID": "U1", "participantID": "P01", "utterance": SEOUL},
                {"utteranceID": "U2", "participantID": "P02", "utterance": LAUGH}],
                "summary": BUSAN}}]}),
        (f"{SEOUL}\n{LAUGH}",),
    ),
    "document summary": Sample(
        json_files("document_summary"), "a.json",
        b"\xef\xbb\xbf" + as_json({"name": "x", "documents": [
            {"id": "1", "category": "c", "extractive": [0], "abstractive": [LAUGH],
             "text": [[{"index": 0, "sentence": SEOUL}], [{"index": 1, "sentence": BUSAN}]]},
            {"id": "2", "text": [[{"sentence": 7}]]},
            {"id": "3", "text": [[{"sentence": LAUGH}]]}]}, indent=2),
        (f"{SEOUL}\n{BUSAN}", "a value that should be text is not", LAUGH),
    ),
    "news": Sample(
        json_files("news"), "a.json",
        as_json({"data": [{"doc_id": "d", "doc_title": "t", "paragraphs": [
            {"context_id": "1", "context": BUSAN, "qas": [
                {"question_id": "1", "question": "q", "is_impossible": False,
                 "answers": {"text": "a", "answer_start": 0, "clue_text": "", "clue_start": 0}}]},
            {"context_id": "2", "context": SEOUL, "qas": []}]}]}),
        (f"{BUSAN}\n{SEOUL}",),
    ),
    "web corpus, labelled": Sample(
        json_files("web_corpus_labels"), "a.json",
        as_json({"named_entity": [
            {"title": [{"sentence": "t"}], "subtitle": [], "source_site": "s", "write_date": "d",
             "content": [{"sentence": SEOUL, "labels": []}, {"sentence": LAUGH, "labels": []}]},
            {"title": [None], "content": [{"sentence": BUSAN}]}]}),
        (f"{SEOUL}\n{LAUGH}", BUSAN),
    ),
    "web corpus": Sample(
        json_files("web_corpus"), "a.json",
        as_json({"SJML": {"text": [{"title": "t", "content": SEOUL}, {"content": BUSAN}]}}),
        (SEOUL, BUSAN),
    ),
    "one object": Sample(
        JsonFiles(parse_path("article.body"), " "), "a.json",
        as_json({"article": {"body": SEOUL}}), (SEOUL,),
    ),
    "nikl": Sample(
        Nikl(), "NWRW.json", as_json(NIKL),
        (f"{SEOUL}\n{BUSAN}", LAUGH, BUSAN, "none of paragraph, utterance, sentence"),
    ),
    "warc": Sample(
        Warc(), "a.warc.gz", WARC,
        (SEOUL, BUSAN + " 똠", "HTTP status 404", "no HTML", LAUGH),
    ),
    "wet": Sample(Wet(), "a.warc.wet.gz", WET, (SEOUL, "not UTF-8", LAUGH)),
    "text": Sample(PlainText(), "a.txt", f"{SEOUL}\r\n\r\n{BUSAN}\r\n".encode(),
                   (f"{SEOUL}\n\n{BUSAN}",)),
    "lines": Sample(
        PlainText("lines", "cp949"), "a.txt",
        b"\n".join([SEOUL.encode("cp949"), b" ", BUSAN.encode("cp949"), b"\xff\xff"]),
        (SEOUL, BUSAN, "not cp949"),
    ),
    "paragraphs": Sample(
        PlainText("paragraphs"), "a.txt", f"\n\n{SEOUL}\n{BUSAN}\n\n \n{LAUGH}\n".encode(),
        (f"{SEOUL}\n{BUSAN}", LAUGH),
    ),
    "jsonl": Sample(JsonLines(), "a.jsonl", LINES, LINES_GIVEN),
    "jsonl.gz": Sample(JsonLines(), "a.jsonl.gz", gzip.compress(LINES), LINES_GIVEN),
    "jsonl.xz": Sample(JsonLines(), "a.jsonl.xz", lzma.compress(LINES), LINES_GIVEN),
    "jsonl.bz2": Sample(JsonLines(), "a.jsonl.bz2", bz2.compress(LINES), LINES_GIVEN),
    "jsonl.zst": Sample(
        JsonLines(), "a.jsonl.zst",
        zstandard.compress(LINES[:99]) + zstandard.compress(LINES[99:]), LINES_GIVEN,
    ),
    "messages": Sample(
        JsonLines(parse_path("messages[].content", within_record=True), "\n\n"), "a.jsonl",
        as_json({"messages": [{"content": SEOUL}, {"content": None}, {"content": BUSAN}]}),
        (f"{SEOUL}\n\n{BUSAN}",),
    ),
    "csv": Sample(
        Csv("A"), "a.csv",
        as_csv([["Q", "A"], ["q", f"{SEOUL}\n\"{LAUGH}\""], ["q"], ["", BUSAN]]),
        (f"{SEOUL}\n\"{LAUGH}\"", "row without the column", BUSAN),
    ),
    "csv, cp949": Sample(
        Csv("1", header=False, delimiter="\t", encoding="cp949"), "a.tsv",
        as_csv([["x", SEOUL], ["y", BUSAN]], "cp949", "\t"), (SEOUL, BUSAN),
    ),
    "csv, another encoding": Sample(
        Csv("A"), "a.csv", b"A\n" + SEOUL.encode("cp949") + b"\n" + BUSAN.encode() + b"\n",
        ("not utf-8", BUSAN),
    ),
    "parquet": Sample(
        Parquet(), "a.parquet", as_parquet([SEOUL, None, BUSAN, BUSAN, LAUGH]),
        (SEOUL, "no text", BUSAN, BUSAN, LAUGH),
    ),
}  # fmt: skip


def write(folder: Path, sample: Sample) -> Path:
    path = folder / sample.name
    path.write_bytes(sample.content)
    return path


Spoil = Callable[[bytes], bytes]
