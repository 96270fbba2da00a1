"""Raw files as streams of bytes: decompressed by what they are, whatever they are called."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, final

import zstandard

from wmtp.corpus.readers.reader import LONGEST_RECORD_BYTES, DamagedFileError, RawFile
from wmtp.errors import DataError
from wmtp.untrusted import check_ordinary

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES: Final = 1 << 18
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_ZIP: Final = b"PK\x03\x04"
_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def compression_of(path: Path) -> str | None:
    """``gzip``, ``xz``, ``bzip2``, ``zstd``, or None for a file that begins with none of them.

    Raises:
        DataError: the file cannot be opened, or is a zip archive.
    """
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise DataError(f"data file '{path}' cannot be read: {error.strerror or error}.") from error
    if start.startswith(_ZIP):
        raise DataError(f"data file '{path}' is a zip archive. Unpack it, and name what is in it.")
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


@contextmanager
def open_stream(file: RawFile) -> Iterator[IO[bytes]]:
    """Open a file, decompressing gzip, xz, bzip2 and zstd as it is read, without its BOM.

    Raises:
        DataError: the file cannot be opened, or its disk fails.
        DamagedFileError: inside the block, where its compressed data are broken or end early.
    """
    kind = compression_of(file.path)
    with (
        failures_told(file.path),
        CountedFile(file) as counted,
        io.BufferedReader(counted, CHUNK_BYTES) as buffered,
        _decompressed(buffered, kind) as stream,
    ):
        if stream.peek(3).startswith(_BYTE_ORDER_MARK):
            stream.read(3)
        yield stream


@contextmanager
def failures_told(path: Path) -> Iterator[None]:
    """Tell broken compression from a broken disk.

    Raises:
        DataError: the disk fails.
        DamagedFileError: the compressed data are broken or end early.
    """
    try:
        yield
    except EOFError as error:
        raise DamagedFileError("compressed data end early") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DamagedFileError("compressed data are damaged") from error
    except OSError as error:
        if error.errno is None:  # bz2 says so of broken data
            raise DamagedFileError("compressed data are damaged") from error
        raise DataError(f"data file '{path}' cannot be read: {error.strerror}.") from error


def lines_of(stream: IO[bytes], number: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
    """Number, byte at which it begins, and content of each line; None for one too long to hold."""
    offset = stream.tell() if stream.seekable() else 0
    while line := stream.readline(LONGEST_RECORD_BYTES + 1):
        length = len(line)
        held: bytes | None = line
        if length > LONGEST_RECORD_BYTES:
            held = None
            while line and not line.endswith(b"\n"):
                line = stream.readline(CHUNK_BYTES)
                length += len(line)
        yield number, offset, held
        number += 1
        offset += length


@final
class CountedFile(io.FileIO):
    """A file on disk that tells how far it has been read."""

    def __init__(self, file: RawFile) -> None:
        super().__init__(file.path, "rb")
        self._counted = file

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        """As of every file, and count."""
        count = super().readinto(buffer)
        self._counted.consumed = self.tell()
        return count


def _decompressed(file: "io.BufferedReader[Any]", kind: str | None) -> "io.BufferedReader[Any]":
    if kind is None:
        return file
    if kind == "zstd":
        return io.BufferedReader(_ZstdFile(file), CHUNK_BYTES)
    if kind == "gzip":
        return io.BufferedReader(_Pieces(gzip.GzipFile(fileobj=file)), CHUNK_BYTES)
    if kind == "xz":
        return io.BufferedReader(_Pieces(lzma.LZMAFile(file)), CHUNK_BYTES)
    return io.BufferedReader(_Pieces(bz2.BZ2File(file)), CHUNK_BYTES)


@final
class _Pieces(io.RawIOBase):
    """Gives what has been decompressed before more is: what comes before a damage is not lost."""

    def __init__(self, file: gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read1(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@final
class _ZstdFile(io.RawIOBase):
    """Frames of zstd one after the other; the library's own reader takes a cut frame for an end."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._rest = b""
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        while not self._rest:
            if self._frame.eof:
                data, self._begun = self._frame.unused_data, False
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            else:
                data = b""
            # small pieces: what comes out of one is held as a whole
            data = data or self._file.read(1 << 14)
            if not data:
                if self._begun:
                    raise EOFError
                return 0
            self._begun = True
            self._rest = self._frame.decompress(data)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
