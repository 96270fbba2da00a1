"""Landlock: which files a judged program can open, and for what."""

import os
import struct
from collections.abc import Iterable
from ctypes import c_size_t
from typing import Final

from .kernel import syscall

_CREATE_RULESET: Final = 444  # the same number on every processor
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHARACTER_DEVICE, _MAKE_SOCKET, _MAKE_PIPE, _MAKE_BLOCK_DEVICE = (
    1 << 6,
    1 << 9,
    1 << 10,
    1 << 11,
)
_TRUNCATE: Final = 1 << 14
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE

# how many rights over files each version of the interface knows
_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_LATEST_RIGHTS: Final = 16
_TCP: Final = 3  # bind and connect, from version 4
_SCOPE: Final = 3  # abstract sockets and signals, from version 6


def landlock_version() -> int:
    """The kernel's version of the interface.

    Raises:
        OSError: this kernel has no Landlock, or it is switched off.
    """
    return syscall(_CREATE_RULESET, "landlock", None, c_size_t(0), _VERSION)


def restrict_files(read: Iterable[str], write: Iterable[str]) -> None:
    """From here on nothing but these paths, and what is beneath them, can be opened.

    Args:
        read: for reading; a library may be loaded, a program not be started.
        write: for everything but making devices, pipes and sockets.

    Raises:
        OSError: this kernel has no Landlock, or it refused.
    """
    version = landlock_version()
    rights = (1 << _RIGHTS.get(version, _LATEST_RIGHTS)) - 1
    attributes = struct.pack("=Q", rights)
    if version >= 4:
        attributes += struct.pack("=Q", _TCP)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPE)
    ruleset = syscall(_CREATE_RULESET, "landlock", attributes, c_size_t(len(attributes)), 0)
    special = _MAKE_CHARACTER_DEVICE | _MAKE_SOCKET | _MAKE_PIPE | _MAKE_BLOCK_DEVICE
    writable = rights & ~(special | _EXECUTE)
    for paths, granted in ((read, _READ_FILE | _READ_FOLDER), (write, writable)):
        for path in paths:
            _add_rule(ruleset, path, granted)
    syscall(_RESTRICT_SELF, "landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def set_apart() -> None:
    """From here on this process cannot trace or signal those that it shares its restrictions with.

    A domain within theirs: it starts no program, which nobody in theirs can do either.

    Raises:
        OSError: this kernel has no Landlock, or it refused.
    """
    attributes = struct.pack("=Q", _EXECUTE)
    if landlock_version() >= 6:
        attributes += struct.pack("=QQ", 0, _SCOPE)
    ruleset = syscall(_CREATE_RULESET, "landlock", attributes, c_size_t(len(attributes)), 0)
    syscall(_RESTRICT_SELF, "landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def _add_rule(ruleset: int, path: str, granted: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rights = granted if os.path.isdir(path) else granted & _OF_FILES
    rule = struct.pack("=Qi", rights, place)
    syscall(_ADD_RULE, f"landlock rule for {path}", ruleset, _PATH_BENEATH, rule, 0)
    os.close(place)
