"""One program's supervisor: starts its process and that of the tests, watches, and reports.

It is the first process of a process namespace where there are such; otherwise its children die
with it. What the program's process inherits from it holds no tests: those come later, and not to
that one.
"""

import os
import select
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final

from . import program_side, tests_side
from .confinement import NAMESPACES, WASM, Confinement
from .folders import make_folder, remove
from .frames import Channel, Ended
from .processes import close_all_but, enter_folder, fork, settle, take_over
from .wasm.becoming import Becomes
from .watching import TESTS_MEMORY_BYTES, TICK_SECONDS, Result, Run

_LAST_WORDS: Final = 2_000
_PIECE: Final = 1 << 16
_PARTS_OF_A_SHARED_DISK: Final = 16


def supervise(job: socket.socket, confinement: Confinement) -> None:
    """Judge the program that a socket brings, and answer on it."""
    channel = Channel.of(job.fileno())
    request = channel.receive()
    source, stdin = channel.receive(), channel.receive_bytes()
    folder, own_disk = make_folder(confinement, request["limits"])
    first = own_disk and NAMESPACES in confinement.layers
    if first and request["kind"] == "assert":
        run = Run(request["limits"], None, confinement.memory)
        _run_tests_here(run, confinement, folder, source, job)
        return
    if not own_disk:  # open files that have no name any more are found by nobody
        request["limits"]["largest_file_bytes"] //= _PARTS_OF_A_SHARED_DISK
    run = Run(request["limits"], None if own_disk else folder, confinement.memory)
    try:
        if request["kind"] == "stdio":
            result = _run_script(run, confinement, folder, source, stdin, job)
        else:
            result = _run_tests(run, confinement, folder, source, job)
    except Becomes:  # in one of its children, which has nothing to clean up
        raise
    except BaseException:
        _clean_up(run, None if own_disk else folder)
        raise
    _clean_up(run, None if own_disk else folder)
    _answer(channel, result)


def _clean_up(run: Run, folder: str | None) -> None:
    run.kill()
    if folder is not None:
        remove(folder)


def _answer(channel: Channel, result: Result) -> None:
    output = result.pop("output", b"")
    channel.send(result)
    channel.send_bytes(output)


def _run_script(
    run: Run,
    confinement: Confinement,
    folder: str,
    source: str,
    stdin: bytes,
    job: socket.socket,
) -> Result:
    standard_in, feed = os.pipe()
    out, standard_out = os.pipe()
    err, standard_error = os.pipe()

    def program() -> int:
        take_over(standard_in, standard_out, standard_error)
        close_all_but(0, 1, 2)
        settle(confinement, run.limits, folder)
        if WASM in confinement.layers:
            raise Becomes("script", source, run.limits, {})
        return program_side.run_with_standard_input(source)

    run.program = fork(program)
    for descriptor in (standard_in, standard_out, standard_error):
        os.close(descriptor)
    run.feed(feed, stdin)
    collected, last_words = bytearray(), bytearray()
    run.drain(out, collected.extend)
    run.drain(err, last_words.extend)
    stopped = run.watch(job, until=lambda: run.exit_code is not None and not run.draining)
    if stopped is not None:
        return stopped
    code = run.exit_code
    if code == 0:
        return run.result("passed", "", output=bytes(collected))
    words = last_words[-_LAST_WORDS:].decode("utf-8", "replace").strip().rpartition("\n")[2]
    if code is not None and code < 0:
        return run.ended_by_signal(-code)
    status = "memory" if words.startswith("MemoryError") else "error"
    return run.result(status, f"exit code {code}: {words}"[:300])


