"""What every reader gives, and what it is given."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from wmtp.corpus.document import BadRecord, Document, Place
from wmtp.data.text_files import LONGEST_LINE_BYTES

LONGEST_RECORD_BYTES: Final = LONGEST_LINE_BYTES
"""A record of a raw file that is larger is left out: every one is held in memory as a whole."""

BEGINNING: Final = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Where reading of a file may begin.

    Attributes:
        record: number of the record that comes next.
        offset: byte of the file, as it lies on disk, at which that record begins; 0 is the
            beginning of the file whatever ``record`` says, and the reader passes over the rest.
    """

    record: int = 0
    offset: int = BEGINNING


@dataclass(slots=True)
class RawFile:
    """A file that is being read.

    Attributes:
        path: of the file.
        consumed: bytes of it, as it lies on disk, that have been read.
    """

    path: Path
    consumed: int = 0


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record as it was cut out of its file, cheaply; ``Reader.document`` does the work.

    Attributes:
        number: of the record in its file, from 0.
        content: what ``document`` needs; goes from one process to another.
        size: bytes, about, by which work is shared out.
        start: where reading may begin anew with this record, None where it cannot.
    """

    number: int
    content: Any
    size: int
    start: Start | None = None


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A record that can be read but is no document, such as a redirect."""

    place: Place
    reason: str


Parsed = Document | BadRecord | PassedOver


@dataclass(frozen=True, slots=True)
class Origin:
    """The source that documents are of.

    Attributes:
        name: in the list of sources.
        license: carried along with every document.
    """

    name: str
    license: str


class DamagedFileError(Exception):
    """A file cannot be read any further; what came before is good."""


class UnreadableError(Exception):
    """A record is not what its format says; the text is the reason of the ``BadRecord``."""


class Reader(Protocol):
    """A format: how records are cut out of a file, and how a document is made of one.

    The first is done by one process, in order; the second, where the work is, by any.
    """

    def records(self, file: RawFile, start: Start) -> Iterator[RawRecord | BadRecord]:
        """The records from ``start.record`` on, in order; one that is too long is bad.

        A ``BadRecord`` that comes from here has the number of its record; its file's name is
        filled in by who knows it.

        Raises:
            DamagedFileError: the file ends early, or cannot be understood from here on.
        """
        ...

    def document(self, record: RawRecord, place: Place, origin: Origin) -> Parsed:
        """The document of a record: a pure function.

        Raises:
            UnreadableError: the record is not what the format says.
        """
        ...


def too_long(number: int) -> BadRecord:
    """A record over the limit, whose content was never held."""
    return BadRecord(Place("", number), f"record over {LONGEST_RECORD_BYTES >> 20} MiB")


def make_document(
    text: str,
    place: Place,
    origin: Origin,
    own_id: str | None = None,
    meta: dict[str, str] | None = None,
) -> Document:
    """A document, if there is text that can be written.

    Args:
        text: as the format has it.
        place: of its record; also its id where the format gives it none.
        origin: of its file.
        own_id: what the format calls it.
        meta: small facts; empty ones are left out.

    Raises:
        UnreadableError: the text is blank, or holds half of a surrogate pair.
    """
    if not text or text.isspace():
        raise UnreadableError("no text")
    facts = {key: value for key, value in (meta or {}).items() if value}
    for part in (text, *facts.values(), own_id or ""):
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise UnreadableError("lone surrogate") from error
    return Document(own_id or str(place), text, origin.name, origin.license, place, facts)
