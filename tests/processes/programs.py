"""Starts ``wmtp`` as a real process, from scratch or forked from one that has torch already."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from .running import Running, reaper

SERVER = Path(__file__).with_name("fork_server.py")


class ForkServer:
    """The other end of ``fork_server.py``, which ends when this process does."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._answer()["ready"] == self._process.pid

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def reap(self, pid: int, seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        while _is_running(pid):  # the server can do nothing else while it waits
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)
        return int(self.ask({"wait": pid})["status"])

    def _answer(self, seconds: float = 120.0) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], seconds)[0], "the fork server hangs"
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@cache
def the_fork_server() -> ForkServer:
    """One for all tests of this process: it takes seconds to start."""
    return ForkServer()


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


class Programs:
    """Starts ``wmtp`` in a folder, where what it says is kept too, in ``NAME-0001.txt`` and on."""

    def __init__(self, folder: Path, name: str = "output") -> None:
        self.folder = folder
        self._name = name
        self._count = 0

    def fork(self, *arguments: str, **request: Any) -> Running:
        """Start by the fork server; ``request`` may hold what ``fork_server.become`` knows."""
        output, server = self._output(), the_fork_server()
        answer = server.ask(
            {"start": arguments, "cwd": str(self.folder), "output": str(output)} | request
        )
        pid = answer["pid"]
        return Running(pid, output, lambda seconds: server.reap(pid, seconds))

    def real(self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> Running:
        """Start ``python -m wmtp``, with one thread for torch as a forked one has: sums of more
        threads are added in another order.
        """
        output = self._output()
        with output.open("w") as file:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "wmtp", *arguments],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                # a shell's background job ignores Ctrl-C
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

        return Running(process.pid, output, reaper(process))

    def _output(self) -> Path:
        self._count += 1
        output = self.folder / f"{self._name}-{self._count:04d}.txt"
        output.touch()
        return output
