"""One conversation of tests with a program of our own, before there is any other.

Python looks names up, reads bytecode and keeps what it found; what it does for the first time in a
fork, it writes into pages of memory that the fork then copies. Nothing of a judged program is in
these pages: they are those of the fork server, which never sees one.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from typing import Final

from . import program_side, tests_side
from .frames import Channel

# after so many calls Python has made its code special to what it met
_TIMES: Final = 10
_PATIENCE_SECONDS: Final = 2.0
_PROGRAM: Final = """
from typing import List


def f(items: List[float], text: str = "") -> dict:
    if not items:
        raise ValueError("nothing")
    return {"sum": sum(items), "sorted": sorted(items), "text": text.split()}
"""
_TESTS: Final = """
def check(candidate):
    assert candidate([3, 1, 2.5], text="a b") == {
        "sum": 6.5, "sorted": [1, 2.5, 3], "text": ["a", "b"]
    }, "sums"
    assert candidate([True], "")["sum"] == 1
    try:
        candidate([])
    except ValueError:
        pass
    assert candidate([1]) == 2


check(f)
"""


def warm_up() -> None:
    """Have the code of both sides run a few times in this process."""
    depth, arguments = sys.getrecursionlimit(), list(sys.argv)
    for _ in range(_TIMES):
        _converse()
    # both sides set it, and put back what they found, in two threads of one process here
    sys.setrecursionlimit(depth)
    sys.argv[:] = arguments
    sys.modules.pop("solution", None)
    _wait_until_alone()


def _wait_until_alone() -> None:
    """A thread that was joined is the kernel's for a moment more; namespaces are for one alone."""
    end = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.suppress(OSError):  # no /proc
        while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
            time.sleep(0.001)


def _converse() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    (ours, theirs), (asking, asked) = pairs
    Channel.of(asking.fileno()).send({"tests": _TESTS})
    program = threading.Thread(
        target=program_side.serve_tests, args=(_PROGRAM, Channel.of(theirs.fileno()))
    )
    program.start()
    try:
        judged = tests_side.judge(Channel.of(ours.fileno()), Channel.of(asked.fileno()))
    finally:
        ours.shutdown(socket.SHUT_RDWR)
        program.join()
        for pair in pairs:
            for end in pair:
                end.close()
    if judged[0] != "failed":
        raise RuntimeError(f"a test of the judge itself: {judged}")
