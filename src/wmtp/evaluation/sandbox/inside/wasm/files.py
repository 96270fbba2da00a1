"""The files that a program in WebAssembly sees: a tree in memory of limited size."""

import itertools
import time
from collections.abc import Iterator
from typing import Final, final

# numbers of errors as WASI has them
BAD_DESCRIPTOR: Final = 8
EXISTS: Final = 20
FAULT: Final = 21
INVALID: Final = 28
INPUT_OUTPUT: Final = 29
IS_FOLDER: Final = 31
TOO_MANY_OPEN: Final = 33
NAME_TOO_LONG: Final = 37
NO_ENTRY: Final = 44
NO_SPACE: Final = 51
NOT_IMPLEMENTED: Final = 52
NOT_A_FOLDER: Final = 54
NOT_EMPTY: Final = 55
NOT_A_SOCKET: Final = 57
NOT_SUPPORTED: Final = 58
NOT_PERMITTED: Final = 63
BROKEN_PIPE: Final = 64
READ_ONLY: Final = 69
NOT_SEEKABLE: Final = 70

_LONGEST_NAME: Final = 255
_numbers = itertools.count(1)


class RefusedError(Exception):
    """What was asked for cannot be done; ``number`` says why, as WASI does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@final
class File:
    """Bytes with a name, or without one any more."""

    def __init__(self, content: bytes = b"", read_only: bool = False) -> None:
        self.number = next(_numbers)
        self.content = bytearray(content)
        self.read_only = read_only
        self.modified = time.time_ns()
        self.named, self.opened = True, 0


@final
class Stream:
    """A descriptor of this machine, for reading, writing or both; None is what it has not."""

    def __init__(self, reading: int | None, writing: int | None) -> None:
        self.number = next(_numbers)
        self.reading, self.writing = reading, writing


@final
class Device:
    """What is not a file, by its name.

    ``null``; ``zero``; ``random``; ``never``, which has nothing to read yet; ``processor_time``,
    nanoseconds in eight bytes.
    """

    def __init__(self, kind: str) -> None:
        self.number = next(_numbers)
        self.kind = kind


@final
class Folder:
    """Names and what they name."""

    def __init__(self, parent: "Folder | None" = None, writable: bool = False) -> None:
        self.number = next(_numbers)
        self.entries: dict[str, Node] = {}
        self.parent = parent or self
        self.writable = writable
        self.modified = time.time_ns()

    def below(self, name: str) -> "Folder":
        """A new folder in this one, for whoever sets up the tree."""
        folder = self.entries[name] = Folder(self)
        return folder


Node = File | Folder | Stream | Device


@final
class Tree:
    """All files of a program, and how much they may be.

    Attributes:
        root: of all paths; what is not ``writable`` cannot be changed.
        most_bytes: that files hold together, those that have lost their name included.
        most_files: files and folders together.
    """

    def __init__(self) -> None:
        self.root = Folder()
        self.most_bytes = self.most_files = 0
        self._bytes = self._files = 0

    def find(self, base: Folder, path: str) -> Node:
        """What a path names.

        Raises:
            RefusedError: nothing.
        """
        folder, name = self._place(base, path)
        if name is None:
            return folder
        node = folder.entries.get(name)
        if node is None:
            raise RefusedError(NO_ENTRY)
        if path.endswith("/") and not isinstance(node, Folder):
            raise RefusedError(NOT_A_FOLDER)
        return node

    def _place(self, base: Folder, path: str) -> tuple[Folder, str | None]:
        """The folder in which a path ends, and the name there; no name if it ends at a folder."""
        folder, name = self.root if path.startswith("/") else base, None
        for part in path.split("/"):
            if len(part) > _LONGEST_NAME:
                raise RefusedError(NAME_TOO_LONG)
            if part in ("", "."):
                continue
            if name is not None:
                folder, name = self._enter(folder, name), None
            if part == "..":
                folder = folder.parent
            else:
                name = part
        return folder, name

    def _enter(self, folder: Folder, name: str) -> Folder:
        node = folder.entries.get(name)
        if node is None:
            raise RefusedError(NO_ENTRY)
        if not isinstance(node, Folder):
            raise RefusedError(NOT_A_FOLDER)
        return node

    def _new(self, base: Folder, path: str) -> tuple[Folder, str]:
        folder, name = self._place(base, path)
        if name is None or name in folder.entries:
            raise RefusedError(EXISTS)
        if not folder.writable:
            raise RefusedError(READ_ONLY)
        if self._files >= self.most_files:
            raise RefusedError(NO_SPACE)
        return folder, name

    def make_file(self, base: Folder, path: str) -> File:
        """A new, empty file."""
        folder, name = self._new(base, path)
        file = folder.entries[name] = File()
        self._files += 1
        folder.modified = time.time_ns()
        return file

    def make_folder(self, base: Folder, path: str) -> None:
        """A new, empty folder."""
        folder, name = self._new(base, path)
        folder.entries[name] = Folder(folder, writable=True)
        self._files += 1
        folder.modified = time.time_ns()

    def remove(self, base: Folder, path: str, folders: bool) -> None:
        """Take a name away, from an empty folder or from something that is none."""
        node = self.find(base, path)
        folder, name = self._place(base, path)
        if isinstance(node, Folder):
            if not folders:
                raise RefusedError(IS_FOLDER)
            if node.entries:
                raise RefusedError(NOT_EMPTY)
        elif folders:
            raise RefusedError(NOT_A_FOLDER)
        if name is None or not folder.writable:
            raise RefusedError(READ_ONLY)
        self._unname(folder, name)

    def _unname(self, folder: Folder, name: str) -> None:
        node = folder.entries.pop(name)
        folder.modified = time.time_ns()
        self._files -= 1
        if isinstance(node, File):
            node.named = False
            self.let_go(node)

    def rename(self, base: Folder, path: str, new_base: Folder, new_path: str) -> None:
        """Give a file or a folder another name, in place of an empty one that has it."""
        node = self.find(base, path)
        folder, name = self._place(base, path)
        new_folder, new_name = self._place(new_base, new_path)
        if name is None or new_name is None:
            raise RefusedError(INVALID)
        if not folder.writable or not new_folder.writable:
            raise RefusedError(READ_ONLY)
        if any(node is folder for folder in _up_from(new_folder)):
            raise RefusedError(INVALID)
        there = new_folder.entries.get(new_name)
        if there is node:
            return
        if there is not None:
            self.remove(new_base, new_path, folders=isinstance(node, Folder))
        del folder.entries[name]
        new_folder.entries[new_name] = node
        if isinstance(node, Folder):
            node.parent = new_folder
        folder.modified = new_folder.modified = time.time_ns()

    def resize(self, file: File, size: int) -> None:
        """Cut a file off, or fill it up with zeros.

        Raises:
            RefusedError: all files together would be larger than they may.
        """
        more = size - len(file.content)
        if self._bytes + more > self.most_bytes:
            raise RefusedError(NO_SPACE)
        if more > 0:
            file.content.extend(bytes(more))
        else:
            del file.content[size:]
        self._bytes += more
        file.modified = time.time_ns()

    def write(self, file: File, position: int, content: bytes) -> None:
        """Put bytes into a file; see ``resize``."""
        end = position + len(content)
        if end > len(file.content):
            self.resize(file, end)
        file.content[position:end] = content
        file.modified = time.time_ns()

    def let_go(self, file: File) -> None:
        """Forget the content of a file that has no name and is not open any more."""
        if not file.named and not file.opened:
            self._bytes -= len(file.content)
            file.content = bytearray()


def _up_from(folder: Folder) -> Iterator[Folder]:
    yield folder
    while folder.parent is not folder:
        folder = folder.parent
        yield folder
