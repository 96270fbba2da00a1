"""Calls of the Linux kernel that Python has no function for."""

import ctypes
import os
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_M_ARENA_MAX = -8
_SIGKILL = 9


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def checked(result: int, what: str) -> int:
    """The result of a C function that gives -1 on failure.

    Raises:
        OSError: it gave -1.
    """
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, what: str, *arguments: Any) -> int:
    """A system call by its number.

    Raises:
        OSError: the kernel refused.
    """
    return checked(int(libc.syscall(ctypes.c_long(number), *arguments)), what)


def prctl(option: int, what: str, *arguments: Any) -> None:
    """A setting of this process.

    Raises:
        OSError: the kernel refused.
    """
    padded = [*arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments))]
    checked(libc.prctl(option, *padded), what)


def die_with_parent() -> None:
    """Have this process killed when its parent ends."""
    prctl(_PR_SET_PDEATHSIG, "prctl(PDEATHSIG)", ctypes.c_ulong(_SIGKILL))


def hide_memory() -> None:
    """No other process of this user may read or trace this one."""
    prctl(_PR_SET_DUMPABLE, "prctl(DUMPABLE)", ctypes.c_ulong(0))


def forbid_new_privileges() -> None:
    """No program that is started can bring a capability; what Landlock asks of ordinary users."""
    prctl(_PR_SET_NO_NEW_PRIVS, "prctl(NO_NEW_PRIVS)", ctypes.c_ulong(1))


def renounce_capabilities() -> None:
    """No capability is left to this process."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    checked(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def install_filter(instructions: bytes) -> None:
    """Judge every later system call of this process by a BPF program; there is no way back.

    Raises:
        OSError: the kernel has no seccomp filters.
    """
    program = ctypes.create_string_buffer(instructions, len(instructions))
    described = _FilterProgram(len(instructions) // 8, ctypes.addressof(program))
    prctl(
        _PR_SET_SECCOMP,
        "prctl(SECCOMP)",
        ctypes.c_ulong(_SECCOMP_MODE_FILTER),
        ctypes.byref(described),
    )


def share_one_arena() -> None:
    """Threads allocate from one heap: each of their own would reserve 64 MiB of addresses."""
    libc.mallopt(_M_ARENA_MAX, 1)
