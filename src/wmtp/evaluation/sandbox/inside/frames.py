"""Messages between processes: a length and JSON, never anything that could run when it is read."""

import json
import os
import struct
from collections.abc import Callable
from typing import Any, Final, final

MOST_BYTES: Final = 64 << 20
_LENGTH: Final = struct.Struct("<Q")
_PIECE: Final = 1 << 20
_SENT_AT_ONCE: Final = 1 << 16
REQUEST: Final = struct.Struct("<dd")
"""What a fork server is told of a job: its processor seconds and those by the clock."""


class Ended(BaseException):
    """The other process is no more; no ``except Exception`` of tests may take this for less."""


class MalformedMessageError(Exception):
    """The other process sent what is no message."""


@final
class Channel:
    """Sends and receives messages through two functions that work like os.read and os.write.

    Attributes:
        ended: whether the other end was found closed.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        write: Callable[[memoryview], int],
        most: int = MOST_BYTES,
    ) -> None:
        self._read, self._write, self._most = read, write, most
        self.ended = False

    @classmethod
    def of(cls, reading: int, writing: int | None = None, most: int = MOST_BYTES) -> "Channel":
        """Over descriptors; one of a socket serves for both ways."""
        out = reading if writing is None else writing
        return cls(lambda count: os.read(reading, count), lambda view: os.write(out, view), most)

    def send(self, message: object) -> None:
        """Send a message.

        Raises:
            Ended: nobody is left to receive it.
            MemoryError: it is larger than any that is received.
        """
        self.send_bytes(json.dumps(message, separators=(",", ":")).encode("ascii"))

    def send_bytes(self, content: bytes) -> None:
        """Send a message that is no JSON; see ``send``."""
        if len(content) > self._most:
            raise MemoryError(f"a message of {len(content)} bytes; {self._most} are the most")
        try:
            length = _LENGTH.pack(len(content))
            # in one piece where it is small: else its reader is woken twice
            parts = (length + content,) if len(content) < _SENT_AT_ONCE else (length, content)
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[self._write(view) :]
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True
            raise Ended from None

    def receive(self) -> Any:
        """The next message.

        Raises:
            Ended: there is none, or only a part of one.
            MalformedMessageError: it is no JSON, or longer than any.
        """
        try:
            return json.loads(self.receive_bytes())
        except (ValueError, RecursionError) as error:
            raise MalformedMessageError(str(error)[:200]) from error

    def receive_bytes(self) -> bytes:
        """The next message, which may be no JSON; see ``receive``."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > self._most:
            raise MalformedMessageError(f"{length} bytes; {self._most} are the most")
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._read(min(_PIECE, count - len(parts)))
            except ConnectionResetError:
                part = b""
            if not part:
                self.ended = True
                raise Ended
            parts += part
        return bytes(parts)
