"""Processes of one program: started, given their streams, and put into their cage."""

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from .confinement import Confinement
from .wasm.becoming import Becomes


def prepare_streams() -> None:
    """Once, in the fork server: what each program is to find, and what costs it time to set up."""
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(LANG="C.UTF-8", PATH="")
    # the server's own streams serve on: nothing was read or written, and new ones take a tenth of
    # the time that a program does
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)


def fork(body: Callable[[], int]) -> int:
    """Start a process that ends with this one; gives its number."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if sys.platform == "linux":
            from .kernel import die_with_parent

            die_with_parent()
            if os.getppid() != parent:  # it died before it could take this one along
                os._exit(1)
        code = body()
    except Becomes:  # it leaves the server's code, and goes on as an instance
        raise
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc(limit=-3)
            sys.stderr.flush()
    os._exit(code)


def processor_time(pid: int) -> float:
    """What a child has used so far, in seconds.

    Raises:
        OSError: it has ended.
    """
    if sys.platform == "darwin":
        from .darwin import usage_of

        return usage_of(pid)[0]
    return time.clock_gettime(((~pid) << 3) | 2)


def settle(confinement: Confinement, limits: dict[str, Any], folder: str) -> None:
    """Make this process the program's: its folder, its cage."""
    enter_folder(folder)
    confinement.apply(limits, folder)


def enter_folder(folder: str) -> None:
    """Make a folder the one that relative names and temporary files are in."""
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)


def take_over(standard_in: int, standard_out: int, standard_error: int) -> None:
    """Make three descriptors the standard ones."""
    # first out of the way of 0, 1 and 2 themselves
    high = [os.dup(number) for number in (standard_in, standard_out, standard_error)]
    for number, copy in enumerate(high):
        os.dup2(copy, number)


def close_all_but(*kept: int) -> None:
    """Close every descriptor that the program must not find."""
    low = 0
    for descriptor in sorted(kept):
        if low < descriptor:  # an empty range would close everything, in some versions of Python
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, max(low, 4096))
