"""What is left of a corpus, in compressed files of a fixed size: the same bytes whenever made."""

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from wmtp.corpus.pipeline.selection import Selection
from wmtp.corpus.pipeline.units import DoneUnit, document_lines, text_sizes
from wmtp.runtime.durable import storage_errors, temporary_name, whole_file

Side = Literal["train", "validation"]
SIDES: Final[tuple[Side, ...]] = ("train", "validation")
_LEVEL: Final = 6


@dataclass(frozen=True, slots=True, eq=False)
class FileTask:
    """A file that is to be written.

    Attributes:
        name: of the file.
        side: of the split.
        pieces: folders of units, and the ascending numbers in each of the documents that go in.
        documents: in all.
        text_bytes: of their texts.
    """

    name: str
    side: Side
    pieces: tuple[tuple[Path, NDArray[np.intp]], ...]
    documents: int
    text_bytes: int


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of the corpus.

    Attributes:
        name: of the file.
        side: of the split.
        documents: in it.
        text_bytes: of their texts, UTF-8.
        size: of the file, bytes.
        sha256: of the file.
    """

    name: str
    side: Side
    documents: int
    text_bytes: int
    size: int
    sha256: str


def file_tasks(
    units: Sequence[DoneUnit], selection: Selection, side: Side, most_bytes: int
) -> Iterator[FileTask]:
    """The files of one side of the split: each begins where the one before has its bytes of text.

    Args:
        units: in order.
        selection: of their documents.
        side: of the split.
        most_bytes: of text, after which a new file begins.
    """
    pieces: list[tuple[Path, NDArray[np.intp]]] = []
    number = count = size = first = 0
    before = 0  # bytes of text on this side, of all units before
    for unit in units:
        kept = selection.kept(first, first + unit.documents, side == "validation")
        first += unit.documents
        sizes = np.asarray(text_sizes(unit.folder))[kept].astype(np.int64)
        files = (before + np.cumsum(sizes) - sizes) // most_bytes
        before += int(sizes.sum())
        for file in np.unique(files):
            if int(file) > number and pieces:
                yield FileTask(_file_name(side, number), side, tuple(pieces), count, size)
                pieces, count, size = [], 0, 0
            number = int(file)
            inside = files == file
            pieces.append((unit.folder, kept[inside]))
            count += int(inside.sum())
            size += int(sizes[inside].sum())
    if pieces:
        yield FileTask(_file_name(side, number), side, tuple(pieces), count, size)


def write_file(folder: Path, task: FileTask) -> WrittenFile:
    """Write a file, unless it is there.

    Raises:
        StorageError: it could not be written; nothing of it is left.
    """
    path = folder / task.name
    with storage_errors(f"{path} could not be written"):
        if not path.is_file():
            temporary = temporary_name(path)
            with (
                whole_file(path, temporary),
                temporary.open("wb") as raw,
                # neither name nor time of a file stand in it
                gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as packed,
            ):
                for unit, numbers in task.pieces:
                    packed.writelines(document_lines(unit, numbers))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    return WrittenFile(task.name, task.side, task.documents, task.text_bytes, size, digest)


def _file_name(side: Side, number: int) -> str:
    return f"{side}-{number:05d}.jsonl.gz"
