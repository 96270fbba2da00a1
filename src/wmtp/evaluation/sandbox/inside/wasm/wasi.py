"""What an instance can ask of this machine: WASI preview 1 over files in memory and a few streams.

Every number and every address comes from a program that nobody has read. Addresses are checked
against the instance's memory, what is taken at once is bounded, and no path is ever given to the
system.

Source:
    https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md
"""

import contextlib
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Any, Final, final

from . import files
from .files import Device, File, Folder, Node, RefusedError, Stream, Tree
from .memory import MOST_AT_ONCE, Caller, Memory, encoded

_CREATE: Final = 1
_FOLDER_ONLY: Final = 2
_EXCLUSIVE: Final = 4
_EMPTY_IT: Final = 8
_APPEND: Final = 1
_MAY_READ: Final = 1 << 1
_MAY_WRITE: Final = 1 << 6
_ALL_RIGHTS: Final = (1 << 29) - 1
_CHARACTER_DEVICE, _FOLDER_TYPE, _FILE_TYPE = 2, 3, 4
_CLOCK: Final = 0
_ABSOLUTE_TIME: Final = 1
_NANOSECONDS: Final = 1e-9

_MOST_OPEN: Final = 64
_MOST_EVENTS: Final = 64
_FIRST_DESCRIPTOR: Final = 4
ROOT: Final = 3

_CLOCKS: Final[dict[int, Callable[[], int]]] = {
    0: time.time_ns, 1: time.monotonic_ns, 2: time.process_time_ns, 3: time.thread_time_ns,
}  # fmt: skip


@final
class Opened:
    """A node that has a descriptor."""

    def __init__(self, node: Node, read: bool, write: bool, append: bool = False) -> None:
        self.node, self.read, self.write, self.append = node, read, write, append
        self.position = 0


