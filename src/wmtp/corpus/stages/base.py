"""What all stages have in common: they say what they did to a document, in numbers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Protocol, TypeAlias

from wmtp.corpus.document import Document, Dropped

Counts: TypeAlias = Mapping[str, int]

NOTHING: Counts = MappingProxyType({})


class CountingStage(Protocol):
    """A stage that also counts what it changed; every stage of this folder is one.

    A stage is a frozen dataclass: its fields are its settings, so that it can be pickled,
    compared and written into a list of sources.

    Attributes:
        name: in the report.
    """

    name: ClassVar[str]

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, perhaps with another text, or why it is dropped."""
        ...

    def counted(self, document: Document) -> tuple[Document | Dropped, Counts]:
        """The same, and what was changed in the text: numbers by name, summed in the report."""
        ...
