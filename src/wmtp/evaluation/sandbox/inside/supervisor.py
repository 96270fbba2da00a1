"""One program's supervisor: starts its process and that of the tests, watches, and reports.

It is the first process of a process namespace where there are such; otherwise its children die with
it. What the program's process inherits from it holds no tests: they come later, and to the other
child.
"""

import contextlib
import io
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Final, NoReturn, final

from . import program_side, tests_side
from .confinement import NAMESPACES, WASM, Confinement
from .frames import Channel, Ended
from .wasm.becoming import Becomes

_TICK_SECONDS: Final = 0.05
_PIECE: Final = 1 << 16
_LAST_WORDS: Final = 2_000
_IDLE_SHARE: Final = 0.01
_SHORTEST_WINDOW_SECONDS: Final = 0.5
_TESTS_MEMORY_BYTES: Final = 1 << 30
_PARTS_OF_A_SHARED_DISK: Final = 16

Result = dict[str, Any]


def supervise(job: socket.socket, confinement: Confinement) -> None:
    """Judge the program that a socket brings, and answer on it."""
    channel = Channel.of(job.fileno())
    request = channel.receive()
    source, stdin = channel.receive(), channel.receive_bytes()
    folder, own_disk = _make_folder(confinement, request["limits"])
    if not own_disk:  # open files that have no name any more are found by nobody
        request["limits"]["largest_file_bytes"] //= _PARTS_OF_A_SHARED_DISK
    run = _Run(request["limits"], None if own_disk else folder, confinement.memory)
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
    output = result.pop("output", b"")
    channel.send(result)
    channel.send_bytes(output)


def _clean_up(run: "_Run", folder: str | None) -> None:
    run.kill()
    if folder is not None:
        _remove(folder)


def _run_script(
    run: "_Run",
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
        _take_over(standard_in, standard_out, standard_error)
        program_side.close_all_but(0, 1, 2)
        _settle(confinement, run.limits, folder)
        if WASM in confinement.layers:
            raise Becomes("script", source, run.limits, {})
        return program_side.run_with_standard_input(source)

    run.program = _fork(program)
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


def _run_tests(
    run: "_Run", confinement: Confinement, folder: str, source: str, job: socket.socket
) -> Result:
    ours, theirs = socket.socketpair()
    out, standard_out = os.pipe()

    def program() -> int:
        _take_over(_nothing(), standard_out, standard_out)
        program_side.close_all_but(0, 1, 2, theirs.fileno())
        _settle(confinement, run.limits, folder)
        if WASM in confinement.layers:
            both = theirs.fileno(), theirs.fileno()
            raise Becomes("program", source, run.limits, {"program": both})
        program_side.serve_tests(source, Channel.of(theirs.fileno()))
        return 0

    run.program = _fork(program)
    theirs.close()
    os.close(standard_out)
    verdict, writing = os.pipe()

    def tests() -> int:
        nothing = _nothing()
        _take_over(nothing, nothing, nothing)
        program_side.close_all_but(0, 1, 2, ours.fileno(), job.fileno(), writing)
        limits = {**run.limits, "memory_bytes": _TESTS_MEMORY_BYTES}
        _settle(confinement, limits, folder)
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

    run.tests = _fork(tests)
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


@final
class _Run:
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
        self._selector = selectors.DefaultSelector()
        self._to_feed = memoryview(b"")

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
                for key, _ in self._selector.select(_TICK_SECONDS):
                    key.data(key.fd)
                self._reap()
                if until():
                    return None
                if sys.platform == "darwin" and os.getppid() != self._parent:
                    self._abandoned(-1)  # elsewhere the kernel ends it with its parent
                broken = self._broken_limit()
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

    def _reap(self) -> None:
        if self.exit_code is None:
            pid, status, used = os.wait4(self.program, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
                self._cpu_seconds += used.ru_utime + used.ru_stime

    def _broken_limit(self) -> tuple[str, str] | None:
        limits = self.limits
        wall, cpu = time.monotonic() - self._started, self.cpu_seconds()
        if self._output_bytes > limits["output_bytes"]:
            return "output", f"printed more than {limits['output_bytes']} bytes"
        if cpu > limits["cpu_seconds"]:
            return "timeout", f"used {limits['cpu_seconds']:g} s of processor time"
        if wall > limits["wall_seconds"]:
            return "timeout", f"took {limits['wall_seconds']:g} s"
        if wall > limits["cpu_seconds"] and self._waits(wall, cpu):
            return "timeout", f"waited for {limits['cpu_seconds']:g} s"
        if sys.platform == "darwin" and self._takes_too_much_memory():
            return "memory", "used more memory than it may"
        if self._folder is not None and _too_much(self._folder, limits):
            return "output", "wrote more files than it may"
        return None

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
                    total += _processor_time(pid)
        return total

    def _takes_too_much_memory(self) -> bool:
        from .darwin import usage_of

        most = {self.tests: _TESTS_MEMORY_BYTES}
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
            self._reap()
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


# processes ----------------------------------------------------------------------------------------


def _fork(body: Callable[[], int]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if sys.platform == "linux":
            from .kernel import die_with_parent

            die_with_parent()
            if os.getppid() != parent:  # it died before it could take this one along
                os._exit(1)
        code = body()
    except Becomes:
        raise
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc(limit=-3)
            sys.stderr.flush()
    os._exit(code)


def _processor_time(pid: int) -> float:
    """What a child has used so far, in seconds.

    Raises:
        OSError: it has ended.
    """
    if sys.platform == "darwin":
        from .darwin import usage_of

        return usage_of(pid)[0]
    return time.clock_gettime(((~pid) << 3) | 2)


def _settle(confinement: Confinement, limits: dict[str, Any], folder: str) -> None:
    """Make this process the program's: its folder, its streams, its cage."""
    os.chdir(folder)
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(HOME=folder, TMPDIR=folder, LANG="C.UTF-8", PATH="")
    # the server's own streams serve on: nothing was read or written, and new ones take a tenth of
    # the time that a program does
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    confinement.apply(limits, folder)


def _take_over(standard_in: int, standard_out: int, standard_error: int) -> None:
    # first out of the way of 0, 1 and 2 themselves
    high = [os.dup(number) for number in (standard_in, standard_out, standard_error)]
    for number, copy in enumerate(high):
        os.dup2(copy, number)


def _nothing() -> int:
    return os.open("/dev/null", os.O_RDWR)


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


def _reader(content: bytes) -> Callable[[int], bytes]:
    rest = memoryview(content)

    def read(count: int) -> bytes:
        nonlocal rest
        part, rest = rest[:count], rest[count:]
        return bytes(part)

    return read


# files -------------------------------------------------------------------------------------------


def _make_folder(confinement: Confinement, limits: dict[str, Any]) -> tuple[str, bool]:
    """A program's folder, and whether it is a file system of its own."""
    if WASM in confinement.layers:  # its files are in the instance's own process
        return confinement.work, True
    if NAMESPACES in confinement.layers:
        from .namespaces import mount_work_folder

        try:
            mount_work_folder(confinement.work, limits["file_bytes"], limits["files"])
        except OSError:
            pass
        else:
            return confinement.work, True
    folder = os.path.join(confinement.work, f"{os.getpid()}-{time.monotonic_ns()}")
    os.mkdir(folder, 0o700)
    return folder, False


def _too_much(folder: str, limits: dict[str, Any]) -> bool:
    files = size = 0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            files += 1
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_blocks * 512
            if files > limits["files"] or size > limits["file_bytes"]:
                return True
    return False


def _remove(folder: str) -> None:
    for place, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