@final
class Wasi:
    """The functions, by name; each gives the number of an error, 0 for none.

    Args:
        tree: the files.
        environment: NAME=VALUE.
        arguments: the command line.
        fork: called when the instance first asks to let others run.
    """

    def __init__(
        self, tree: Tree, environment: list[str], arguments: list[str], fork: Callable[[], None]
    ) -> None:
        self.tree = tree
        self.descriptors: dict[int, Opened] = {ROOT: Opened(tree.root, True, False)}
        self.memory: Any = None
        self._environment, self._arguments = environment, arguments
        self._fork: Callable[[], None] | None = fork
        self._next = _FIRST_DESCRIPTOR

    def functions(self) -> dict[str, Callable[..., int | None]]:
        """All of them, to be called with the caller and numbers."""
        done = {name: self._guarded(getattr(self, f"_{name}")) for name in _DONE}
        return done | dict.fromkeys(_REFUSED, self._guarded(_refuse))

    def _guarded(self, body: Callable[..., None]) -> Callable[..., int]:
        def function(caller: Caller, *numbers: int) -> int:
            try:
                body(Memory(self.memory, caller), *numbers)
            except RefusedError as refused:
                return refused.number
            except BrokenPipeError:
                return files.BROKEN_PIPE
            except OSError:
                return files.INPUT_OUTPUT
            return 0

        return function

    # descriptors ----------------------------------------------------------------------------------

    def _opened(self, number: int) -> Opened:
        found = self.descriptors.get(number)
        if found is None:
            raise RefusedError(files.BAD_DESCRIPTOR)
        return found

    def _folder(self, number: int) -> Folder:
        node = self._opened(number).node
        if not isinstance(node, Folder):
            raise RefusedError(files.NOT_A_FOLDER)
        return node

    def _file(self, number: int) -> tuple[Opened, File]:
        opened = self._opened(number)
        if isinstance(opened.node, Folder):
            raise RefusedError(files.IS_FOLDER)
        if not isinstance(opened.node, File):
            raise RefusedError(files.NOT_SEEKABLE)
        return opened, opened.node

    def _fd_close(self, memory: Memory, number: int) -> None:
        opened = self._opened(number)
        del self.descriptors[number]
        if isinstance(opened.node, File):
            opened.node.opened -= 1
            self.tree.let_go(opened.node)
        elif isinstance(opened.node, Stream):
            for descriptor in {opened.node.reading, opened.node.writing} - {None}:
                assert descriptor is not None
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    def _fd_fdstat_get(self, memory: Memory, number: int, where: int) -> None:
        opened = self._opened(number)
        flags = _APPEND if opened.append else 0
        memory.write(
            where, struct.pack("<BxHxxxxQQ", _type(opened.node), flags, _ALL_RIGHTS, _ALL_RIGHTS)
        )

    def _fd_fdstat_set_flags(self, memory: Memory, number: int, flags: int) -> None:
        self._opened(number).append = bool(flags & _APPEND)

    def _fd_prestat_get(self, memory: Memory, number: int, where: int) -> None:
        if number != ROOT or ROOT not in self.descriptors:
            raise RefusedError(files.BAD_DESCRIPTOR)
        memory.write(where, struct.pack("<II", 0, 1))

    def _fd_prestat_dir_name(self, memory: Memory, number: int, where: int, size: int) -> None:
        if number != ROOT:
            raise RefusedError(files.BAD_DESCRIPTOR)
        memory.write(where, b"/"[:size])

    # what is in files -----------------------------------------------------------------------------

    def _fd_read(self, memory: Memory, number: int, buffers: int, count: int, done: int) -> None:
        opened = self._opened(number)
        places = memory.buffers(buffers, count)
        content = self._taken(opened, sum(size for _, size in places))
        if isinstance(opened.node, File):
            opened.position += len(content)
        memory.scatter(places, content)
        memory.write_number(done, len(content))

    def _taken(self, opened: Opened, size: int) -> bytes:
        node, size = opened.node, min(size, MOST_AT_ONCE)
        if isinstance(node, Folder):
            raise RefusedError(files.IS_FOLDER)
        if not opened.read:
            raise RefusedError(files.BAD_DESCRIPTOR)
        if isinstance(node, File):
            return bytes(node.content[opened.position : opened.position + size])
        if isinstance(node, Device):
            return _DEVICES[node.kind](size)
        if node.reading is None:
            raise RefusedError(files.BAD_DESCRIPTOR)
        try:
            return os.read(node.reading, size)
        except ConnectionResetError:
            return b""

    def _fd_pread(
        self, memory: Memory, number: int, buffers: int, count: int, offset: int, done: int
    ) -> None:
        opened, file = self._file(number)
        if not opened.read:
            raise RefusedError(files.BAD_DESCRIPTOR)
        places = memory.buffers(buffers, count)
        size = min(sum(size for _, size in places), MOST_AT_ONCE)
        content = bytes(file.content[offset : offset + size])
        memory.scatter(places, content)
        memory.write_number(done, len(content))

    def _fd_write(self, memory: Memory, number: int, buffers: int, count: int, done: int) -> None:
        opened = self._opened(number)
        content = memory.gather(memory.buffers(buffers, count))
        node = opened.node
        if isinstance(node, Folder) or not opened.write:
            raise RefusedError(files.BAD_DESCRIPTOR)
        written = len(content)
        if isinstance(node, File):
            if opened.append:
                opened.position = len(node.content)
            self.tree.write(node, opened.position, content)
            opened.position += written
        elif isinstance(node, Stream):
            if node.writing is None:
                raise RefusedError(files.BAD_DESCRIPTOR)
            written = os.write(node.writing, content)
        memory.write_number(done, written)

    def _fd_pwrite(
        self, memory: Memory, number: int, buffers: int, count: int, offset: int, done: int
    ) -> None:
        opened, file = self._file(number)
        if not opened.write:
            raise RefusedError(files.BAD_DESCRIPTOR)
        content = memory.gather(memory.buffers(buffers, count))
        self.tree.write(file, offset, content)
        memory.write_number(done, len(content))

    def _fd_seek(self, memory: Memory, number: int, by: int, whence: int, where: int) -> None:
        opened = self._opened(number)
        if isinstance(opened.node, Stream):
            raise RefusedError(files.NOT_SEEKABLE)
        size = len(opened.node.content) if isinstance(opened.node, File) else 0
        by = by - (1 << 64) if by >= 1 << 63 else by
        if whence > 2:
            raise RefusedError(files.INVALID)
        position = by + (0, opened.position, size)[whence]
        if not 0 <= position < 1 << 63:
            raise RefusedError(files.INVALID)
        opened.position = position
        memory.write(where, struct.pack("<Q", position))

    def _fd_tell(self, memory: Memory, number: int, where: int) -> None:
        self._fd_seek(memory, number, 0, 1, where)

    def _fd_sync(self, memory: Memory, number: int) -> None:
        self._opened(number)

    _fd_datasync = _fd_sync

    def _fd_advise(self, memory: Memory, number: int, *unused: int) -> None:
        self._opened(number)

    def _fd_allocate(self, memory: Memory, number: int, offset: int, size: int) -> None:
        self._fd_filestat_set_size(
            memory, number, max(offset + size, len(self._file(number)[1].content))
        )

    def _fd_filestat_set_size(self, memory: Memory, number: int, size: int) -> None:
        opened, file = self._file(number)
        if not opened.write:
            raise RefusedError(files.INVALID)
        self.tree.resize(file, size)

    def _fd_filestat_get(self, memory: Memory, number: int, where: int) -> None:
        memory.write(where, _stat(self._opened(number).node))

    def _fd_filestat_set_times(self, memory: Memory, number: int, *unused: int) -> None:
        self._opened(number)

    def _fd_readdir(
        self, memory: Memory, number: int, where: int, size: int, cookie: int, done: int
    ) -> None:
        folder = self._folder(number)
        listed = [(".", folder), ("..", folder.parent), *folder.entries.items()]
        size = min(size, MOST_AT_ONCE)
        content = bytearray()
        for place, (name, node) in enumerate(listed[cookie:], cookie + 1):
            if len(content) >= size:
                break
            text = encoded(name)
            content += struct.pack("<QQIB3x", place, node.number, len(text), _type(node)) + text
        memory.write(where, bytes(content[:size]))
        memory.write_number(done, min(len(content), size))

    # paths ----------------------------------------------------------------------------------------

    def _path_open(
        self, memory: Memory, base: int, look: int, path: int, length: int, how: int,
        rights: int, inherited: int, flags: int, where: int,
    ) -> None:  # fmt: skip
        folder, name = self._folder(base), memory.path(path, length)
        if len(self.descriptors) >= _MOST_OPEN:
            raise RefusedError(files.TOO_MANY_OPEN)
        write = bool(rights & _MAY_WRITE)
        try:
            node = self.tree.find(folder, name)
        except RefusedError as refused:
            if refused.number != files.NO_ENTRY or not how & _CREATE or name.endswith("/"):
                raise
            node = self.tree.make_file(folder, name)
        else:
            if how & _EXCLUSIVE and how & _CREATE:
                raise RefusedError(files.EXISTS)
        if isinstance(node, Folder):
            if write or how & _CREATE:
                raise RefusedError(files.IS_FOLDER)
        elif how & _FOLDER_ONLY:
            raise RefusedError(files.NOT_A_FOLDER)
        if isinstance(node, File):
            if write and node.read_only:
                raise RefusedError(files.READ_ONLY)
            if how & _EMPTY_IT and write:
                self.tree.resize(node, 0)
            node.opened += 1
        number, self._next = self._next, self._next + 1
        read = bool(rights & _MAY_READ)
        self.descriptors[number] = Opened(node, read, write, bool(flags & _APPEND))
        memory.write_number(where, number)

    def _path_filestat_get(
        self, memory: Memory, base: int, look: int, path: int, length: int, where: int
    ) -> None:
        memory.write(where, _stat(self.tree.find(self._folder(base), memory.path(path, length))))

    def _path_filestat_set_times(
        self, memory: Memory, base: int, look: int, path: int, length: int, *unused: int
    ) -> None:
        node = self.tree.find(self._folder(base), memory.path(path, length))
        if not isinstance(node, File) or node.read_only:
            raise RefusedError(files.NOT_PERMITTED)

    def _path_create_directory(self, memory: Memory, base: int, path: int, length: int) -> None:
        self.tree.make_folder(self._folder(base), memory.path(path, length))

    def _path_unlink_file(self, memory: Memory, base: int, path: int, length: int) -> None:
        self.tree.remove(self._folder(base), memory.path(path, length), folders=False)

    def _path_remove_directory(self, memory: Memory, base: int, path: int, length: int) -> None:
        self.tree.remove(self._folder(base), memory.path(path, length), folders=True)

    def _path_rename(
        self, memory: Memory, base: int, path: int, length: int, new_base: int, new_path: int,
        new_length: int,
    ) -> None:  # fmt: skip
        self.tree.rename(
            self._folder(base), memory.path(path, length),
            self._folder(new_base), memory.path(new_path, new_length),
        )  # fmt: skip

    def _path_readlink(
        self, memory: Memory, base: int, path: int, length: int, *unused: int
    ) -> None:
        self.tree.find(self._folder(base), memory.path(path, length))
        raise RefusedError(files.INVALID)  # nothing is a link

    def _path_symlink(self, memory: Memory, *unused: int) -> None:
        raise RefusedError(files.NOT_PERMITTED)

    _path_link = _path_symlink

    # the rest -------------------------------------------------------------------------------------

    def _args_get(self, memory: Memory, places: int, texts: int) -> None:
        memory.write_texts(self._arguments, places, texts)

    def _args_sizes_get(self, memory: Memory, count: int, size: int) -> None:
        memory.write_sizes(self._arguments, count, size)

    def _environ_get(self, memory: Memory, places: int, texts: int) -> None:
        memory.write_texts(self._environment, places, texts)

    def _environ_sizes_get(self, memory: Memory, count: int, size: int) -> None:
        memory.write_sizes(self._environment, count, size)

    def _clock_res_get(self, memory: Memory, clock: int, where: int) -> None:
        if clock not in _CLOCKS:
            raise RefusedError(files.INVALID)
        memory.write(where, struct.pack("<Q", 1))

    def _clock_time_get(self, memory: Memory, clock: int, precision: int, where: int) -> None:
        if clock not in _CLOCKS:
            raise RefusedError(files.INVALID)
        memory.write(where, struct.pack("<Q", _CLOCKS[clock]()))

    def _random_get(self, memory: Memory, where: int, size: int) -> None:
        memory.check(where, size)
        while size:
            part = min(size, MOST_AT_ONCE)
            memory.write(where, os.urandom(part))
            where, size = where + part, size - part

    def _poll_oneoff(self, memory: Memory, asked: int, told: int, count: int, done: int) -> None:
        if not 0 < count <= _MOST_EVENTS:
            raise RefusedError(files.INVALID)
        waits: list[tuple[float, bytes]] = []
        ready: list[bytes] = []
        reading: dict[int, bytes] = {}
        for number in range(count):
            content = memory.read(asked + number * 48, 48)
            told_about, kind = struct.unpack_from("<QB", content)
            event = struct.pack("<QHB21x", told_about, 0, kind)
            if kind == _CLOCK:
                clock, timeout, flags = struct.unpack_from("<IxxxxQxxxxxxxxH", content, 16)
                if clock not in _CLOCKS:
                    raise RefusedError(files.INVALID)
                left = timeout - _CLOCKS[clock]() if flags & _ABSOLUTE_TIME else timeout
                waits.append((max(0, left) * _NANOSECONDS, event))
                continue
            opened = self._opened(struct.unpack_from("<I", content, 16)[0])
            stream = opened.node if isinstance(opened.node, Stream) else None
            if kind == 1 and stream is not None and stream.reading is not None:
                reading[stream.reading] = event
            elif isinstance(opened.node, Device) and opened.node.kind == "never":
                continue
            else:
                ready.append(event)
        least = 0.0 if ready else min((wait for wait, _ in waits), default=None)
        found, _, _ = select.select(list(reading), [], [], least)
        events = ready + [reading[descriptor] for descriptor in found]
        if not events:
            events = [event for wait, event in waits if wait == least]
        memory.write(told, b"".join(events))
        memory.write_number(done, len(events))

    def _proc_exit(self, memory: Memory, code: int) -> None:
        os._exit(code & 0xFF)

    def _sched_yield(self, memory: Memory) -> None:
        fork, self._fork = self._fork, None
        if fork is not None:
            fork()


