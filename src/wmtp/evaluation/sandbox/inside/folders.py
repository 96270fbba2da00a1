"""The folder of one program: made, watched where no file system of its own limits it, removed."""

import contextlib
import os
import shutil
import time
from typing import Any

from .confinement import NAMESPACES, WASM, Confinement


def make_folder(confinement: Confinement, limits: dict[str, Any]) -> tuple[str, bool]:
    """A program's folder, and whether it is a file system of its own."""
    if WASM in confinement.layers:  # its files are in the instance's own process
        return confinement.work, True
    if NAMESPACES in confinement.layers:
        from .namespaces import mount_work_folder

        try:
            mount_work_folder(confinement.work, limits["file_bytes"], limits["files"])
        except OSError:
            pass
        else:
            return confinement.work, True
    folder = os.path.join(confinement.work, f"{os.getpid()}-{time.monotonic_ns()}")
    os.mkdir(folder, 0o700)
    return folder, False


def holds_too_much(folder: str, limits: dict[str, Any]) -> bool:
    """Whether more lies in a folder than it may; for one that no file system limits."""
    files = size = 0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            files += 1
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_blocks * 512
            if files > limits["files"] or size > limits["file_bytes"]:
                return True
    return False


def remove(folder: str) -> None:
    """Remove a folder and what is in it, without following links."""
    for place, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
