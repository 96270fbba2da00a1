"""Where documents come from: which files a source has, what is in them, how they are split."""

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from wmtp.data.documents import BadLines, Document, Segment, TokenDocument, UnusableError
from wmtp.data.json_lines import (
    MBPP_KEYS,
    check_text,
    mbpp_task_id,
    parse_mbpp_row,
    parse_object,
    parse_row,
    unix_newlines,
)
from wmtp.data.splits import MBPP_SPLITS, Split, cut_to_split, in_split
from wmtp.data.text_files import (
    LONGEST_LINE_BYTES,
    first_lines,
    read_lines,
    read_text,
    uncompressed_suffix,
)
from wmtp.errors import DataError

Format = Literal["auto", "mbpp", "jsonl", "text", "tree"]

PYTHON_STDLIB = "python-stdlib"

TEXT_SUFFIXES = frozenset({".txt", ".md"})
CODE_LANGUAGES = """
    .bash .c .cc .cjs .cpp .cs .css .cu .cuh .cxx .ex .exs .f90 .go .h .hh .hpp .hs .html .hxx .java
    .jl .js .jsx .kt .kts .lua .mjs .ml .mli .php .pl .pm .proto .ps1 .py .pyi .pyx .r .rb .rs .rst
    .scala .sh .sql .swift .tex .toml .ts .tsx .vue .yaml .yml .zig
"""
CODE_SUFFIXES = frozenset(CODE_LANGUAGES.split())
_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
_STDLIB_TESTS = frozenset({"test", "tests", "idle_test"})


@dataclass(frozen=True)
class Source:
    """A file or folder of documents, and which of them are meant.

    Attributes:
        path: a file, a folder, or ``python-stdlib``, the running Python's own library.
        split: MBPP's four splits go by ``task_id``. Elsewhere 5 % of the documents are for
            validation, chosen by a hash: of a file's path within its folder, of a JSONL line's
            text (so that equal lines are never on both sides). Of a single text file it is the
            last 5 %.
        format: ``auto`` tells a folder from a file and a file by its name and first line.
    """

    path: str
    split: Split = "all"
    format: Format = "auto"


@dataclass(frozen=True)
class SourceFiles:
    """What a source turned out to be: its format, files in a fixed order, what names start from."""

    format: Literal["mbpp", "jsonl", "text", "tree"]
    root: Path
    files: tuple[Path, ...]


def read_documents(source: Source, bad: BadLines) -> Iterator[Document | TokenDocument]:
    r"""Read the documents of a source's split, in the order of its files and lines.

    Blank lines and empty files are nothing, and pass without a word. A byte order mark is
    dropped; ``\r\n`` and ``\r`` become ``\n``. What is not UTF-8, has a NUL byte, is not the JSON
    that is expected, or repeats an MBPP ``task_id`` is left out and told to ``bad``.

    Raises:
        DataError: there is no such source, it has no such split, more than half of it is bad, or
            nothing is left. The last two are only known, and raised, at its end.
    """
    found = list_files(source)
    reader = _Reader(source, found, bad)
    yield from reader.read_lines() if found.format in ("mbpp", "jsonl") else reader.read_files()
    reader.check()


def read_texts(source: Source, bad: BadLines | None = None) -> Iterator[str]:
    """The text of each document, prompt and completion joined; token documents have none.

    Args:
        source: what to read.
        bad: takes what was left out, for a caller who tells it.

    Raises:
        DataError: as ``read_documents`` does.
    """
    for document in read_documents(source, BadLines() if bad is None else bad):
        if isinstance(document, Document):
            yield "".join(segment.text for segment in document.segments)


def make_source(path: str, split: str, format: str) -> Source:
    """A source from words that a user typed.

    Raises:
        DataError: a word is none of those that are possible.
    """
    if split not in get_args(Split):
        raise DataError(f"split is '{split}'. Use {', '.join(get_args(Split))}.")
    if format not in get_args(Format):
        raise DataError(f"format is '{format}'. Use {', '.join(get_args(Format))}.")
    return Source(path, cast(Split, split), cast(Format, format))


def list_files(source: Source) -> SourceFiles:
    """The files that a source is made of.

    Raises:
        DataError: there is none, they are of no known format, or the format has no such split.
    """
    path, is_stdlib = Path(source.path), False
    if not path.exists() and source.path == PYTHON_STDLIB:
        path, is_stdlib = Path(sysconfig.get_path("stdlib")), True
    if not path.exists():
        raise DataError(
            f"data source '{source.path}': no such file or folder. "
            f"Give a path, or {PYTHON_STDLIB} for Python's own sources."
        )
    if is_stdlib:
        files = _walk(path, {".py"}, _SKIPPED_FOLDERS | _STDLIB_TESTS)
        found = SourceFiles("tree", path, files)
    elif path.is_dir():
        found = _files_of_folder(source, path)
    else:
        found = _single_file(source, path)
    if not found.files:
        raise DataError(
            f"data source '{source.path}': the folder has no file of the format {found.format}."
        )
    if found.format != "mbpp" and source.split not in ("all", "train", "validation"):
        raise DataError(
            f"data source '{source.path}': split is '{source.split}', but only MBPP files have "
            "that one. Use all, train or validation."
        )
    return found


