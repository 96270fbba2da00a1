"""Runs inside the instance: imports what programs need, waits to be copied, plays its part.

The host copies the instance inside the first ``sched_yield``; each copy then finds what it is to do
in a file.
"""

import errno
import importlib
import io
import json
import os
import random
import socket
import sys
import time

WORK = "/work"
PLACE = "/judge"


def _main() -> None:
    # they lead nowhere before the copy; opened first, they have low numbers as elsewhere
    to_program = os.open(f"{PLACE}/program", os.O_RDWR)
    tests_of = os.open(f"{PLACE}/tests", os.O_RDONLY)
    verdict_to = os.open(f"{PLACE}/verdict", os.O_WRONLY)
    sys.path.insert(0, PLACE)
    for name in json.loads(_read("imports")):
        importlib.import_module(name)
    from inside import program_side, tests_side  # type: ignore[import-not-found]
    from inside.frames import Channel  # type: ignore[import-not-found]
    from inside.shield import shield  # type: ignore[import-not-found]

    sys.path.remove(PLACE)
    shield()
    _count_processor_time()
    _refuse_what_does_nothing()
    _let_event_loops_start()
    os.chdir(WORK)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]

    depth = sys.getrecursionlimit()
    sys.setrecursionlimit(int(_read("mark")))
    os.sched_yield()
    sys.setrecursionlimit(depth)

    random.seed()  # or all programs would draw alike
    job = json.loads(_read("job"))
    os.environ.clear()
    os.environ.update(HOME=WORK, TMPDIR=WORK, LANG="C.UTF-8", PATH="")
    if job["part"] == "script":
        os._exit(program_side.run_with_standard_input(job["source"]))
    program = Channel.of(to_program)
    if job["part"] == "program":
        program_side.serve_tests(job["source"], program)
    else:
        verdict = tests_side.judge(program, Channel.of(tests_of))
        Channel.of(verdict_to).send(verdict)
    os._exit(0)


def _read(name: str) -> str:
    with open(f"{PLACE}/{name}", encoding="utf-8") as file:
        return file.read()


def _count_processor_time() -> None:
    """The C library has no such clock and gives the time of day's instead, in units of its own."""
    clock = io.FileIO("/dev/processor_time")
    time.process_time_ns = lambda: int.from_bytes(clock.read(8), "little")
    time.process_time = lambda: time.process_time_ns() / 10**9


def _refuse_what_does_nothing() -> None:
    """The C library says yes to these; elsewhere the sandbox says no."""

    def refused(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    os.chmod = refused


def _let_event_loops_start() -> None:
    """An event loop of asyncio opens a pair of sockets, to be woken up by other threads with it."""

    class Nowhere(io.FileIO):
        def setblocking(self, wanted: bool) -> None:
            pass

        def send(self, content: bytes) -> int:
            return len(content)

    def pair(*args: object, **kwargs: object) -> tuple[Nowhere, Nowhere]:
        return Nowhere("/dev/never"), Nowhere("/dev/never")

    vars(socket)["socketpair"] = pair


if __name__ == "__main__":
    _main()
