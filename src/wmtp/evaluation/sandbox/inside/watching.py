"""What a program's processes have used of their limits, and what they say until they end."""

import contextlib
import functools
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn, final

from .folders import holds_too_much
from .processes import processor_time

TICK_SECONDS: Final = 0.05
TESTS_MEMORY_BYTES: Final = 1 << 30
_PIECE: Final = 1 << 16
_IDLE_SHARE: Final = 0.01
_SHORTEST_WINDOW_SECONDS: Final = 0.5

Result = dict[str, Any]


@final
class Run:
    """The processes of one program and what they have used.

    Args:
        limits: of the request.
        folder: whose files are watched, if any.
        memory: bytes that Python alone uses, where memory is watched.
    """

    def __init__(self, limits: dict[str, Any], folder: str | None, memory: int) -> None:
        self.limits = limits
        self._memory = memory
        self._parent = os.getppid()
        self.program = self.tests = 0
        self.exit_code: int | None = None
        self.draining: dict[int, Callable[[bytes], None] | None] = {}
        self._folder = folder
        self._counted: set[int] = set()
        self._output_bytes = 0
        self._started = time.monotonic()
        self._used_before: list[tuple[float, float]] = []
        self._cpu_seconds = 0.0
        self._to_feed = memoryview(b"")

    @functools.cached_property
    def _selector(self) -> selectors.BaseSelector:
        return selectors.DefaultSelector()

    def count_output(self, size: int) -> None:
        """So many bytes more were printed."""
        self._output_bytes += size

    def drain(
        self, descriptor: int, take: Callable[[bytes], None] | None, counted: bool = True
    ) -> None:
        """Read a descriptor to its end while watching."""
        self.draining[descriptor] = take
        if counted:
            self._counted.add(descriptor)
        self._selector.register(descriptor, selectors.EVENT_READ, self._read)

    def feed(self, descriptor: int, content: bytes) -> None:
        """Write to a descriptor while watching, then close it."""
        self._to_feed = memoryview(content)
        os.set_blocking(descriptor, False)
        self._selector.register(descriptor, selectors.EVENT_WRITE, self._write)

    def watch(self, job: socket.socket | None, until: Callable[[], bool]) -> Result | None:
        """Wait for an end; gives a result if a limit is what ended it.

        Args:
            job: who asked; no more is expected from there but its end.
            until: whether the end is reached.
        """
        if job is not None:
            self._selector.register(job, selectors.EVENT_READ, self._abandoned)
        with _end_of(self.program) as ended:
            if ended is not None:
                self._selector.register(
                    ended, selectors.EVENT_READ, lambda _: self._unregister(ended)
                )
            while True:
                for key, _ in self._selector.select(TICK_SECONDS):
                    key.data(key.fd)
                self.reap()
                if until():
                    return None
                if sys.platform == "darwin" and os.getppid() != self._parent:
                    self._abandoned(-1)  # elsewhere the kernel ends it with its parent
                broken = self.broken_limit()
                if broken is not None:
                    return self.result(*broken)

    def _unregister(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def _abandoned(self, descriptor: int) -> NoReturn:
        self.kill()
        os._exit(1)

    def _read(self, descriptor: int) -> None:
        part = os.read(descriptor, _PIECE)
        take = self.draining[descriptor]
        if not part:
            self._selector.unregister(descriptor)
            del self.draining[descriptor]
            os.close(descriptor)
            return
        if descriptor in self._counted:
            self._output_bytes += len(part)
        if take is not None:
            take(part)

    def _write(self, descriptor: int) -> None:
        try:
            self._to_feed = self._to_feed[os.write(descriptor, self._to_feed[:_PIECE]) :]
        except BrokenPipeError:
            self._to_feed = self._to_feed[:0]
        if not self._to_feed:
            self._selector.unregister(descriptor)
            os.close(descriptor)

    def reap(self) -> None:
        """Note the end of the program's process, if it has come."""
        if self.exit_code is None:
            pid, status, used = os.wait4(self.program, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
                self._cpu_seconds += used.ru_utime + used.ru_stime

    def broken_limit(self) -> tuple[str, str] | None:
        """Status and detail of the first limit that was passed, if any was."""
        limits = self.limits
        wall, cpu = time.monotonic() - self._started, self.cpu_seconds()
        printed = self.too_much_output()
        if printed is not None:
            return printed
        if cpu > limits["cpu_seconds"]:
            return "timeout", f"used {limits['cpu_seconds']:g} s of processor time"
        if wall > limits["wall_seconds"]:
            return "timeout", f"took {limits['wall_seconds']:g} s"
        if wall > limits["cpu_seconds"] and self._waits(wall, cpu):
            return "timeout", f"waited for {limits['cpu_seconds']:g} s"
        if sys.platform == "darwin" and self._takes_too_much_memory():
            return "memory", "used more memory than it may"
        if self._folder is not None and holds_too_much(self._folder, limits):
            return "output", "wrote more files than it may"
        return None

    def too_much_output(self) -> tuple[str, str] | None:
        """Status and detail, if more was printed than may be."""
        most = self.limits["output_bytes"]
        return ("output", f"printed more than {most} bytes") if self._output_bytes > most else None

    def _waits(self, wall: float, cpu: float) -> bool:
        """Whether nearly nothing was computed of late: then more time would change nothing."""
        window = max(self.limits["cpu_seconds"], _SHORTEST_WINDOW_SECONDS)
        before = self._used_before
        while len(before) > 1 and before[1][0] <= wall - window:
            del before[0]
        before.append((wall, cpu))
        since, used = before[0]
        return wall - since >= window * 0.9 and cpu - used < _IDLE_SHARE * (wall - since)

    def cpu_seconds(self) -> float:
        """Processor time of both processes so far."""
        total = self._cpu_seconds
        for pid in (self.program if self.exit_code is None else 0, self.tests):
            if pid:
                with contextlib.suppress(OSError):  # it has just ended
                    total += processor_time(pid)
        return total

    def _takes_too_much_memory(self) -> bool:
        from .darwin import usage_of

        most = {self.tests: TESTS_MEMORY_BYTES}
        if self.exit_code is None:
            most[self.program] = self.limits["memory_bytes"]
        for pid, bytes_more in most.items():
            if pid:
                with contextlib.suppress(OSError):
                    if usage_of(pid)[1] > self._memory + bytes_more:
                        return True
        return False

    def result(self, status: str, detail: str, **more: Any) -> Result:
        """What is reported."""
        seconds = time.monotonic() - self._started
        used = {"seconds": seconds, "cpu_seconds": self.cpu_seconds()}
        return {"status": status, "detail": detail, **used, **more}

    def explain_end(self, detail: str) -> Result:
        """The result for a program whose process is no more."""
        end = time.monotonic() + 1.0
        while self.exit_code is None and time.monotonic() < end:
            self.reap()
            time.sleep(0.001)
        if self.exit_code is None:
            return self.result("killed", f"{detail}: it closed the way to it")
        if self.exit_code < 0:
            return self.ended_by_signal(-self.exit_code)
        return self.result("killed", f"{detail}: exit code {self.exit_code}")

    def ended_by_signal(self, number: int) -> Result:
        """The result for a program that a signal ended."""
        if number == signal.SIGXCPU or self.cpu_seconds() > self.limits["cpu_seconds"]:
            return self.result("timeout", "used its processor time")
        return self.result("killed", f"ended by signal {number} ({signal.strsignal(number)})")

    def kill(self) -> None:
        """End both processes, if they still are."""
        for pid in (self.program if self.exit_code is None else 0, self.tests):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        self.program = self.tests = 0
        self.exit_code = self.exit_code or 0


@contextlib.contextmanager
def _end_of(pid: int) -> Any:
    """A descriptor that can be read when a process has ended, where the system has such."""
    descriptor = None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)
