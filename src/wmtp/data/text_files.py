"""Lines and texts of files, compressed or not, in bounded memory."""

import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, cast

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

LONGEST_LINE_BYTES = 64 * 1024**2
LONGEST_TEXT_BYTES = 4 * 1024**3


def uncompressed_suffix(path: Path) -> str:
    """``.jsonl`` of ``a.jsonl`` and of ``a.jsonl.gz``, in lower case."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Number (from 1) and content of each line that is not blank; None for one too long to hold.

    Raises:
        DataError: the file cannot be opened or decompressed.
    """
    with open_binary(path) as file:
        number = 0
        if uncompressed_suffix(path) == path.suffix.lower():
            _refuse_other_formats(path)
        while line := file.readline(LONGEST_LINE_BYTES + 1):
            number += 1
            if len(line) > LONGEST_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE_BYTES)
                yield number, None
                continue
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                yield number, line


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
