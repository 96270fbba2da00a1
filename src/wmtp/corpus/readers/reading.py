"""Reading a file of a known format: what it has as documents, and what is wrong with it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from wmtp.corpus.document import BadRecord, Place
from wmtp.corpus.readers.reader import (
    DamagedFileError,
    Origin,
    Parsed,
    RawFile,
    RawRecord,
    Reader,
    Start,
    UnreadableError,
)


def read(
    reader: Reader, path: Path, name: str, origin: Origin, start_record: int = 0
) -> Iterator[Parsed]:
    """Everything in a file, in order: documents, what is passed over, and bad records.

    Args:
        reader: of the file's format.
        path: of the file.
        name: as places give it.
        origin: of its documents.
        start_record: number of the first record that is wanted.

    Raises:
        DataError: the file cannot be opened, or its disk fails.
    """
    for record in cut_records(reader, RawFile(path), name, Start(start_record)):
        yield record if isinstance(record, BadRecord) else parse(reader, record, name, origin)


def cut_records(
    reader: Reader, file: RawFile, name: str, start: Start
) -> Iterator[RawRecord | BadRecord]:
    """The records of a file; where it is damaged one bad record says so, and is the last.

    Raises:
        DataError: the file cannot be opened, or its disk fails.
    """
    number = start.record
    try:
        for record in reader.records(file, start):
            if isinstance(record, BadRecord):
                number = record.place.record + 1
                yield replace(record, place=Place(name, record.place.record))
            else:
                number = record.number + 1
                yield record
    except DamagedFileError as error:
        yield BadRecord(Place(name, number), f"file ends here: {error}")


def parse(reader: Reader, record: RawRecord, name: str, origin: Origin) -> Parsed:
    """What a record turns out to be."""
    place = Place(name, record.number)
    try:
        return reader.document(record, place, origin)
    except UnreadableError as error:
        return BadRecord(place, str(error))
