"""A JSON file of any size, cut into the elements of one of its arrays.

Only brackets and quotes are looked at, a piece of the file at a time; each element is parsed by
itself. So memory is bounded by one element, a broken one costs nothing but itself, and nothing
that is nested deeper than a parser bears ever meets a parser.
"""

import re
from collections.abc import Iterator
from typing import IO, Any, Final, final

import numpy as np
import orjson
from numpy.typing import NDArray

from wmtp.corpus.document import BadRecord
from wmtp.corpus.readers.files import CHUNK_BYTES
from wmtp.corpus.readers.reader import (
    LONGEST_RECORD_BYTES,
    DamagedFileError,
    RawRecord,
    Start,
    UnreadableError,
    too_long,
)

_ESCAPED = re.compile(rb'\\["\\]')
_KEY_BEFORE = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*\Z')
_LONGEST_KEY: Final = 512
_ARRAY: Final = ord("[")
_STEP = np.zeros(256, dtype=np.int8)
_STEP[[ord("{"), ord("[")]] = 1
_STEP[[ord("}"), ord("]")]] = -1


def parse_json(content: bytes) -> Any:
    """The value that bytes hold.

    Raises:
        UnreadableError: they are not JSON, or nested some 1,000 levels deep.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UnreadableError("not JSON") from error


def cut_array(
    stream: IO[bytes], steps: tuple[str, ...], start: Start, offset: int | None
) -> Iterator[RawRecord | BadRecord]:
    """The objects (or arrays) that are the elements of the array at a path, as bytes.

    Args:
        stream: of the file; begins at ``start.offset``.
        steps: keys from the outermost value to the array, and ``[]``.
        start: the first record that is wanted.
        offset: where in the file the stream stands, None where it is compressed: then no record
            can be started with.

    Raises:
        DamagedFileError: the file ends inside a value, or there is no such array.
    """
    cutter = _Cutter(steps, start, offset or 0)
    while chunk := stream.read(CHUNK_BYTES):
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:  # what it escapes belongs to it
            chunk += stream.read(1)
        for begin, record in cutter.cut(chunk):
            number = cutter.number
            cutter.number += 1
            if number < start.record:
                continue
            if record is None:
                yield too_long(number)
            else:
                again = Start(number, begin) if offset is not None else None
                yield RawRecord(number, record, len(record), again)
    cutter.check_end()


@final
class _Cutter:
    """How far a file has been understood: open brackets, and the element that has begun."""

    def __init__(self, steps: tuple[str, ...], start: Start, offset: int) -> None:
        self._names = steps[:-1]
        self._array_level = len(steps)
        resumed = start.offset > 0
        self.number = start.record if resumed else 0
        self._level = self._matched = self._array_level if resumed else 0
        self._in_string = False
        self._found = resumed
        # what is kept of the file, and where in the file that begins
        self._kept, self._offset = bytearray(), offset
        self._begun: int | None = None
        self._is_too_long = False

    def cut(self, chunk: bytes) -> Iterator[tuple[int, bytes | None]]:
        """Byte of the file, and content, of each element that ends in the chunk."""
        before = self._level
        places, levels = self._brackets(chunk)
        places += len(self._kept)
        self._kept += chunk
        levels_before = np.append(before, levels[:-1])
        shallow = np.flatnonzero(np.maximum(levels, levels_before) <= self._array_level + 1)
        for i in shallow.tolist():
            place, level, was = int(places[i]), int(levels[i]), int(levels_before[i])
            if level > was:
                self._open(place, level)
                continue
            self._matched = min(self._matched, level)
            if level == self._array_level and self._begun is not None:
                content = None if self._is_too_long else bytes(self._kept[self._begun : place + 1])
                yield self._offset + self._begun, content
                self._begun, self._is_too_long = None, False
        self._forget()

    def check_end(self) -> None:
        """Refuse an end of the file that is none of its JSON.

        Raises:
            DamagedFileError: a bracket or string is open, or no such array was there.
        """
        if self._level > 0 or self._in_string:
            raise DamagedFileError("JSON ends early")
        if not self._found:
            path = ".".join((*self._names, "")).rstrip(".") + "[]"
            raise DamagedFileError(f"no array at {path}")

    def _open(self, place: int, level: int) -> None:
        if level == 1:
            self._matched = 1 if self._array_level > 1 or self._kept[place] == _ARRAY else 0
        elif level <= self._array_level and self._matched == level - 1:
            key = _KEY_BEFORE.search(bytes(self._kept[max(0, place - _LONGEST_KEY) : place]))
            is_array = self._kept[place] == _ARRAY
            if key and _name(key[1]) == self._names[level - 2]:
                self._matched = level if is_array or level < self._array_level else level - 1
        elif level == self._array_level + 1 and self._matched == self._array_level:
            self._begun = place
        self._found = self._found or self._matched == self._array_level

    def _brackets(self, chunk: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of brackets that are not in strings, and the level that each leads to."""
        plain = _ESCAPED.sub(b"__", chunk) if b"\\" in chunk else chunk
        characters = np.frombuffer(plain, dtype=np.uint8)
        quotes = np.flatnonzero(characters == ord('"'))
        steps = _STEP[characters]
        places = np.flatnonzero(steps)
        outside = (np.searchsorted(quotes, places) + self._in_string) % 2 == 0
        places = places[outside]
        levels = self._level + np.cumsum(steps[places], dtype=np.int64)
        self._in_string = bool((len(quotes) + self._in_string) % 2)
        if levels.size:
            self._level = int(levels[-1])
            if int(levels.min()) < 0:
                raise DamagedFileError("not JSON")
        return places, levels

    def _forget(self) -> None:
        """Let go of what is done with: all before the element that has begun, or a key's length."""
        if self._begun is not None and len(self._kept) - self._begun > LONGEST_RECORD_BYTES:
            self._is_too_long = True
        if self._begun is None or self._is_too_long:
            done = max(0, len(self._kept) - _LONGEST_KEY)
        else:
            done = self._begun
        del self._kept[:done]
        self._offset += done
        if self._begun is not None:
            self._begun -= done


def _name(key: bytes) -> str:
    try:
        return str(orjson.loads(b'"' + key + b'"'))
    except orjson.JSONDecodeError:
        return ""
