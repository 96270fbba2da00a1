"""An instance's memory, as one call of a function of this machine may use it."""

import struct
from typing import Any, Final, final

from . import files
from .files import RefusedError

MOST_AT_ONCE: Final = 1 << 20
_MOST_BUFFERS: Final = 1024
_LONGEST_PATH: Final = 4096

Caller = Any
"""Who calls a function, as wasmtime tells it."""


def encoded(name: str) -> bytes:
    """A name as an instance has it."""
    return name.encode("utf-8", "surrogateescape")


@final
class Memory:
    """The instance's memory during one call; numbers that lead out of it are refused."""

    def __init__(self, memory: Any, caller: Caller) -> None:
        self._memory, self._caller = memory, caller

    def check(self, where: int, size: int) -> None:
        """Refuse a range that is not all memory.

        Raises:
            RefusedError: it leads out of it.
        """
        if where + size > self._memory.data_len(self._caller):
            raise RefusedError(files.FAULT)

    def read(self, where: int, size: int) -> bytes:
        """A copy of a range; see ``check``."""
        self.check(where, size)
        return bytes(self._memory.read(self._caller, where, where + size))

    def write(self, where: int, content: bytes) -> None:
        """Put bytes there; see ``check``."""
        self.check(where, len(content))
        if content:
            self._memory.write(self._caller, bytearray(content), where)

    def write_number(self, where: int, number: int) -> None:
        """Put 32 bits there; see ``check``."""
        self.write(where, struct.pack("<I", number))

    def path(self, where: int, length: int) -> str:
        """A path that is given by place and length."""
        if length > _LONGEST_PATH:
            raise RefusedError(files.NAME_TOO_LONG)
        content = self.read(where, length)
        if b"\0" in content:
            raise RefusedError(files.INVALID)
        return content.decode("utf-8", "surrogateescape")

    def buffers(self, where: int, count: int) -> list[tuple[int, int]]:
        """Places and sizes of buffers; not of all, if they are large."""
        if count > _MOST_BUFFERS:
            raise RefusedError(files.INVALID)
        places, left = [], MOST_AT_ONCE
        for place, size in struct.iter_unpack("<II", self.read(where, count * 8)):
            self.check(place, size)
            places.append((place, min(size, left)))
            left -= min(size, left)
        return places

    def gather(self, places: list[tuple[int, int]]) -> bytes:
        """What several buffers hold, joined."""
        return b"".join(self.read(place, size) for place, size in places)

    def scatter(self, places: list[tuple[int, int]], content: bytes) -> None:
        """Fill buffers, one after the other, as far as the content goes."""
        for place, size in places:
            part, content = content[:size], content[size:]
            self.write(place, part)

    def write_texts(self, texts: list[str], places: int, where: int) -> None:
        """Put texts there, each ended by a zero, and where each begins into a table."""
        for number, text in enumerate(texts):
            ended = encoded(text) + b"\0"
            self.write_number(places + 4 * number, where)
            self.write(where, ended)
            where += len(ended)

    def write_sizes(self, texts: list[str], count: int, size: int) -> None:
        """Put there how many texts there are, and how many bytes ``write_texts`` writes."""
        self.write_number(count, len(texts))
        self.write_number(size, sum(len(encoded(text)) + 1 for text in texts))
