"""A unit of work: records of one file, cut by who reads, made into documents by who works."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, final

import numpy as np
import orjson

from wmtp.corpus.document import BadRecord, Document, Dropped
from wmtp.corpus.duplicates import SignatureShape, comparable, sign, write_texts
from wmtp.corpus.pipeline.tally import Sample, Tally
from wmtp.corpus.readers.reader import Origin, PassedOver, RawFile, RawRecord, Reader, Start
from wmtp.corpus.readers.reading import cut_records, parse
from wmtp.corpus.stages import CountingStage, PrivateData
from wmtp.errors import DataError
from wmtp.runtime.durable import storage_errors, sync_file, sync_folder, temporary_name
from wmtp.runtime.machine import peak_resident_bytes

WORK_FOLDER: Final = "work"
DOCUMENTS_FILE: Final = "documents.jsonl"
_LINES_FILE: Final = "lines.npy"
_SIZES_FILE: Final = "sizes.npy"
_FACTS_FILE: Final = "unit.json"
_MOST_RECORDS: Final = 100_000
_SAMPLE_CHARACTERS: Final = 120

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unit:
    """Records that are worked on together.

    Attributes:
        file: place of their file in the plan.
        first: number of the first record.
        end: number of the record after the last one, of the next unit if there is one.
        is_last: the file ends here.
        records: to be made into documents.
        start: where reading may go on behind this unit, at ``end`` or before.
    """

    file: int
    first: int
    end: int
    is_last: bool
    records: tuple[RawRecord | BadRecord, ...]
    start: Start

    @property
    def name(self) -> str:
        """Of its folder; folders sorted by name are in the order of files and records."""
        return unit_name(self.file, self.first)


@dataclass(frozen=True)
class DoneUnit:
    """A unit that is on disk.

    Attributes:
        folder: that it is in.
        documents: that are left.
        seconds: that each stage took.
        peak_bytes: of memory, of the process that did it.
        file: and all below as of ``Unit``.
    """

    folder: Path
    file: int
    first: int
    end: int
    is_last: bool
    start: Start
    documents: int
    seconds: Mapping[str, float]
    peak_bytes: int

    def tally(self) -> Tally:
        """What became of its records: read when it is asked for, as there may be many units.

        Raises:
            DataError: it cannot be read.
        """
        return _facts(self.folder, lambda facts: Tally.from_json(facts["tally"]))


def unit_name(file: int, first: int) -> str:
    """Of a unit's folder."""
    return f"{file:05d}-{first:012d}"


def cut_units(
    reader: Reader,
    raw: RawFile,
    name: str,
    file: int,
    unit_bytes: int,
    done: Mapping[int, DoneUnit],
) -> Iterator[Unit]:
    """The units of a file that are not done, in order.

    Where a unit begins depends on the records before it in the file and on nothing else.

    Args:
        reader: of the file's format.
        raw: the file.
        name: of the file, in places.
        file: its place in the plan.
        unit_bytes: of records, about.
        done: units of this file that are on disk, by their first record.

    Raises:
        DataError: the file cannot be read.
    """
    first, start = 0, Start()
    while (unit := done.get(first)) is not None:
        if unit.is_last:
            return
        first, start = unit.end, unit.start
    records: list[RawRecord | BadRecord] = []
    size = 0
    for record in cut_records(reader, raw, name, start):
        number = _number(record)
        if number < first:
            continue
        if size >= unit_bytes or len(records) == _MOST_RECORDS or (records and number in done):
            yield Unit(file, first, number, False, tuple(records), start)
            records, size, first = [], 0, number
            while (unit := done.get(first)) is not None:
                if unit.is_last:
                    return
                first = unit.end
            if number < first:
                continue
        if isinstance(record, RawRecord):
            size += record.size
            if record.start is not None:
                start = record.start
        records.append(record)
    end = _number(records[-1]) + 1 if records else first
    yield Unit(file, first, end, True, tuple(records), start)


def _number(record: RawRecord | BadRecord) -> int:
    return record.number if isinstance(record, RawRecord) else record.place.record


