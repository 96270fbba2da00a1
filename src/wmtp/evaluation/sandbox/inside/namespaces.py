"""Namespaces: a view of the machine without other processes, networks or files of other jobs."""

import os
import sys
from typing import Final

from .kernel import checked, libc

_NEW_MOUNTS: Final = 0x00020000
_NEW_HOST_NAME: Final = 0x04000000
_NEW_IPC: Final = 0x08000000
_NEW_USERS: Final = 0x10000000
_NEW_PIDS: Final = 0x20000000
_NEW_NETWORK: Final = 0x40000000
_NO_SET_USER_ID: Final = 2
_NO_DEVICES: Final = 4
_NO_PROGRAMS: Final = 8


def enter_namespaces() -> None:
    """Put this process into namespaces of its own; its next child is the first process in them.

    Raises:
        OSError: this system does not let an ordinary user do so.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = _NEW_USERS | _NEW_MOUNTS | _NEW_PIDS | _NEW_NETWORK | _NEW_IPC | _NEW_HOST_NAME
    checked(libc.unshare(flags), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


class ProcessNamespaces:
    """Gives single children process namespaces of their own, whose first process they are.

    When the first process of a namespace ends, the kernel kills all others in it.
    """

    def __init__(self) -> None:
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def fork(self) -> int:
        """As ``os.fork``, into a new namespace."""
        checked(libc.unshare(_NEW_PIDS), "unshare(pids)")
        pid = os.fork()
        if pid:
            checked(libc.setns(self._own, _NEW_PIDS), "setns")
        else:
            os.close(self._own)
        return pid


def mount_work_folder(folder: str, most_bytes: int, most_files: int) -> None:
    """Lay an empty file system of limited size over a folder, seen by this process's tree alone.

    It is gone with the tree, and with it all that was written, open and unlinked files included.

    Raises:
        OSError: the kernel refused.
    """
    checked(libc.unshare(_NEW_MOUNTS), "unshare(mounts)")
    # the folder itself counts as a file
    options = f"size={max(most_bytes, 4096)},nr_inodes={most_files + 1},mode=700"
    flags = _NO_SET_USER_ID | _NO_DEVICES | _NO_PROGRAMS
    checked(
        libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options.encode()),
        "mount(tmpfs)",
    )


def supported() -> bool:
    """Whether this is a system that has namespaces at all."""
    return sys.platform == "linux"
