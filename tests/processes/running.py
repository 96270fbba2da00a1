"""A process that was started, and what it leaves behind."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Running:
    """A run of ``wmtp`` that was started.

    Attributes:
        pid: of a real process, leader of a session of its own.
        output: file of what it says.
        ended: waits for its end so many seconds; the exit code, minus the signal's number if one
            ended it, or None if it still runs.
        started: when, on the monotonic clock.
        code: its exit code, once it was reaped.
    """

    pid: int
    output: Path
    ended: Callable[[float], int | None]
    started: float = field(default_factory=time.monotonic)
    code: int | None = None

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        # until it is reaped its number belongs to nobody else
        os.kill(self.pid, number)

    def reap(self, seconds: float) -> int | None:
        """Wait so long; its exit code, None if it still runs."""
        if self.code is None:
            self.code = self.ended(seconds)
        return self.code

    def wait(self, seconds: float = 120.0) -> int:
        code = self.reap(seconds)
        if code is None:
            self.kill()
            self.reap(10.0)
            raise AssertionError(f"still running after {seconds} s:\n{self.said}")
        return code

    def left_behind(self, seconds: float = 0.0) -> list[int]:
        """Processes of its session that still live so many seconds after its end."""
        deadline = time.monotonic() + seconds
        while (left := _session(self.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


def reaper(process: "subprocess.Popen[Any]") -> Callable[[float], int | None]:
    """Waits for a process of ours so many seconds; its exit code, None if it still runs."""

    def reap(seconds: float) -> int | None:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return reap


def _session(leader: int) -> list[int]:
    members = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                status = Path("/proc", name, "stat").read_text()
            except OSError:  # it ended meanwhile
                continue
            state, _, _, session = status.rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                members.append(int(name))
    return members


def ownerless_memory(since: float, patience: float = 20.0) -> set[str]:
    """What was made in /dev/shm since then and is mapped by no process any more.

    Other programs of this machine put theirs there too, but are alive, or were killed and are
    about to be cleaned up after: hence the patience.
    """
    deadline = time.monotonic() + patience
    while (
        left := {
            path.name
            for path in Path("/dev/shm").iterdir()
            if path.exists() and path.stat().st_mtime >= since and path.stat().st_uid == os.getuid()
        }
        - _mapped_memory()
    ):
        if time.monotonic() > deadline:
            return left
        time.sleep(0.1)
    return set()


def _mapped_memory() -> set[str]:
    names: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            names |= set(re.findall(r"/dev/shm/(\S+)", (process / "maps").read_text()))
    return names
