"""A program that tries to get out of the sandbox; it says which attempts succeeded.

Run as a script: standard input names a canary file, a port, a socket and a size. Each attempt is
harmless where it succeeds. ``done`` is printed last, by a program that is still itself.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable


def read_outside(target: dict) -> None:
    with open(target["canary"]) as file:
        file.read()


def list_outside(target: dict) -> None:
    os.listdir(os.path.dirname(target["canary"]))


def write_outside(target: dict) -> None:
    with open(target["canary"] + ".written", "w") as file:
        file.write("x")


def remove_outside(target: dict) -> None:
    os.unlink(target["canary"] + ".removable")


def change_outside(target: dict) -> None:
    os.chmod(target["canary"], 0o600)


def connect_over_ip(target: dict) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect(("127.0.0.1", target["port"]))


def connect_by_path(target: dict) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect(target["socket"])


def send_by_path(target: dict) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"x", target["datagrams"])


def fork(target: dict) -> None:
    if os.fork() == 0:
        os._exit(0)


def see_other_processes(target: dict) -> None:
    os.kill(-1, 0)


def trace(target: dict) -> None:
    _succeed(ctypes.CDLL(None).ptrace(0, 0, 0, 0))


def enter_a_namespace(target: dict) -> None:
    _succeed(ctypes.CDLL(None).unshare(0x10000000))


def take_memory(target: dict) -> None:
    bytearray(target["bytes"])


def kill_the_parent(target: dict) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def _succeed(result: int) -> None:
    if result != 0:
        raise OSError


ATTEMPTS: tuple[Callable[[dict], None], ...] = (
    read_outside, list_outside, write_outside, remove_outside, change_outside, connect_over_ip,
    connect_by_path, send_by_path, fork, see_other_processes, trace, enter_a_namespace, take_memory,
    kill_the_parent,
)  # fmt: skip


def main() -> None:
    target = json.loads(sys.stdin.read())
    for attempt in ATTEMPTS:
        try:
            attempt(target)
        except BaseException:
            continue
        print(attempt.__name__, flush=True)
    try:
        os.execv("/bin/true", ["true"])
    except OSError:
        print("done", flush=True)


if __name__ == "__main__":
    main()