_DONE: Final = (
    "args_get", "args_sizes_get", "environ_get", "environ_sizes_get", "clock_res_get",
    "clock_time_get", "fd_advise", "fd_allocate", "fd_close", "fd_datasync", "fd_fdstat_get",
    "fd_fdstat_set_flags", "fd_filestat_get", "fd_filestat_set_size",
    "fd_filestat_set_times", "fd_pread", "fd_prestat_get", "fd_prestat_dir_name", "fd_pwrite",
    "fd_read", "fd_readdir", "fd_seek", "fd_sync", "fd_tell", "fd_write",
    "path_create_directory", "path_filestat_get", "path_filestat_set_times", "path_link",
    "path_open", "path_readlink", "path_remove_directory", "path_rename", "path_symlink",
    "path_unlink_file", "poll_oneoff", "proc_exit", "sched_yield", "random_get",
)  # fmt: skip
_REFUSED: Final = (
    "fd_fdstat_set_rights", "fd_renumber", "proc_raise", "sock_accept", "sock_recv", "sock_send",
    "sock_shutdown",
)  # fmt: skip


_DEVICES: Final[dict[str, Callable[[int], bytes]]] = {
    "null": lambda size: b"",
    "never": lambda size: b"",
    "zero": bytes,
    "random": os.urandom,
    "processor_time": lambda size: time.process_time_ns().to_bytes(8, "little")[:size],
}


def _refuse(memory: Memory, *unused: int) -> None:
    raise RefusedError(files.NOT_IMPLEMENTED)


def _type(node: Node) -> int:
    if isinstance(node, Folder):
        return _FOLDER_TYPE
    return _FILE_TYPE if isinstance(node, File) else _CHARACTER_DEVICE


def _stat(node: Node) -> bytes:
    size = len(node.content) if isinstance(node, File) else 0
    when = node.modified if isinstance(node, File | Folder) else 0
    links = int(node.named) if isinstance(node, File) else 1
    return struct.pack("<QQB7xQQQQQ", 1, node.number, _type(node), links, size, when, when, when)