def _run_tests_here(
    run: Run, confinement: Confinement, folder: str, source: str, job: socket.socket
) -> None:
    """Run the tests in this process, the first of a namespace: all others in it end with it.

    That is a process less than where the program could outlive its tests. This one is confined as
    the program is; all that it does beside its tests is to wait, read and count. Where its tests
    keep it from that, the fork server ends it.
    """
    asked = Channel.of(job.fileno())
    ours, theirs = socket.socketpair()
    out, standard_out = os.pipe()
    enter_folder(folder)
    confinement.restrict(folder)

    def program() -> int:
        os.dup2(standard_out, 1)
        os.dup2(standard_out, 2)
        close_all_but(0, 1, 2, theirs.fileno())
        confinement.apply_within(run.limits)
        program_side.serve_tests(source, Channel.of(theirs.fileno()))
        return 0

    run.program = fork(program)
    run.tests = os.getpid()
    close_all_but(0, 1, 2, ours.fileno(), out, job.fileno())
    confinement.limit_and_filter({**run.limits, "memory_bytes": TESTS_MEMORY_BYTES})
    os.set_blocking(out, False)

    def drain() -> bool:
        """Whether the program may still print."""
        try:
            part = os.read(out, _PIECE)
        except BlockingIOError:
            return True
        run.count_output(len(part))
        return bool(part)

    def look(number: int, frame: FrameType | None) -> None:
        drain()
        run.reap()
        broken = run.broken_limit()
        if broken is not None:
            _answer(asked, run.result(*broken))
            os._exit(0)

    waiting = select.poll()
    waiting.register(ours, select.POLLIN)
    waiting.register(out, select.POLLIN)

    def read(count: int) -> bytes:
        while True:
            ready = dict(waiting.poll())
            if out in ready and not drain():
                waiting.unregister(out)
            if ours.fileno() in ready:
                return ours.recv(count)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
    status, detail = tests_side.judge(Channel(read, ours.send), asked)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if status == "killed":
        result = run.explain_end(detail)
    else:
        drain()  # what a pipe holds: all else was read while the program was waited for
        result = run.result(*(run.too_much_output() or (status, detail)))
    _answer(asked, result)


def _run_tests(
    run: Run, confinement: Confinement, folder: str, source: str, job: socket.socket
) -> Result:
    ours, theirs = socket.socketpair()
    out, standard_out = os.pipe()

    def program() -> int:
        take_over(0, standard_out, standard_out)
        close_all_but(0, 1, 2, theirs.fileno())
        settle(confinement, run.limits, folder)
        if WASM in confinement.layers:
            both = theirs.fileno(), theirs.fileno()
            raise Becomes("program", source, run.limits, {"program": both})
        program_side.serve_tests(source, Channel.of(theirs.fileno()))
        return 0

    run.program = fork(program)
    theirs.close()
    os.close(standard_out)
    verdict, writing = os.pipe()

    def tests() -> int:
        close_all_but(0, 1, 2, ours.fileno(), job.fileno(), writing)
        limits = {**run.limits, "memory_bytes": TESTS_MEMORY_BYTES}
        settle(confinement, limits, folder)
        if WASM in confinement.layers:
            raise Becomes(
                "tests", None, limits,
                {
                    "program": (ours.fileno(), ours.fileno()),
                    "tests": (job.fileno(), None),
                    "verdict": (None, writing),
                },
            )  # fmt: skip
        judged = tests_side.judge(Channel.of(ours.fileno()), Channel.of(job.fileno()))
        Channel.of(writing).send(judged)
        return 0

    run.tests = fork(tests)
    ours.close()
    os.close(writing)
    run.drain(out, None)
    said = bytearray()
    run.drain(verdict, said.extend, counted=False)
    stopped = run.watch(None, until=lambda: verdict not in run.draining)
    if stopped is not None:
        return stopped
    try:
        status, detail = Channel(_reader(bytes(said)), lambda view: 0).receive()
    except Ended:
        return run.result("killed", "the process of the tests ended")
    if status == "killed":
        return run.explain_end(detail)
    return run.result(status, detail)


def _reader(content: bytes) -> Callable[[int], bytes]:
    rest = memoryview(content)

    def read(count: int) -> bytes:
        nonlocal rest
        part, rest = rest[:count], rest[count:]
        return bytes(part)

    return read
