"""Machine code for a module of WebAssembly, made once and kept where nobody else can write.

To load machine code is to run it. It is therefore taken only from a folder of this user that no
other may change, and made anew where there is none.
"""

import contextlib
import hashlib
import os
import platform
import stat
import sys
from collections.abc import Callable
from typing import Final

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def machine_code(
    source: bytes, made_by: str, cache: str | None, build: Callable[[], bytes]
) -> bytes:
    """The code for ``source``, from the cache if it is there and this user's alone.

    Args:
        source: of the module.
        made_by: names compiler, version and settings.
        cache: an absolute folder, made if it is missing; None to keep nothing.
        build: compiles; called in a process of its own, whose threads must not be this one's.

    Raises:
        OSError: it could not be built.
    """
    name = _key(source, made_by)
    if cache is None:
        return _built(build)
    try:
        folder = _own_folder(cache)
    except OSError:
        return _built(build)
    try:
        found = _read(folder, name)
        if found is None:
            found = _built(build)
            _keep(folder, name, found)
        return found
    finally:
        os.close(folder)


def _key(source: bytes, made_by: str) -> str:
    machine = f"{made_by} {sys.platform} {platform.machine()}"
    return hashlib.sha256(hashlib.sha256(source).digest() + machine.encode()).hexdigest()


def _own_folder(path: str) -> int:
    """A descriptor of a folder that only this user can change.

    Raises:
        OSError: it is another's, or others may write to it.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & _WRITABLE_BY_OTHERS:
        os.close(folder)
        raise PermissionError(f"{path} can be changed by others")
    return folder


def _read(folder: int, name: str) -> bytes | None:
    """What is kept under a name, with the hash that was kept with it; None if that is not right."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & _WRITABLE_BY_OTHERS:
            return None
        content = file.read()
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(folder: int, name: str, code: bytes) -> None:
    """Write it under another name first, so that half of it is never read; a full disk is borne."""
    part = f"{name}.{os.getpid()}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(part, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=folder)


def _built(build: Callable[[], bytes]) -> bytes:
    """What ``build`` gives, from a fork: a compiler's threads would not survive later ones here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            with open(writing, "wb") as pipe:
                pipe.write(build())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        content = pipe.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError("Python's WebAssembly could not be compiled")
    return content