class _Reader:
    """The counts of one pass over a source."""

    def __init__(self, source: Source, found: SourceFiles, bad: BadLines) -> None:
        self.source, self.found, self.bad = source, found, bad
        self.read = self.used = 0
        self.bad_before = len(bad.lines)

    def read_lines(self) -> Iterator[Document | TokenDocument]:
        """One document per line of JSON."""
        places: dict[int, str] = {}
        for path in self.found.files:
            for number, line in read_lines(path):
                self.read += 1
                document = None
                with self.bad.at(f"{path}:{number}"):
                    document = self._parse(line, f"{path}:{number}", places)
                if document is not None:
                    self.used += 1
                    yield document

    def read_files(self) -> Iterator[Document]:
        """One document per file; a single file is split by position."""
        split, root = self.source.split, self.found.root
        is_alone = self.found.files == (root,)
        for path in self.found.files:
            text = None
            with self.bad.at(str(path)):
                text = unix_newlines(check_text(read_text(path), "the file"))
            if text == "":
                continue
            self.read += 1
            if text is None or not (is_alone or in_split(_name_below(root, path), split)):
                continue
            if is_alone:
                text = cut_to_split(text, split)
            if text:
                self.used += 1
                yield Document(str(path), (Segment(text),))

    def _parse(
        self, line: bytes | None, place: str, places: dict[int, str]
    ) -> Document | TokenDocument | None:
        """The document of a line; None if it is of another split."""
        if line is None:
            raise UnusableError("line too long", f"over {LONGEST_LINE_BYTES} bytes")
        row = parse_object(line)
        split = self.source.split
        if self.found.format == "mbpp":
            problem = parse_mbpp_row(row, place)
            task_id = mbpp_task_id(row)
            _refuse_repeated(task_id, place, places)
            return problem if split == "all" or task_id in MBPP_SPLITS[split] else None
        document = parse_row(row, place)
        if isinstance(document, TokenDocument):
            key = str(document.ids)
        else:
            key = "".join(segment.text for segment in document.segments)
        return document if in_split(key, split) else None

    def check(self) -> None:
        """Refuse a source that is mostly bad, or out of which nothing came."""
        bad = self.bad.lines[self.bad_before :]
        what = "lines" if self.found.format in ("mbpp", "jsonl") else "files"
        if bad and 2 * len(bad) > self.read:
            raise DataError(
                f"data source '{self.source.path}': {len(bad)} of {self.read} {what} cannot be "
                f"used as {self.found.format}; the first is {bad[0]}."
            )
        if not self.used:
            share = " (5 % of the documents)" if self.source.split == "validation" else ""
            raise DataError(
                f"data source '{self.source.path}': none of its {self.read} {what} is in the split "
                f"'{self.source.split}'{share}."
                if self.read
                else f"data source '{self.source.path}' is empty."
            )


def _name_below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _refuse_repeated(task_id: int, place: str, places: dict[int, str]) -> None:
    first = places.setdefault(task_id, place)
    if first != place:
        raise UnusableError("task_id repeated", f"{task_id}, first in {first}")


def _files_of_folder(source: Source, folder: Path) -> SourceFiles:
    kind = source.format
    if kind in ("mbpp", "jsonl"):
        return SourceFiles(kind, folder, _walk(folder, {".jsonl"}))
    if kind == "text":
        return SourceFiles(kind, folder, _walk(folder, TEXT_SUFFIXES))
    texts = _walk(folder, TEXT_SUFFIXES | CODE_SUFFIXES)
    lines = _walk(folder, {".jsonl"}) if kind == "auto" else ()
    if texts and lines:
        raise DataError(
            f"data source '{source.path}': the folder has both text and JSONL files "
            f"({texts[0].name}, {lines[0].name}). Set format: tree or jsonl."
        )
    if lines:
        return SourceFiles("mbpp" if _looks_like_mbpp(lines[0]) else "jsonl", folder, lines)
    return SourceFiles("tree", folder, texts)


def _single_file(source: Source, path: Path) -> SourceFiles:
    suffix = uncompressed_suffix(path)
    kind = source.format
    if kind == "tree":
        raise DataError(
            f"data source '{source.path}': format is 'tree', but this is a file. "
            "Use format: text, jsonl or mbpp."
        )
    if kind == "auto" and suffix == ".jsonl":
        kind = "mbpp" if _looks_like_mbpp(path) else "jsonl"
    elif kind == "auto" and suffix in TEXT_SUFFIXES | CODE_SUFFIXES:
        kind = "text"
    if kind == "auto":
        raise DataError(
            f"data source '{source.path}': its format is not known from the name. "
            "Set format: jsonl, mbpp or text."
        )
    return SourceFiles(kind, path, (path,))


def _looks_like_mbpp(path: Path) -> bool:
    for line in first_lines(path, 5):
        try:
            return parse_object(line).keys() >= MBPP_KEYS
        except UnusableError:  # counted when the file is read
            continue
    return False


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"data folder '{error.filename}' cannot be read: {error.strerror}.")


def _walk(
    root: Path, suffixes: set[str] | frozenset[str], skipped: frozenset[str] = _SKIPPED_FOLDERS
) -> tuple[Path, ...]:
    """Files below a folder in the order of their paths; nothing hidden, no links."""
    files = []
    for folder, names_of_folders, names in os.walk(root, onerror=_refuse_folder):
        names_of_folders[:] = [
            name for name in names_of_folders if not name.startswith(".") and name not in skipped
        ]
        for name in names:
            path = Path(folder, name)
            if (
                uncompressed_suffix(path) in suffixes
                and not name.startswith(".")
                and path.is_file()
                and not path.is_symlink()
            ):
                files.append(path)
    return tuple(sorted(files, key=lambda path: _name_below(root, path)))
