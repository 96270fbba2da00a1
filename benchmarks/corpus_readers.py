"""How fast raw corpora are read, and in how much memory: files of any size, made for the purpose.

    python benchmarks/corpus_readers.py [--megabytes 1024] [--others 64]

A file of the Modu corpora (NIKL) of so many megabytes, and one of every other format of ``others``
megabytes, are written to a temporary folder. Each is read in a process of its own. ``cut`` is what
the one process does that reads a file for all workers; ``documents`` is what is shared out among
them. MB are those of the file once it is decompressed, seconds those of processor time.
"""

import argparse
import bz2
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from wmtp.corpus.document import Document
from wmtp.corpus.readers.common_crawl import Warc, Wet
from wmtp.corpus.readers.json_files import JsonFiles
from wmtp.corpus.readers.json_lines import JsonLines
from wmtp.corpus.readers.json_path import parse_path
from wmtp.corpus.readers.namuwiki import Namuwiki
from wmtp.corpus.readers.nikl import Nikl
from wmtp.corpus.readers.plain_text import PlainText
from wmtp.corpus.readers.reader import Origin, RawFile, RawRecord, Reader, Start
from wmtp.corpus.readers.reading import cut_records, parse
from wmtp.corpus.readers.tables import Csv, Parquet
from wmtp.corpus.readers.wikipedia import Wikipedia

SENTENCE = "가을이 오면 마을 앞 들판은 누렇게 물들고, 아이들은 메뚜기를 잡았다. "
PROSE = SENTENCE * 12
MARKUP = (
    "'''글'''은 [[대한민국]]의 [[글|말]]이다.<ref>{{웹 인용|제목=글|url=http://a.kr}}</ref>\n\n"
    f"== 역사 ==\n{PROSE}\n* [[하나]]\n* [[둘]]\n{{{{틀|이름=값}}}}\n[[분류:글]]\n"
)
ROWS_AT_A_TIME = 2_000


def nikl(i: int) -> bytes:
    forms = [{"id": f"N.{i}.{k}", "form": SENTENCE * 3} for k in range(6)]
    return dumps({"id": f"N.{i}", "metadata": {"title": "글"}, "paragraph": forms})


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def namu_page(i: int) -> bytes:
    return dumps({"namespace": "0", "title": f"글 {i}", "text": MARKUP, "contributors": []})


def wiki_page(i: int) -> bytes:
    text = MARKUP.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<page><title>글 {i}</title><ns>0</ns><id>{i}</id><revision><text>{text}</text>"
        "</revision></page>\n"
    ).encode()


def warc_record(i: int, kind: str, body: bytes) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{i}>\r\n"
    head += "Content-Type: application/http; msgtype=response\r\n" * (kind == "response")
    return gzip.compress(
        f"{head}WARC-Target-URI: http://a.kr/{i}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body + b"\r\n\r\n", 1,
    )  # fmt: skip


def html(i: int) -> bytes:
    items = "".join(f"<li><a href='/{k}'>차례 {k}</a></li>" for k in range(30))
    page = (
        f"<html><head><title>{i}</title><style>p {{ color: red }}</style></head><body><nav><ul>"
        f"{items}</ul></nav><article><h1>글</h1><p>{PROSE}</p><p>{PROSE}</p></article></body></html>"
    )
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page.encode()


def wrapped(head: bytes, between: bytes, tail: bytes, part: Callable[[int], bytes]) -> Callable[
    [Path, int], int
]:  # fmt: skip
    """Writes parts until there are so many bytes; gives how many."""

    def write(path: Path, size: int) -> int:
        with path.open("wb") as file:
            written, i = file.write(head), 0
            while written < size:
                written += file.write((between if i else b"") + part(i))
                i += 1
            return written + file.write(tail)

    return write


def compressed(write: Callable[[Path, int], int], pack: Callable[[bytes], bytes]) -> Callable[
    [Path, int], int
]:  # fmt: skip
    def write_packed(path: Path, size: int) -> int:
        plain = path.with_name("plain")
        written = write(plain, size)
        path.write_bytes(pack(plain.read_bytes()))
        plain.unlink()
        return written

    return write_packed


