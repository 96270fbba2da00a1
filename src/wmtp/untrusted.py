"""Files that somebody else may have made: read within bounds, or not at all.

A pipe would make a reader wait for ever, a device has no end, and a sparse file of terabytes or a
header that promises them costs its maker nothing. All that is opened here is an ordinary file of
a size that its kind can have. What is in it is judged by who asked for it.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, Final

LARGEST_JSON: Final = 64 * 1024**2
"""Configs, indexes, manifests and tokenizers; the largest tokenizers in use have 35 MB."""

LARGEST_TENSOR_HEADER: Final = 16 * 1024**2
"""Names and shapes of about 100,000 tensors."""


def printable(line: str) -> str:
    r"""The line with what a terminal would obey, or no encoding can take, written out.

    Example:
        >>> printable("a\x1b[2J.py")
        'a\\x1b[2J.py'
    """
    if line.isprintable():
        return line
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line
    )


def open_ordinary(path: Path) -> int:
    """Open an ordinary file for reading, or a link to one; gives its descriptor.

    Raises:
        OSError: it is absent, or a folder, a pipe, a socket or a device.
    """
    # without O_NONBLOCK a pipe that nobody writes to would be waited for in open() itself
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Not an ordinary file", str(path))


def check_ordinary(path: Path) -> None:
    """Refuse what ``open_ordinary`` refuses, before a library opens it by its name.

    Raises:
        OSError: see there.
    """
    os.close(open_ordinary(path))


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of an ordinary file.

    Raises:
        OSError: it cannot be opened or read, or is larger than ``most_bytes``.
    """
    with os.fdopen(open_ordinary(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most_bytes else file.read(most_bytes + 1)
    size = max(size, len(content))
    if size > most_bytes:
        raise OSError(errno.EFBIG, f"{size} bytes, of which at most {most_bytes} are read")
    return content


def read_json(path: Path, most_bytes: int = LARGEST_JSON) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: see ``read_bounded``.
        ValueError: it is not UTF-8, not JSON, or nested too deeply.
    """
    try:
        return json.loads(read_bounded(path, most_bytes).decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_tensor_file(path: Path) -> None:
    """Refuse a file whose first bytes cannot be those of safetensors, before it is opened as such.

    Raises:
        OSError: it is no ordinary file.
        ValueError: its header is longer than the file, or than any that is read.
    """
    with os.fdopen(open_ordinary(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"its header has {length} bytes, the file {size}")
    if length > LARGEST_TENSOR_HEADER:
        raise ValueError(f"its header has {length} bytes, more than {LARGEST_TENSOR_HEADER}")
