"""The fork server: a Python that has its library imported, and forks a supervisor for each program.

It is started as a process of its own, so that it holds nothing of the one that asks: no torch, no
tests, no secrets. It never sees a program or its tests either; those travel over a socket that it
hands on.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from .confinement import NAMESPACES, WASM, Confinement
from .frames import REQUEST, Channel, Ended, MalformedMessageError
from .processes import close_all_but, prepare_streams, processor_time
from .shield import shield
from .supervisor import supervise
from .warm_up import warm_up
from .wasm.becoming import Becomes

# what programs of the usual benchmarks import most; each page that is in use makes forks slower,
# and asyncio alone would double them
_IMPORTED: Final = (
    "abc", "array", "bisect", "cmath", "collections", "contextlib", "copy", "dataclasses",
    "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools",
    "json", "math", "numbers", "operator", "os", "queue", "random", "re", "statistics", "string",
    "struct", "textwrap", "threading", "time", "types", "typing",
)  # fmt: skip
_NOTICE_SECONDS: Final = 0.2
_SLACK_SECONDS: Final = 0.5

Supervise = Callable[[socket.socket, Confinement], None]


def main(control: socket.socket) -> None:
    """Serve until the other end of ``control`` is closed."""
    channel = Channel.of(control.fileno())
    asked = channel.receive()
    confinement = Confinement(frozenset(asked["layers"]), asked["work"])
    try:
        confinement.prepare()
    except OSError as error:
        channel.send({"error": str(error)})
        return
    for name in _IMPORTED:
        importlib.import_module(name)
    prepare_streams()
    if WASM in confinement.layers:
        shield()
        _serve_copies_of_an_instance(control, channel, confinement, asked["wasm"])
        return
    warm_up()
    shield()
    _prepare_memory()
    inside = NAMESPACES in confinement.layers and _enter_namespaces()
    if not inside:
        confinement.layers -= {NAMESPACES}
    fork = _forking(inside)
    channel.send({"layers": sorted(confinement.layers), "python": sys.version.split()[0]})
    _serve(control, confinement, fork, supervise)


def _serve_copies_of_an_instance(
    control: socket.socket, channel: Channel, confinement: Confinement, given: dict[str, str]
) -> None:
    """The same for WebAssembly: every fork leaves ``serve`` and goes on as the instance."""
    from .wasm.host import Host

    def serve() -> None:
        confinement.measure()
        _prepare_memory()
        channel.send({"layers": [f"wasmtime {host.version}"]})
        _serve(control, confinement, os.fork, supervise)

    try:
        host = Host(given)
        host.run(_IMPORTED, serve)
    except (OSError, ImportError) as error:
        channel.send({"error": str(error)})


def _prepare_memory() -> None:
    if sys.platform == "linux":
        from .kernel import share_one_arena

        share_one_arena()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page


def _enter_namespaces() -> bool:
    from .namespaces import enter_namespaces

    try:
        enter_namespaces()
    except OSError:
        return False
    first = os.fork()
    if first == 0:
        from .kernel import die_with_parent

        die_with_parent()
        return True
    os.closerange(3, 4096)
    os.waitpid(first, 0)
    os._exit(0)


def _forking(inside: bool) -> Callable[[], int]:
    if not inside:
        return os.fork
    from .namespaces import ProcessNamespaces

    try:
        return ProcessNamespaces().fork
    except OSError:  # no /proc: then all programs share this server's namespace
        return os.fork


@final
@dataclass(frozen=True)
class _Job:
    """A supervisor at work, and the socket that it answers on."""

    answer_on: int
    cpu_seconds: float
    end: float


@final
class _Jobs:
    """Supervisors at work. None is waited for longer than its program can take.

    Each watches over itself as long as its Python runs; tests that compute without end within one
    call of C keep it from that, and are ended from here.
    """

    def __init__(self) -> None:
        self._running: dict[int, _Job] = {}

    def add(self, pid: int, message: bytes, answer_on: int) -> None:
        cpu_seconds, wall_seconds = REQUEST.unpack(message)
        end = time.monotonic() + wall_seconds + _SLACK_SECONDS
        self._running[pid] = _Job(answer_on, cpu_seconds + _SLACK_SECONDS, end)

    def forget_those_that_ended(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, used = os.wait4(-1, os.WNOHANG)
                if not pid:
                    return
                job = self._running.pop(pid, None)
                if job is None:
                    continue
                if status:  # it has not answered
                    _answer_for(job, used.ru_utime + used.ru_stime)
                os.close(job.answer_on)

    def end_those_that_take_too_long(self) -> None:
        now = time.monotonic()
        for pid, job in self._running.items():
            if now > job.end or _cpu_seconds(pid) > job.cpu_seconds:
                os.kill(pid, signal.SIGKILL)


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):  # it has just ended
        return processor_time(pid)
    return 0.0


def _answer_for(job: _Job, cpu_seconds: float) -> None:
    late = cpu_seconds > job.cpu_seconds or time.monotonic() > job.end
    status, detail = (
        ("timeout", "the tests took too long") if late else ("killed", "its supervisor was ended")
    )
    seconds = {"seconds": cpu_seconds, "cpu_seconds": cpu_seconds}
    channel = Channel.of(job.answer_on)
    with contextlib.suppress(Ended):
        channel.send({"status": status, "detail": detail, **seconds})
        channel.send_bytes(b"")


def _serve(
    control: socket.socket, confinement: Confinement, fork: Callable[[], int], supervise: Supervise
) -> None:
    if sys.platform == "linux":  # not earlier: it would not let itself into a namespace
        from .kernel import hide_memory

        hide_memory()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    jobs = _Jobs()
    while True:
        ready = poll.poll(_NOTICE_SECONDS * 1000)
        jobs.forget_those_that_ended()
        jobs.end_those_that_take_too_long()
        if not ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1)
        if not message:
            _end_all()
        if not descriptors:
            continue
        pid = fork()
        if pid == 0:
            _become(supervise, descriptors[0], confinement)
        jobs.add(pid, message, descriptors[0])


def _become(supervise: Supervise, descriptor: int, confinement: Confinement) -> None:
    try:
        close_all_but(0, 1, 2, descriptor)
        if sys.platform == "linux":
            from .kernel import die_with_parent

            die_with_parent()
        supervise(socket.socket(fileno=descriptor), confinement)
    except Becomes:  # one of its forks; it is not the supervisor any more
        raise
    except (Ended, MalformedMessageError):  # who asked is gone
        pass
    except BaseException:
        os._exit(1)
    os._exit(0)


def _end_all() -> None:
    """End, and with this process its supervisors, and with them their programs."""
    if sys.platform != "linux":
        os.killpg(0, signal.SIGKILL)
    os._exit(0)
