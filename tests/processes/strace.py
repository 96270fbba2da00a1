"""System calls of a forked run, seen and spoiled by ``strace``."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .programs import Programs
from .running import Running


def can_trace() -> bool:
    """Whether ``strace`` is there and may attach to a process here."""
    sleeper = subprocess.Popen(["sleep", "10"])
    try:
        command = ["strace", "-e", "inject=all:signal=KILL", "-p", str(sleeper.pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
            tracer.wait(5)
        return sleeper.wait(5) == -signal.SIGKILL
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        sleeper.kill()
        sleeper.wait()


@contextmanager
def traced(programs: Programs, *arguments: str, rules: tuple[str, ...]) -> Iterator[Running]:
    """A forked run whose system calls ``strace`` sees, and spoils, from its first line on.

    Args:
        programs: where it runs; the calls are written to ``strace.txt`` there.
        arguments: of wmtp.
        rules: each goes behind ``-e``, such as ``inject=fsync:signal=KILL:when=3``; a count is
            each thread's own.
    """
    gate = programs.folder / "gate"
    gate.unlink(missing_ok=True)
    os.mkfifo(gate)
    run = programs.fork(*arguments, gate=str(gate))
    log = programs.folder / "strace.txt"
    options = [option for rule in rules for option in ("-e", rule)]
    tracer = subprocess.Popen(
        ["strace", "-f", "-y", "-qq", "-o", str(log), *options, "-p", str(run.pid)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not _is_traced(run.pid):
        assert tracer.poll() is None, "strace could not attach"
        time.sleep(0.002)
    gate.write_text("go")
    run.started = time.monotonic()
    try:
        yield run
    finally:
        if tracer.poll() is None and run.reap(0) is None:
            run.kill()
        tracer.communicate(timeout=20)


def _is_traced(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return re.search(r"^TracerPid:\s*[1-9]", status, re.MULTILINE) is not None
