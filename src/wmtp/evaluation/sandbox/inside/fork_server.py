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
from collections.abc import Callable
from typing import Any, Final

from .confinement import NAMESPACES, WASM, Confinement
from .frames import Channel, Ended, MalformedMessageError
from .shield import shield
from .supervisor import supervise
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
    shield()
    if WASM in confinement.layers:
        _serve_copies_of_an_instance(control, channel, confinement, asked["wasm"])
        return
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


def _serve(
    control: socket.socket, confinement: Confinement, fork: Callable[[], int], supervise: Supervise
) -> None:
    if sys.platform == "linux":  # not earlier: it would not let itself into a namespace
        from .kernel import hide_memory

        hide_memory()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        ready = poll.poll(_NOTICE_SECONDS * 1000)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            _end_all()
        if not descriptors:
            continue
        pid = fork()
        if pid == 0:
            control.close()
            _become(supervise, descriptors[0], confinement)
        os.close(descriptors[0])


def _become(supervise: Supervise, descriptor: int, confinement: Any) -> None:
    try:
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
