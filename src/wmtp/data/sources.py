"""Where documents come from: which files a source has, what is in them, how they are split."""

import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from wmtp.data.contest import (
    CONTEST_KEYS,
    Solutions,
    contest_documents,
    parse_contest_row,
)
from wmtp.data.documents import (
    BadLine,
    BadLines,
    Document,
    Segment,
    TokenDocument,
    UnusableError,
)
from wmtp.data.hub import fetch_dataset, files_of_split, is_hub_name
from wmtp.data.json_blocks import object_of, parse_block
from wmtp.data.json_lines import (
    HUMANEVAL_KEYS,
    MBPP_KEYS,
    check_text,
    humaneval_task_id,
    mbpp_task_id,
    parse_humaneval_row,
    parse_mbpp_row,
    parse_object,
    unix_newlines,
)
from wmtp.data.splits import (
    CONTEST_VALIDATION_SHARE,
    MBPP_SPLITS,
    VALIDATION_SHARE,
    Split,
    cut_to_split,
    in_split,
)
from wmtp.data.text_files import (
    first_lines,
    read_blocks,
    read_lines,
    read_text,
    uncompressed_suffix,
)
from wmtp.errors import DataError

Format = Literal["auto", "mbpp", "humaneval", "contest", "jsonl", "text", "tree"]
LineFormat = Literal["mbpp", "humaneval", "contest", "jsonl"]
LINE_FORMATS = get_args(LineFormat)
BENCHMARKS = ("mbpp", "humaneval")
"""Formats whose splits are decided by the problem, whichever file it stands in."""

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


class RefusedSourceError(DataError):
    """A source that is mostly bad, or out of which nothing came: read again it will be the same."""


@dataclass(frozen=True)
class Source:
    """A file or folder of documents, and which of them are meant.

    Attributes:
        path: a file, a folder, ``python-stdlib``, the running Python's own library, or a data set
            of the Hugging Face hub, ``ORG/NAME`` or ``ORG/NAME:CONFIG``. What is there wins.
        split: MBPP's four splits go by ``task_id``; HumanEval is all ``test``. Elsewhere 5 % of
            the documents are for validation, chosen by a hash: of a file's path within its folder,
            of a JSONL line's text (so that equal lines are never on both sides), and 10 % of the
            programs of a contest. Of a single text file it is the last 5 %.
        format: ``auto`` tells a folder from a file and a file by its name and first line.
        solutions: of a contest: the correct programs, or all of them with a reward.
    """

    path: str
    split: Split = "all"
    format: Format = "auto"
    solutions: Solutions = "correct"


@dataclass(frozen=True)
class SourceFiles:
    """What a source turned out to be.

    Attributes:
        format: what is in the files.
        root: what their names start from.
        files: in a fixed order.
        split: what is left to be chosen in them.
    """

    format: LineFormat | Literal["text", "tree"]
    root: Path
    files: tuple[Path, ...]
    split: Split = "all"


def read_documents(source: Source, bad: BadLines) -> Iterator[Document | TokenDocument]:
    r"""Read the documents of a source's split, in the order of its files and lines.

    Blank lines and empty files are nothing, and pass without a word. A byte order mark is
    dropped; ``\r\n`` and ``\r`` become ``\n``. What is not UTF-8, has a NUL byte, is not the JSON
    that is expected, or repeats a problem is left out and told to ``bad``.

    Raises:
        DataError: there is no such source, it has no such split, more than half of it is bad, or
            nothing is left. The last two are only known, and raised, at its end.
    """
    found = list_files(source)
    reader = _Reader(source, found, bad)
    if found.format == "jsonl":
        yield from reader.read_jsonl()
    elif found.format == "contest":
        yield from reader.read_contests()
    elif found.format in LINE_FORMATS:
        yield from reader.read_benchmark()
    else:
        yield from reader.read_files()
    reader.check()


def read_texts(source: Source, bad: BadLines | None = None) -> Iterator[str]:
    """The text of each document, prompt and completion joined; token documents have none.

    Args:
        source: what to read.
        bad: takes what was left out, for a caller who tells it.

    Raises:
        DataError: as ``read_documents`` does.
    """
    for _, text in read_named_texts(source, bad):
        yield text


