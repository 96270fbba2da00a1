"""Lines and texts of files, compressed or not, in bounded memory."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, cast

from wmtp.data.documents import UnusableError
from wmtp.errors import DataError
from wmtp.untrusted import check_ordinary

_COMPRESSED = frozenset({".gz", ".xz"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed with gzip (name it .gz)",
    b"\xfd7zXZ\x00": "compressed with xz (name it .xz)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
}

BLOCK_BYTES = 2 * 1024**2
LONGEST_LINE_BYTES = 64 * 1024**2
LONGEST_TEXT_BYTES = 4 * 1024**3


def uncompressed_suffix(path: Path) -> str:
    """``.jsonl`` of ``a.jsonl`` and of ``a.jsonl.gz``, in lower case."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix


class LineBlock(NamedTuple):
    """Whole lines of a file, as they stand in it.

    Attributes:
        path: of the file.
        first: number of the first line, from 1.
        content: the lines; of one that is too long only its beginning.
        next: number of the line after the last one.
        end: where that one begins, in bytes of the uncompressed file.
    """

    path: str
    first: int
    content: bytes
    next: int
    end: int

    def lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Number and content of each line that is not blank; None for one too long to hold."""
        for number, line in enumerate(io.BytesIO(self.content), self.first):
            if len(line) > LONGEST_LINE_BYTES:
                yield number, None
                continue
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line and not line.isspace():
                yield number, line


def read_blocks(path: Path, offset: int = 0, first: int = 1) -> Iterator[LineBlock]:
    """A file in pieces of about 2 MiB, cut between lines: the same pieces wherever reading begins.

    Args:
        path: compressed or not.
        offset: where to begin: ``end`` of a block that was read before.
        first: number of the line there: ``next`` of that block.

    Raises:
        DataError: the file cannot be opened or decompressed.
    """
    with open_binary(path) as file:
        if uncompressed_suffix(path) == path.suffix.lower():
            _refuse_other_formats(path)
        file.seek(offset)
        while content := file.read(BLOCK_BYTES):
            if not content.endswith(b"\n"):
                tail = file.readline(LONGEST_LINE_BYTES + 1)
                content += tail
                while tail and not tail.endswith(b"\n"):  # too long, or the end of the file
                    tail = file.readline(LONGEST_LINE_BYTES)
            count = content.count(b"\n") + (not content.endswith(b"\n"))
            yield LineBlock(str(path), first, content, first + count, file.tell())
            first += count


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Number (from 1) and content of each line that is not blank; None for one too long to hold.

    Raises:
        DataError: the file cannot be opened or decompressed.
    """
    for block in read_blocks(path):
        yield from block.lines()


def _refuse_other_formats(path: Path) -> None:
    """Name a compressed or columnar file that is called otherwise, instead of all its lines."""
    with path.open("rb") as file:
        start = file.read(6)
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise DataError(f"data file '{path}' is {what}, not lines of text.")


def first_lines(path: Path, count: int) -> list[bytes]:
    """The first few lines that are neither blank nor too long."""
    return list(islice((line for _, line in read_lines(path) if line is not None), count))


def read_text(path: Path) -> str:
    """The whole text of a file.

    Raises:
        DataError: the file cannot be opened or decompressed.
        UnusableError: it is not UTF-8.
    """
    with open_binary(path) as file:
        content = file.read(LONGEST_TEXT_BYTES + 1)
    if len(content) > LONGEST_TEXT_BYTES:
        raise UnusableError("file over 4 GiB")
    try:
        return content.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnusableError("not valid UTF-8", f"byte {error.start + 1}") from error


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressing ``.gz`` and ``.xz`` as it is read.

    Raises:
        DataError: the file cannot be opened or decompressed, there or inside the block.
    """
    try:
        check_ordinary(path)
        with _open(path) as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"data file '{path}' cannot be decompressed: {error}.") from error
    except OSError as error:
        raise DataError(f"data file '{path}' cannot be read: {error.strerror or error}.") from error


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return lzma.open(path, "rb") if suffix == ".xz" else path.open("rb")
