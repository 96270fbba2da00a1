"""What readers give and stages take: one document, or a record that could not be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands.

    Attributes:
        file: as the list of sources names it, so that it is the same on every machine.
        record: number of the record in the file, from 0.
    """

    file: str
    record: int

    def __str__(self) -> str:
        return f"{self.file}:{self.record}"


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and where it came from.

    Attributes:
        id: names it within its source, the same in every run.
        text: as the reader gives it; stages may replace it.
        source: name in the list of sources.
        license: of the source, carried to the end.
        place: of its record.
        meta: small facts that the format has, such as a title.
    """

    id: str
    text: str
    source: str
    license: str
    place: Place
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be read.

    Attributes:
        place: of the record.
        reason: why, in a few words that are the same for all records with this fault.
    """

    place: Place
    reason: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a stage gives instead of a document that is not kept.

    Attributes:
        reason: counted under this name in the report; lower case with underscores.
        detail: of this document, for the sample in the report.
    """

    reason: str
    detail: str = ""


class Stage(Protocol):
    """A pure function of one document: the same answer in every process and order.

    Attributes:
        name: in the report.
    """

    name: str

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, perhaps with another text, or why it is dropped."""
        ...
