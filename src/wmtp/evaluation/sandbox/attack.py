"""A program that tries to get out of the sandbox; it says which attempts succeeded.

Run as a script: standard input names a canary file, a port, sockets and a harmless program. Each
attempt is harmless where it succeeds. ``done`` is printed last, by a program that is still itself.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any


def _read_outside(target: dict[str, Any]) -> None:
    with open(target["canary"]) as file:
        file.read()


def _list_outside(target: dict[str, Any]) -> None:
    os.listdir(os.path.dirname(target["canary"]))


def _write_outside(target: dict[str, Any]) -> None:
    with open(target["canary"] + ".written", "w") as file:
        file.write("x")


def _remove_outside(target: dict[str, Any]) -> None:
    os.unlink(target["canary"] + ".removable")


def _change_outside(target: dict[str, Any]) -> None:
    os.chmod(target["canary"], 0o600)
    if os.stat(target["canary"]).st_mode & 0o777 != 0o600:
        raise OSError  # WebAssembly's says yes and does nothing


def _connect_over_ip(target: dict[str, Any]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect(("127.0.0.1", target["port"]))


def _connect_by_path(target: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect(target["socket"])


def _send_by_path(target: dict[str, Any]) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"x", target["datagrams"])


def _fork(target: dict[str, Any]) -> None:
    if os.fork() == 0:
        os._exit(0)


def _see_other_processes(target: dict[str, Any]) -> None:
    os.kill(-1, 0)


def _trace(target: dict[str, Any]) -> None:
    import ctypes  # WebAssembly has none

    library = ctypes.CDLL(None)
    if sys.platform == "darwin":
        task, own = ctypes.c_uint(), ctypes.c_uint.in_dll(library, "mach_task_self_")
        _succeed(library.task_for_pid(own, os.getppid(), ctypes.byref(task)))
    else:
        _succeed(library.ptrace(0, 0, 0, 0))


def _enter_a_namespace(target: dict[str, Any]) -> None:
    import ctypes

    _succeed(ctypes.CDLL(None).unshare(0x10000000))


def _kill_the_parent(target: dict[str, Any]) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def _succeed(result: int) -> None:
    if result != 0:
        raise OSError


ATTEMPTS: tuple[Callable[[dict[str, Any]], None], ...] = (
    _read_outside,
    _list_outside,
    _write_outside,
    _remove_outside,
    _change_outside,
    _connect_over_ip,
    _connect_by_path,
    _send_by_path,
    _fork,
    _see_other_processes,
    _trace,
    _enter_a_namespace,
    _kill_the_parent,
)


def _main() -> None:
    target = json.loads(sys.stdin.read())
    for attempt in ATTEMPTS:
        try:
            attempt(target)
        except BaseException:
            continue
        print(attempt.__name__.strip("_"), flush=True)
    try:
        os.execv(target["program"], ["true"])
    except (OSError, AttributeError):
        print("done", flush=True)


if __name__ == "__main__":
    _main()