def read_named_texts(source: Source, bad: BadLines | None = None) -> Iterator[tuple[str, str]]:
    """As ``read_texts``, each with the name of its source: the document's own, or the path.

    Raises:
        DataError: as ``read_documents`` does.
    """
    for document in read_documents(source, BadLines() if bad is None else bad):
        if isinstance(document, Document):
            text = "".join(segment.text for segment in document.segments)
            yield document.origin.source or source.path, text


def make_source(path: str, split: str, format: str, solutions: str = "correct") -> Source:
    """A source from words that a user typed.

    Raises:
        DataError: a word is none of those that are possible.
    """
    if split not in get_args(Split):
        raise DataError(f"split is '{split}'. Use {', '.join(get_args(Split))}.")
    if format not in get_args(Format):
        raise DataError(f"format is '{format}'. Use {', '.join(get_args(Format))}.")
    if solutions not in get_args(Solutions):
        raise DataError(f"solutions is '{solutions}'. Use {', '.join(get_args(Solutions))}.")
    return Source(path, cast(Split, split), cast(Format, format), cast(Solutions, solutions))


def list_files(source: Source) -> SourceFiles:
    """The files that a source is made of.

    Raises:
        DataError: there is none, they are of no known format, or the format has no such split or
            solutions; or a data set of the hub cannot be fetched.
    """
    path, is_stdlib = Path(source.path), False
    if not path.exists() and source.path == PYTHON_STDLIB:
        path, is_stdlib = Path(sysconfig.get_path("stdlib")), True
    is_of_hub = not path.exists() and is_hub_name(source.path)
    if is_of_hub:
        path = fetch_dataset(source.path)
    if not path.exists():
        raise DataError(
            f"data source '{source.path}': no such file or folder. Give a path, {PYTHON_STDLIB} "
            "for Python's own sources, or ORG/NAME of a data set on the Hugging Face hub."
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
    split = source.split
    if is_of_hub and found.format not in BENCHMARKS:
        files, split = files_of_split(source.path, found.files, split)
        found = replace(found, files=files)
    found = replace(found, split=split)
    _check_choices(source, found)
    return found


def _check_choices(source: Source, found: SourceFiles) -> None:
    if found.format == "humaneval" and found.split not in ("all", "test"):
        raise DataError(
            f"data source '{source.path}': split is '{source.split}', but HumanEval is a benchmark "
            "for evaluation alone. Use test."
        )
    others_have = ("all", "train", "validation")
    if found.format not in BENCHMARKS and found.split not in others_have:
        raise DataError(
            f"data source '{source.path}': split is '{source.split}', but only MBPP files have "
            "that one. Use all, train or validation."
        )
    if found.format != "contest" and source.solutions != "correct":
        raise DataError(
            f"data source '{source.path}': solutions is '{source.solutions}', but only contest "
            f"files have others than correct ones, and this is {found.format}."
        )


class _Reader:
    """The counts of one pass over a source."""

    def __init__(self, source: Source, found: SourceFiles, bad: BadLines) -> None:
        self.source, self.found, self.bad = source, found, bad
        self.read = self.used = 0
        self.bad_before = len(bad.lines)

    def read_jsonl(self) -> Iterator[Document | TokenDocument]:
        """One document per line of JSON."""
        for path in self.found.files:
            for block in read_blocks(path):
                parsed = parse_block(block, self.found.split)
                self.read += parsed.read
                self.used += len(parsed.documents)
                self.bad.lines += parsed.bad
                yield from parsed.documents

    def read_benchmark(self) -> Iterator[Document]:
        """One document per problem, each problem once."""
        places: dict[object, str] = {}
        for path in self.found.files:
            for number, line in read_lines(path):
                self.read += 1
                document = None
                with self.bad.at(f"{path}:{number}"):
                    document = self._parse(line, f"{path}:{number}", places)
                if document is not None:
                    self.used += 1
                    yield document

    def read_contests(self) -> Iterator[Document]:
        """One document per program; what is counted are programs."""
        places: dict[object, str] = {}
        for path in self.found.files:
            for number, line in read_lines(path):
                self.read += 1
                documents: list[Document] = []
                with self.bad.at(f"{path}:{number}"):
                    documents = self._parse_contest(line, f"{path}:{number}", places)
                self.used += len(documents)
                yield from documents

    def read_files(self) -> Iterator[Document]:
        """One document per file; a single file is split by position."""
        split, root = self.found.split, self.found.root
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

    def _parse(self, line: bytes | None, place: str, places: dict[object, str]) -> Document | None:
        """The problem of a line; None if it is of another split."""
        row = object_of(line)
        split = self.found.split
        if self.found.format == "mbpp":
            problem = parse_mbpp_row(row, place)
            task_id = mbpp_task_id(row)
            _refuse_repeated("task_id", task_id, place, places)
            return problem if split == "all" or task_id in MBPP_SPLITS[split] else None
        problem = parse_humaneval_row(row, place)
        _refuse_repeated("task_id", humaneval_task_id(row), place, places)
        return problem

    def _parse_contest(
        self, line: bytes | None, place: str, places: dict[object, str]
    ) -> list[Document]:
        """The documents of a problem's programs that are in the split."""
        problem = parse_contest_row(object_of(line), place)
        _refuse_repeated("name", problem.name, place, places)
        self.read += len(problem.correct) + len(problem.incorrect) - 1
        split, solutions = self.found.split, self.source.solutions
        return list(contest_documents(problem, split, solutions, self.bad))

    def check(self) -> None:
        """Refuse a source that is mostly bad, or out of which nothing came."""
        bad = self.bad.lines[self.bad_before :]
        check_reading(self.source, self.found, self.read, self.used, len(bad), bad)


def check_reading(
    source: Source, found: SourceFiles, read: int, used: int, unread: int, bad: Sequence[BadLine]
) -> None:
    """Refuse a source that is mostly bad, or out of which nothing came.

    Args:
        source: what was read.
        found: its files.
        read: lines (of contests programs, of trees files) that were read.
        used: documents that came of them.
        unread: how many could not be read.
        bad: to be told; the first ``unread`` of them or more.

    Raises:
        RefusedSourceError: it is so.
    """
    kind = found.format
    what = "programs" if kind == "contest" else "lines" if kind in LINE_FORMATS else "files"
    held_out = CONTEST_VALIDATION_SHARE if kind == "contest" else VALIDATION_SHARE
    if unread and 2 * unread > read:
        raise RefusedSourceError(
            f"data source '{source.path}': {unread} of {read} {what} cannot be "
            f"used as {kind}; the first is {bad[0]}.\n" + "\n".join(BadLines(list(bad)).report())
        )
    if not used:
        share = f" ({held_out:.0%} of the documents)" if source.split == "validation" else ""
        raise RefusedSourceError(
            f"data source '{source.path}': none of its {read} {what} is in the split "
            f"'{source.split}'{share}. Give more data, or name another split."
            if read
            else f"data source '{source.path}' is empty."
        )


def _name_below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _refuse_repeated(key: str, value: object, place: str, places: dict[object, str]) -> None:
    first = places.setdefault(value, place)
    if first != place:
        raise UnusableError(f"{key} repeated", f"{value}, first in {first}")


def _files_of_folder(source: Source, folder: Path) -> SourceFiles:
    kind = source.format
    if kind in LINE_FORMATS:
        return SourceFiles(cast(LineFormat, kind), folder, _walk(folder, {".jsonl"}))
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
        return SourceFiles(_format_of_lines(lines[0]), folder, lines)
    return SourceFiles("tree", folder, texts)


def _single_file(source: Source, path: Path) -> SourceFiles:
    suffix = uncompressed_suffix(path)
    kind = source.format
    if kind == "tree":
        raise DataError(
            f"data source '{source.path}': format is 'tree', but this is a file. "
            f"Use format: text, {', '.join(LINE_FORMATS)}."
        )
    if kind == "auto" and suffix == ".jsonl":
        kind = _format_of_lines(path)
    elif kind == "auto" and suffix in TEXT_SUFFIXES | CODE_SUFFIXES:
        kind = "text"
    if kind == "auto":
        raise DataError(
            f"data source '{source.path}': its format is not known from the name. "
            f"Set format: text, {', '.join(LINE_FORMATS)}."
        )
    return SourceFiles(kind, path, (path,))


def _format_of_lines(path: Path) -> LineFormat:
    for line in first_lines(path, 5):
        try:
            keys = parse_object(line).keys()
        except UnusableError:  # counted when the file is read
            continue
        if keys >= MBPP_KEYS:
            return "mbpp"
        if keys >= HUMANEVAL_KEYS:
            return "humaneval"
        return "contest" if keys >= CONTEST_KEYS else "jsonl"
    return "jsonl"


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
