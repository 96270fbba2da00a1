"""What every reader makes of every kind of broken file; the short form is in docs/data.md."""

import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from wmtp.data.documents import BadLines
from wmtp.data.prepare import prepare, prepare_cached
from wmtp.data.shards import BAD_LINES_FILE, gather_bad_lines, open_shards
from wmtp.data.sources import Source, read_documents
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError

JSONL = {"text": "good"}
MBPP = {"task_id": 7, "text": "a", "code": "b", "test_list": ["c"]}
HUMANEVAL = {
    "task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": " pass",
    "entry_point": "f", "test": "assert f",
}  # fmt: skip
CONTEST = {
    "name": "p", "description": "d", "solutions": ["a"], "incorrect_solutions": ["b", "c"],
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "jsonl": JSONL, "mbpp": MBPP, "humaneval": HUMANEVAL, "contest": CONTEST
}  # fmt: skip


def good_lines(kind: str) -> bytes:
    """Two good lines, no two of one problem."""
    first = ROWS[kind]
    second = {**first}
    if kind != "jsonl":
        second |= {"task_id": 8} if kind == "mbpp" else {"task_id": "HumanEval/8", "name": "q"}
    return b"".join(json.dumps(row).encode() + b"\n" for row in (first, second))


# one line of each, after two good ones: it is left out, and this is why
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "half an object": (b'{"text": ', "not JSON"),
    "a lone bracket": (b"]", "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "deep inside": (b'{"text": "a", "x": ' + b'{"a":' * 90_000 + b"1" + b"}" * 90_001, "not JSON"),
    "a number without end": (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", "not JSON"),
    "two objects": (b'{"text": "a"} {"text": "b"}', "not JSON"),
    "single quotes": (b"{'text': 'a'}", "not JSON"),
    "a raw control character": (b'{"text": "a\x01"}', "not JSON"),
    "a mark in the middle": (b'\xef\xbb\xbf{"text": "a"}', "not JSON"),
    "a list": (b"[1]", "not a JSON object"),
    "a word": (b'"text"', "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "NUL": (b'{"text": "a\0"}', "NUL byte"),
    "NUL alone": (b"\0", "NUL byte"),
    "Latin-1": (b'{"text": "\xe4"}', "not valid UTF-8"),
    "half a UTF-8 character": (b'{"text": "\xed\x95"}', "not valid UTF-8"),
    "a surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}', "not valid UTF-8"),
}  # fmt: skip
BAD_ROWS: dict[str, dict[str, tuple[dict[str, Any], str]]] = {
    "jsonl": {
        "no key": ({}, "no text"),
        "another key": ({"content": "a"}, "no text"),
        "a prompt alone": ({"prompt": "a"}, "no text"),
        "a number": ({"text": 3}, "text is not a string"),
        "NaN": ({"text": float("nan")}, "text is not a string"),
        "a list": ({"text": ["a"]}, "text is not a string"),
        "empty": ({"text": ""}, "text is empty"),
        "half a character": ({"text": "\ud800"}, "lone surrogate"),
        "an escaped NUL": ({"text": "\0"}, "NUL byte"),
        "an infinite reward": ({"text": "a", "reward": float("inf")}, "reward is not finite"),
        "a huge reward": ({"text": "a", "reward": 10**300}, "reward is not finite"),
        "a huge weight": ({"text": "a", "loss_weights": 1e9}, "a weight is not from 0 to 65504"),
        "a span outside": ({"text": "a", "loss_weights": [[0, 9, 1]]},
                           "loss_weights span outside the text"),
        "a group that is a list": ({"text": "a", "group": ["g"]}, "group is not a string"),
        "tokens with a float": ({"tokens": [1, 2.5]}, "tokens is not a list of integers"),
    },
    "mbpp": {
        "no number": ({**MBPP, "task_id": None}, "task_id is not an integer"),
        "a number as text": ({**MBPP, "task_id": "9"}, "task_id is not an integer"),
        "a number twice": (MBPP, "task_id repeated"),
        "no tests": ({**MBPP, "task_id": 9, "test_list": 0}, "test_list is not a list of strings"),
        "no code": ({**MBPP, "task_id": 9, "code": None}, "code is not a string"),
    },
    "humaneval": {
        "a name twice": (HUMANEVAL, "task_id repeated"),
        "no name": ({**HUMANEVAL, "task_id": 3}, "task_id is not a string"),
        "no solution": ({**HUMANEVAL, "task_id": "x", "canonical_solution": ""},
                        "canonical_solution is empty"),
    },
    "contest": {
        "a name twice": (CONTEST, "name repeated"),
        "no description": ({**CONTEST, "name": "r", "description": None},
                           "description is not a string"),
        "programs that are a word": ({**CONTEST, "name": "r", "solutions": "a"},
                                     "solutions is not a list of programs"),
        "languages too few": (
            {**CONTEST, "name": "r", "solutions": {"solution": ["a", "b"], "language": [3]}},
            "solutions.language is not a list as long as solutions.solution",
        ),
        "a program that is a number": ({**CONTEST, "name": "r", "solutions": [3]},
                                       "program is not a string"),
    },
}  # fmt: skip
LINE_CASES = [
    *((kind, name, line, reason) for kind in ROWS for name, (line, reason) in BAD_LINES.items()),
    *(
        (kind, name, json.dumps(row).encode(), reason)
        for kind, rows in BAD_ROWS.items()
        for name, (row, reason) in rows.items()
    ),
]


@pytest.mark.parametrize(
    ("kind", "name", "line", "reason"), LINE_CASES, ids=[f"{c[0]}-{c[1]}" for c in LINE_CASES]
)
def test_a_bad_line_is_left_out_with_its_place_and_reason(
    tmp_path: Path, kind: Any, name: str, line: bytes, reason: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good_lines(kind) + line + b"\n")
    bad = BadLines()
    documents = list(read_documents(Source(str(path), format=kind), bad))
    assert len(documents) == 2
    (left_out,) = bad.lines
    assert left_out.reason == reason
    assert left_out.place.startswith(f"{path}:3")
    assert len(str(left_out)) < len(str(path)) + 400
    assert str(left_out).isprintable()


@dataclass(frozen=True)
class File:
    """A whole file; what its documents say, or how it is refused."""

    name: str
    content: bytes
    texts: tuple[str, ...] = ()
    refused: str = ""
    format: Any = "auto"


LINE = b'{"text": "a"}\n'
FILES = {
    "a byte order mark": File("a.jsonl", b"\xef\xbb\xbf" + LINE, ("a",)),
    "Windows' newlines": File("a.jsonl", LINE.replace(b"\n", b"\r\n") * 2, ("a", "a")),
    "old Macs' newlines": File("a.jsonl", LINE.replace(b"\n", b"\r") * 2, refused="Extra data"),
    "no newline at the end": File("a.jsonl", LINE + LINE.strip(), ("a", "a")),
    "blank lines": File("a.jsonl", b"\n \n" + LINE + b"\r\n\t\n", ("a",)),
    "a line separator inside": File("a.jsonl", '{"text": "a\u2028b"}\n'.encode(), ("a\u2028b",)),
    "a key twice": File("a.jsonl", b'{"text": "a", "text": "b"}\n', ("b",)),
    "NaN where nobody looks": File("a.jsonl", b'{"text": "a", "x": NaN}\n', ("a",)),
    "nothing": File("a.jsonl", b"", refused="is empty"),
    "a mark alone": File("a.jsonl", b"\xef\xbb\xbf", refused="is empty"),
    "blank lines alone": File("a.jsonl", b"\n \n\n", refused="is empty"),
    "UTF-16": File("a.jsonl", LINE.decode().encode("utf-16"), refused="NUL byte"),
    "half is bad": File("a.jsonl", LINE + b"{\n", ("a",)),
    "most is bad": File("a.jsonl", LINE + b"{\n{\n", refused="2 of 3 lines cannot be used"),
    "all is bad": File("a.jsonl", b"{\n", refused="1 of 1 lines cannot be used"),
    "an array": File("a.jsonl", b"[" + LINE.strip() + b"]\n", refused="not a JSON object"),
    "an array of many lines": File("a.jsonl", b'[\n {\n  "text": "a"\n }\n]\n', refused="not JSON"),
    "gzip": File("a.jsonl.gz", gzip.compress(LINE), ("a",)),
    "xz": File("a.jsonl.xz", lzma.compress(LINE), ("a",)),
    "gzip of nothing": File("a.jsonl.gz", gzip.compress(b""), refused="is empty"),
    "gzip under another name": File("a.jsonl", gzip.compress(LINE), refused="with gzip (name it"),
    "xz under another name": File("a.jsonl", lzma.compress(LINE), refused="with xz (name it"),
    "no gzip": File("a.jsonl.gz", LINE, refused="cannot be decompressed: Not a gzipped file"),
    "no xz": File("a.jsonl.xz", LINE, refused="cannot be decompressed"),
    "gzip cut off": File("a.jsonl.gz", gzip.compress(LINE * 99)[:-9], refused="ended before the"),
    "gzip with a flipped bit": File(
        "a.jsonl.gz", gzip.compress(LINE)[:-8] + b"\0" * 8, refused="CRC check failed"
    ),
    "Parquet": File("a.jsonl", b"PAR1...PAR1", refused="is a Parquet file"),
    "Parquet by name": File("a.parquet", b"PAR1...PAR1", refused="its format is not known"),
    "Parquet by order": File("a.parquet", b"PAR1...", refused="is a Parquet file", format="jsonl"),
    "a zip": File("a.jsonl", b"PK\x03\x04...", refused="is a zip archive"),
    "a program": File("a.exe", b"MZ", refused="its format is not known from the name"),
    "text": File("a.txt", b"\xef\xbb\xbfa\r\nb\rc", ("a\nb\nc",)),
    "an empty text": File("a.txt", b"", refused="is empty"),
    "a text with NUL": File("a.txt", b"a\0b", refused="NUL byte"),
    "a text in Latin-1": File("a.txt", b"a\xe4b", refused="not valid UTF-8 (byte 2)"),
    "a text under gzip": File("a.txt", gzip.compress(b"a"), refused="not valid UTF-8"),
    "a program as mbpp": File("a.py", b"x = 1\n", refused="not JSON", format="mbpp"),
    "lines as mbpp": File("a.jsonl", LINE, refused="task_id is not an integer", format="mbpp"),
    "lines as contest": File("a.jsonl", LINE, refused="name is not a string", format="contest"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_is_read_or_refused_in_one_way(tmp_path: Path, what: str) -> None:
    file = FILES[what]
    path = tmp_path / file.name
    path.write_bytes(file.content)
    source = Source(str(path), format=file.format)
    if not file.refused:
        documents = list(read_documents(source, BadLines()))
        assert [d.segments[0].text for d in documents] == list(file.texts)  # type: ignore[union-attr]
        return
    with pytest.raises(DataError) as caught:
        list(read_documents(source, BadLines()))
    message = str(caught.value)
    assert file.refused in message
    assert str(path) in message
    assert all(line.isprintable() for line in message.split("\n"))


def test_more_than_half_bad_tells_the_first_five_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{\n" * 6 + b"[]\n" + LINE)
    with pytest.raises(DataError) as caught:
        list(read_documents(Source(str(path)), BadLines()))
    first, counts, *lines = str(caught.value).split("\n")
    assert "7 of 8 lines cannot be used as jsonl" in first
    assert counts == "7 left out: not JSON 6, not a JSON object 1"
    assert [line.split(": ")[0] for line in lines[:5]] == [f"  {path}:{n}" for n in range(1, 6)]
    assert lines[5] == "  and 2 more"


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, "the folder has no file of the format tree"),
    "links alone": (lambda folder: (folder / "a.py").symlink_to(__file__), "no file of the format"),
    "pipes alone": (lambda folder: os.mkfifo(folder / "a.py"), "no file of the format"),
    "empty files": (lambda folder: (folder / "a.py").touch(), "is empty"),
    "hidden files": (lambda folder: (folder / ".a.py").write_text("x"), "no file of the format"),
    "only bad ones": (
        lambda folder: (folder / "a.py").write_bytes(b"\xff"), "1 of 1 files cannot be used as tree"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_out_of_which_nothing_comes_is_refused(tmp_path: Path, what: str) -> None:
    make, message = FOLDERS[what]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        list(read_documents(Source(str(tmp_path)), BadLines()))


def test_a_file_name_that_is_no_text_is_told_in_escapes(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    (tmp_path / "in").mkdir()
    for name in (b"bad\xff.py", b"bad\x1b[2J.py"):
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(b"\xff")
    for number in range(3):
        (tmp_path / f"in/{number}.py").write_text("x = 1\n")
    report = prepare([Source(str(tmp_path / "in"))], tokenizer, tmp_path / "out")
    told = "\n".join(report.lines())
    told.encode("utf-8")
    assert r"bad\x1b[2J.py" in told
    assert r"bad\udcff.py" in told


# where all of them are kept -----------------------------------------------------------------------


def test_all_bad_lines_are_kept_and_told_again_from_the_cache(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE * 10 + b"{\n" * 7)
    told: list[str] = []
    for _ in range(2):
        shards = prepare_cached([Source(str(path))], tokenizer, tmp_path / "cache", told.append)
    made, again = told[1].split("\n"), told[2].split("\n")
    assert again[0] == f"{path}, tokenized before:"
    assert made[1] == again[1] == "7 left out: not JSON 7"
    assert made[2:7] == again[2:7]
    assert again[2].startswith(f"  {path}:11: not JSON")
    assert again[7] == f"  and 2 more, all in {shards.path / BAD_LINES_FILE}"
    kept = (shards.path / BAD_LINES_FILE).read_text().splitlines()
    assert [json.loads(line)["place"] for line in kept] == [f"{path}:{n}" for n in range(11, 18)]


def test_bad_lines_of_several_sources_come_together(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    for name in ("a", "b", "c"):
        bad = b"" if name == "c" else b"{\n"
        (tmp_path / f"{name}.jsonl").write_bytes(LINE * 2 + bad)
        prepare([Source(str(tmp_path / f"{name}.jsonl"))], tokenizer, tmp_path / name)
    a, b, c = (open_shards(tmp_path / name) for name in "abc")
    gather_bad_lines([a, b, a, c], tmp_path / "all.jsonl")
    places = [
        json.loads(line)["place"] for line in (tmp_path / "all.jsonl").read_text().splitlines()
    ]
    assert places == [f"{tmp_path / name}.jsonl:3" for name in "ab"]
    gather_bad_lines([c], tmp_path / "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()


# bounds -------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys
from pathlib import Path
from wmtp.data.prepare import prepare
from wmtp.data.sources import Source
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError
folder = Path(sys.argv[1])
tokenizer = TextTokenizer.load(folder / "tokenizer")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for number, path in enumerate(sorted(folder.glob("*.jsonl"))):
    try:
        prepare([Source(str(path))], tokenizer, folder / f"out{number}")
    except DataError as error:
        assert "cannot be used" in str(error)
    unit = 1 if sys.platform == "darwin" else 1024
    print(path.name, (peak() - before) * unit)
"""


def test_a_line_of_20_mb_does_not_cost_800_mb(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """A fifth of it costs less than a fifth: it is tokens of one byte that take the room."""
    tokenizer.save(tmp_path / "tokenizer")
    size = 4_000_000
    text = b"one two three " * (size // 14)
    (tmp_path / "1.jsonl").write_bytes(b'{"text": "' + text + b'"}\n')
    (tmp_path / "2.jsonl").write_bytes(b'{"text": "' + "한".encode() * (size // 3) + b'"}\n')
    (tmp_path / "3.jsonl").write_bytes(b"[" * size + b"\n")
    (tmp_path / "4.jsonl").write_bytes(b'{"text": "' + text)
    spans = b'"loss_weights": [[0, 99, 0.5], [100, 999, 2]]'
    (tmp_path / "5.jsonl").write_bytes(b'{"text": "' + text + b'", ' + spans + b"}\n")
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True
    )
    peaks = dict(line.split() for line in ran.stdout.splitlines())
    assert len(peaks) == 5
    assert max(map(int, peaks.values())) < 160e6, peaks
