"""The texts of evaluation files, whatever their fields are called."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmtp.corpus.document import BadRecord
from wmtp.corpus.readers.files import lines_of, open_stream
from wmtp.corpus.readers.json_array import parse_json
from wmtp.corpus.readers.json_files import JsonFiles
from wmtp.corpus.readers.json_lines import JsonLines
from wmtp.corpus.readers.json_path import parse_path
from wmtp.corpus.readers.reader import (
    LONGEST_RECORD_BYTES,
    DamagedFileError,
    RawFile,
    Start,
    UnreadableError,
)
from wmtp.errors import DataError


def texts_of_file(path: Path) -> Iterator[str]:
    """Every text in a file: of a record of JSON or JSONL, a field of CSV, a line of others.

    Raises:
        DataError: the file cannot be read to its end: a benchmark that is looked for in part is
            not kept out.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    try:
        if ".jsonl" in suffixes:
            yield from _of_records(JsonLines(), path)
        elif ".json" in suffixes:
            yield from _of_records(JsonFiles(parse_path("whole")), path)
        else:
            yield from _of_lines(path, ".csv" in suffixes)
    except (DamagedFileError, UnreadableError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"evaluation file '{path}' cannot be read: {error}.") from error


def _of_records(reader: JsonFiles | JsonLines, path: Path) -> Iterator[str]:
    for record in reader.records(RawFile(path), Start()):
        if isinstance(record, BadRecord):
            raise UnreadableError(record.reason)
        yield from _strings(parse_json(record.content))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)


def _of_lines(path: Path, is_csv: bool) -> Iterator[str]:
    with open_stream(RawFile(path)) as stream:
        lines = (_decoded(line) for _, _, line in lines_of(stream))
        if is_csv:
            for row in csv.reader(lines):
                yield from row
        else:
            yield from lines


def _decoded(line: bytes | None) -> str:
    if line is None:
        raise UnreadableError(f"line over {LONGEST_RECORD_BYTES >> 20} MiB")
    return line.decode()
