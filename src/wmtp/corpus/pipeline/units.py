"""A unit of work: records that are cut by who reads, and made into documents by who works."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, final

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
_MOST_FILES: Final = 10_000
_SAMPLE_CHARACTERS: Final = 120

T = TypeVar("T")

Position: TypeAlias = tuple[int, int]
"""Place of a file in the plan, and number of a record in it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Records of one source that are worked on together: of a part of a file, or of several files.

    Attributes:
        source: place of their source in the plan.
        file: place in the plan of the file in which the first record is.
        first: number of the first record.
        end_file: place of the file in which the next unit begins; of the next source if this unit
            ends the source.
        end: number of that unit's first record.
        start: where in that file reading may go on: at ``end`` or before.
        parts: name of each file, and its records that are to be made into documents.
    """

    source: int
    file: int
    first: int
    end_file: int
    end: int
    start: Start
    parts: tuple[tuple[str, tuple[RawRecord | BadRecord, ...]], ...]

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
        file: and all below but the folder as of ``Unit``.
    """

    folder: Path
    file: int
    first: int
    end_file: int
    end: int
    start: Start
    documents: int
    seconds: Mapping[str, float]
    peak_bytes: int

    @property
    def behind(self) -> Position:
        """Where the next unit begins."""
        return self.end_file, self.end

    def tally(self) -> Tally:
        """What became of its records: read when it is asked for, as there may be many units.

        Raises:
            DataError: it cannot be read.
        """
        return _facts(self.folder, lambda facts: Tally.from_json(facts["tally"]))


def unit_name(file: int, first: int) -> str:
    """Of a unit's folder."""
    return f"{file:07d}-{first:012d}"


def cut_units(
    reader: Reader,
    source: int,
    files: Sequence[tuple[int, str, Path]],
    unit_bytes: int,
    done: Mapping[Position, DoneUnit],
    opened: Callable[[int, RawFile], None],
) -> Iterator[Unit]:
    """The units of a source that are not done, in order.

    Small files share a unit. Where a unit begins depends on the records before it in the source
    and on nothing else.

    Args:
        reader: of the source's format.
        source: its place in the plan.
        files: of the source: place in the plan, name in places, path.
        unit_bytes: of records, about.
        done: units that are on disk, by their first record.
        opened: is told which file is read from now on.

    Raises:
        DataError: a file cannot be read.
    """

    def behind(position: Position, start: Start) -> tuple[Position, Start]:
        while (unit := done.get(position)) is not None:
            position, start = unit.behind, unit.start
        return position, start

    parts: list[tuple[str, tuple[RawRecord | BadRecord, ...]]] = []
    size = count = 0
    begin, start = behind((files[0][0], 0), Start())
    for place, name, path in files:
        if place < begin[0]:
            continue
        if place > begin[0]:
            start = Start()
        raw = RawFile(path)
        opened(place, raw)
        records: list[RawRecord | BadRecord] = []
        for record in cut_records(reader, raw, name, start):
            here = place, _number(record)
            if here < begin:
                continue
            is_full = size >= unit_bytes or count == _MOST_RECORDS
            if is_full or (here != begin and here in done):
                yield Unit(source, *begin, *here, start, (*parts, (name, tuple(records))))
                parts, records, size, count = [], [], 0, 0
                begin, start = behind(here, start)
                if begin[0] > place:
                    break
                if here < begin:
                    continue
            if isinstance(record, RawRecord):
                size += record.size
                if record.start is not None:
                    start = record.start
            records.append(record)
            count += 1
        if begin[0] > place:
            continue
        parts.append((name, tuple(records)))
        after = place + 1, 0
        is_last = place == files[-1][0]
        if is_last or size >= unit_bytes or len(parts) == _MOST_FILES or after in done:
            yield Unit(source, *begin, *after, Start(), tuple(parts))
            parts, size, count = [], 0, 0
            begin, start = behind(after, Start())


def _number(record: RawRecord | BadRecord) -> int:
    return record.number if isinstance(record, RawRecord) else record.place.record


@final
@dataclass(frozen=True)
class UnitWorker:
    """Makes documents of records, and writes what is left of them.

    Attributes:
        out: folder of the corpus.
        readers: of the sources in the plan.
        origins: of the sources in the plan.
        stages: that a document goes through.
        shape: of signatures.
    """

    out: Path
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
                "end_file": unit.end_file,
                "end": unit.end,
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
        reader, origin = self.readers[unit.source], self.origins[unit.source]
        documents = []
        for name, record in ((name, record) for name, part in unit.parts for record in part):
            parsed = (
                record if isinstance(record, BadRecord) else parse(reader, record, name, origin)
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
            end_file=facts["end_file"],
            end=facts["end"],
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
