"""Units of work: every record in one of them, the same borders whatever is done already."""

import json
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.corpus.pipeline.units import DoneUnit, Position, Unit, cut_units
from wmtp.corpus.readers.json_files import JsonFiles
from wmtp.corpus.readers.json_path import parse_path
from wmtp.corpus.readers.plain_text import PlainText
from wmtp.corpus.readers.reader import RawFile, RawRecord, Reader
from wmtp.errors import DataError

READERS: dict[str, Reader] = {
    "lines": PlainText("lines", "utf-8"),
    "json": JsonFiles(parse_path("[].text")),
}
FIRST = 3
"""Place in the plan of the source's first file."""


def write_files(folder: Path, sizes: list[list[int]], reader: str) -> list[tuple[int, str, Path]]:
    files = []
    for i, lengths in enumerate(sizes):
        texts = [f"{i}.{k} ".ljust(length, "x") for k, length in enumerate(lengths)]
        path = folder / f"{i}"
        content = (
            json.dumps([{"text": text} for text in texts])
            if reader == "json"
            else "".join(text + "\n" for text in texts)
        )
        path.write_text(content)
        files.append((FIRST + i, path.name, path))
    return files


def cut(
    files: list[tuple[int, str, Path]], reader: str, size: int, done: Collection[Unit] = ()
) -> list[Unit]:
    on_disk = {
        (unit.file, unit.first): DoneUnit(
            Path(), unit.file, unit.first, unit.end_file, unit.end, unit.start, 0, {}, 0
        )
        for unit in done
    }
    opened: list[tuple[int, RawFile]] = []

    def tell(place: int, raw: RawFile) -> None:
        opened.append((place, raw))

    units = list(cut_units(READERS[reader], 0, files, size, on_disk, tell))
    assert [place for place, _ in opened] == sorted({place for place, _ in opened})
    return units


def numbers(unit: Unit) -> list[tuple[str, int]]:
    return [
        (name, record.number)
        for name, records in unit.parts
        for record in records
        if isinstance(record, RawRecord)
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(6, 60), max_size=8), min_size=1, max_size=6),
    st.integers(1, 300),
    st.sampled_from(sorted(READERS)),
    st.randoms(use_true_random=False),
)
def test_any_units_may_be_done_already(
    sizes: list[list[int]], size: int, reader: str, chance: "st.random_module"
) -> None:
    with TemporaryDirectory() as place:
        files = write_files(Path(place), sizes, reader)
        whole = cut(files, reader, size)
        done = [unit for unit in whole if chance.random() < 0.5]  # type: ignore[attr-defined]
        rest = cut(files, reader, size, done)
    every = [(f"{i}", k) for i, lengths in enumerate(sizes) for k in range(len(lengths))]
    assert [number for unit in whole for number in numbers(unit)] == every
    assert [unit for unit in whole if unit not in done] == [*rest]
    begin: Position = (FIRST, 0)
    for unit in whole:  # each begins where the one before ends
        assert (unit.file, unit.first) == begin
        begin = unit.end_file, unit.end
    assert begin == (FIRST + len(files), 0)


def test_small_files_share_a_unit_and_large_ones_are_cut(tmp_path: Path) -> None:
    files = write_files(tmp_path, [[10]] * 5 + [[50] * 6], "lines")
    units = cut(files, "lines", 120)
    assert [len(unit.parts) for unit in units] == [6, 1, 1]
    assert [(unit.file - FIRST, unit.first) for unit in units] == [(0, 0), (5, 2), (5, 5)]
    # nothing before a unit of an uncompressed file is read again
    assert units[0].start.offset > 0
    assert cut(files, "lines", 120, units) == []


def test_a_file_that_is_missing_is_noticed(tmp_path: Path) -> None:
    files = write_files(tmp_path, [[10], [10]], "lines")
    files[1][2].unlink()
    with pytest.raises(DataError, match="cannot be read"):
        cut(files, "lines", 100)
