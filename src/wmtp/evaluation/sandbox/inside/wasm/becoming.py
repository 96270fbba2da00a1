"""How a fork of the server leaves the server's code for the instance that it holds."""

from typing import Any, final


@final
class Becomes(BaseException):
    """Goes up through the server's own code, in a fork of it that goes on as an instance.

    Attributes:
        part: ``script``, ``program`` or ``tests``.
        source: of the program; None for the tests, which come over a stream.
        limits: as in a request.
        streams: descriptors for reading and for writing, by the names that the instance opens.
    """

    def __init__(
        self,
        part: str,
        source: str | None,
        limits: dict[str, Any],
        streams: dict[str, tuple[int | None, int | None]],
    ) -> None:
        super().__init__(part)
        self.part, self.source, self.limits, self.streams = part, source, limits, streams