@final
@dataclass(frozen=True)
class UnitWorker:
    """Makes documents of records, and writes what is left of them.

    Attributes:
        out: folder of the corpus.
        names: of the files in the plan.
        readers: of the files in the plan.
        origins: of the files in the plan.
        stages: that a document goes through.
        shape: of signatures.
    """

    out: Path
    names: tuple[str, ...]
    readers: tuple[Reader, ...]
    origins: tuple[Origin, ...]
    stages: tuple[CountingStage, ...]
    shape: SignatureShape

    def work(self, unit: Unit) -> Path:
        """Write the unit's folder, which appears when all that is in it is on the disk.

        Raises:
            StorageError: it could not be written.
        """
        tally = Tally()
        clock = _Clock()
        documents = self._parse(unit, tally)
        clock.note("read")
        for stage in self.stages:
            documents = _apply(stage, documents, tally, self.private)
            clock.note(stage.name)
        texts = [comparable(document.text) for document, _ in documents]
        signatures = sign(texts, self.shape)
        clock.note("signatures")
        lines = [_line(document) for document, _ in documents]
        folder = self.folder / unit.name
        temporary = temporary_name(folder)
        with storage_errors(f"{folder} could not be written"):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            (temporary / DOCUMENTS_FILE).write_bytes(b"".join(lines))
            ends = np.cumsum(np.fromiter(map(len, lines), np.uint64, len(lines)), dtype=np.uint64)
            np.save(temporary / _LINES_FILE, ends)
            sizes = np.fromiter((size for _, size in documents), np.uint64, len(lines))
            np.save(temporary / _SIZES_FILE, sizes)
            signatures.write(temporary)
            write_texts(temporary, texts)
            clock.note("write")
            facts = {
                "file": unit.file,
                "first": unit.first,
                "end": unit.end,
                "is_last": unit.is_last,
                "start": [unit.start.record, unit.start.offset],
                "documents": len(documents),
                "seconds": clock.seconds,
                "peak_bytes": peak_resident_bytes(),
                "tally": tally.as_json(),
            }
            (temporary / _FACTS_FILE).write_text(json.dumps(facts), encoding="ascii")
            for path in temporary.iterdir():
                sync_file(path)
            sync_folder(temporary)
            temporary.replace(folder)
            sync_folder(self.folder)
        return folder

    @property
    def folder(self) -> Path:
        """Of all units."""
        return self.out / WORK_FOLDER / "units"

    @property
    def private(self) -> PrivateData | None:
        """The stage that replaces private data, if it is enabled."""
        return next((stage for stage in self.stages if isinstance(stage, PrivateData)), None)

    def _parse(self, unit: Unit, tally: Tally) -> list[tuple[Document, int]]:
        """The unit's documents with the bytes of their texts; what is none is counted."""
        reader, name = self.readers[unit.file], self.names[unit.file]
        documents = []
        for record in unit.records:
            parsed = (
                record
                if isinstance(record, BadRecord)
                else parse(reader, record, name, self.origins[unit.file])
            )
            if isinstance(parsed, Document):
                size = len(parsed.text.encode())
                tally.documents += 1
                tally.bytes_in += size
                documents.append((parsed, size))
            elif isinstance(parsed, PassedOver):
                tally.passed_over[parsed.reason] += 1
            else:
                tally.bad[parsed.reason] += 1
                tally.sample(f"bad: {parsed.reason}", Sample(str(parsed.place)))
        return documents


def _apply(
    stage: CountingStage,
    documents: list[tuple[Document, int]],
    tally: Tally,
    private: PrivateData | None,
) -> list[tuple[Document, int]]:
    kept = []
    counts: Counter[str] = Counter()
    for document, size in documents:
        result, changes = stage.counted(document)
        if changes:
            counts.update(changes)
        if isinstance(result, Dropped):
            tally.drop(result.reason, size)
            if tally.wants_sample(result.reason):
                tally.sample(result.reason, sample_of(document, result.detail, private))
        elif result.text is document.text:
            kept.append((result, size))
        else:
            after = len(result.text.encode())
            tally.changed_bytes[stage.name] += size - after
            kept.append((result, after))
    if counts:
        tally.changes.setdefault(stage.name, Counter()).update(counts)
    return kept


def sample_of(document: Document, detail: str, private: PrivateData | None) -> Sample:
    """The beginning of a document, for the report: without what must not stand there either."""
    text = document.text[:_SAMPLE_CHARACTERS]
    if private is not None:
        text, detail = private.replaced(text, {}), private.replaced(detail, {})
    return Sample(str(document.place), detail[:_SAMPLE_CHARACTERS], text)


def _line(document: Document) -> bytes:
    return orjson.dumps(
        {
            "text": document.text,
            "id": document.id,
            "source": document.source,
            "license": document.license,
            "place": str(document.place),
            "meta": dict(document.meta),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def read_unit(folder: Path) -> DoneUnit:
    """What ``UnitWorker.work`` wrote.

    Raises:
        DataError: it is none.
    """
    return _facts(
        folder,
        lambda facts: DoneUnit(
            folder=folder,
            file=facts["file"],
            first=facts["first"],
            end=facts["end"],
            is_last=facts["is_last"],
            start=Start(*facts["start"]),
            documents=facts["documents"],
            seconds=facts["seconds"],
            peak_bytes=facts["peak_bytes"],
        ),
    )


def _facts(folder: Path, take: Callable[[dict[str, Any]], T]) -> T:
    try:
        return take(json.loads((folder / _FACTS_FILE).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{folder}' cannot be read ({error}). Delete it, and run again."
        ) from error


def text_sizes(folder: Path) -> Any:
    """Bytes of the text of each document of a unit. uint64 ``[n]``."""
    return np.load(folder / _SIZES_FILE, mmap_mode="r", allow_pickle=False)


def document_lines(folder: Path, numbers: Any) -> Iterator[bytes]:
    """The lines of some documents of a unit, by their ascending numbers in it."""
    ends = np.load(folder / _LINES_FILE, mmap_mode="r", allow_pickle=False)
    with (folder / DOCUMENTS_FILE).open("rb") as file:
        place = 0
        for number in numbers:
            begin = int(ends[number - 1]) if number else 0
            if begin != place:
                file.seek(begin)
            place = int(ends[number])
            yield file.read(place - begin)


@final
class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.thread_time()

    def note(self, name: str) -> None:
        now = time.thread_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