def multistream(path: Path, size: int) -> int:
    """As dumps are: a bzip2 stream for every 100 pages."""
    with path.open("wb") as file:
        file.write(bz2.compress(b"<mediawiki>\n"))
        written = 0
        while written < size:
            pages = b"".join(wiki_page(written + i) for i in range(100))
            file.write(bz2.compress(pages, 1))
            written += len(pages)
        file.write(bz2.compress(b"</mediawiki>\n"))
    return written


def crawl(kind: str, body: Callable[[int], bytes]) -> Callable[[Path, int], int]:
    def write(path: Path, size: int) -> int:
        with path.open("wb") as file:
            written = i = 0
            while written < size:
                content = body(i)
                file.write(warc_record(i, kind, content))
                written, i = written + len(content), i + 1
            return written

    return write


def parquet(path: Path, size: int) -> int:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema([("text", pyarrow.string())])
    written = 0
    with ParquetWriter(path, schema) as writer:
        while written < size:
            texts = [f"{written + i} {PROSE}" for i in range(ROWS_AT_A_TIME)]
            writer.write_table(pyarrow.table({"text": texts}, schema))
            written += sum(len(text.encode()) for text in texts)
    return written


LINES = wrapped(b"", b"\n", b"\n", lambda i: dumps({"id": i, "text": PROSE}))
KINDS: dict[str, tuple[Reader, str, Callable[[Path, int], int]]] = {
    "nikl": (Nikl(), "a.json", wrapped(b'{"document": [', b",\n", b"]}", nikl)),
    "namuwiki": (Namuwiki(), "a.json", wrapped(b"[", b",", b"]", namu_page)),
    "ai hub": (
        JsonFiles(parse_path("documents[].text[][].sentence")), "a.json",
        wrapped(b'{"documents": [', b",\n", b"]}", lambda i: dumps(
            {"id": str(i), "text": [[{"index": k, "sentence": SENTENCE}] for k in range(12)]})),
    ),
    "wikipedia, bz2": (Wikipedia(), "a.xml.bz2", multistream),
    "warc.gz": (Warc(), "a.warc.gz", crawl("response", html)),
    "wet.gz": (Wet(), "a.wet.gz", crawl("conversion", lambda i: PROSE.encode())),
    "jsonl": (JsonLines(), "a.jsonl", LINES),
    "jsonl.gz": (JsonLines(), "a.jsonl.gz", compressed(LINES, lambda c: gzip.compress(c, 1))),
    "text, lines": (PlainText("lines"), "a.txt",
                    wrapped(b"", b"\n", b"", lambda i: PROSE.encode())),
    "csv": (Csv(), "a.csv", wrapped(b"n,text\n", b"\n", b"\n",
                                    lambda i: f'{i},"{PROSE}"'.encode())),
    "parquet": (Parquet(), "a.parquet", parquet),
}  # fmt: skip


def measure(name: str, path: Path) -> dict[str, float]:
    """Seconds of cutting and of making documents, and memory, of this process."""
    reader, origin, raw = KINDS[name][0], Origin("s", "l"), RawFile(path)
    cut = made = 0.0
    documents = 0
    for records in batches(cut_records(reader, raw, "a", Start())):
        begun = time.process_time()
        for record in records[0]:
            assert isinstance(record, RawRecord), record
            documents += isinstance(parse(reader, record, "a", origin), Document)
        made += time.process_time() - begun
        cut += records[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cut": cut,
        "made": made,
        "documents": documents,
        "peak": peak / (1024 if sys.platform == "linux" else 1024**2),
    }


def batches(records: Iterator[object]) -> Iterator[tuple[list[object], float]]:
    """A hundred records at a time, and the seconds that cutting them took."""
    while True:
        begun = time.process_time()
        some = [record for record, _ in zip(records, range(100), strict=False)]
        seconds = time.process_time() - begun
        if not some:
            return
        yield some, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--others", type=int, default=64)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    print("| format | MB | documents | cut, MB/s | documents, MB/s | peak RSS, MB |")
    print("|---|---|---|---|---|---|")
    for name, (_, file, write) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file
            size = write(path, (options.megabytes if name == "nikl" else options.others) << 20)
            done = subprocess.run(
                [sys.executable, __file__, "--measure", name, str(path)],
                stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
        found = json.loads(done.stdout)
        print(
            f"| {name} | {size / 1e6:.0f} | {found['documents']:,} "
            f"| {size / 1e6 / found['cut']:.0f} | {size / 1e6 / found['made']:.1f} "
            f"| {found['peak']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
