"""Judging: programs in, verdicts out."""

import atexit
import contextlib
import functools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self, final

from wmtp.errors import ConfigError, SandboxError
from wmtp.evaluation.sandbox.isolation import UNSAFE, Isolation
from wmtp.evaluation.sandbox.self_attack import successful_attacks
from wmtp.evaluation.sandbox.server import Server
from wmtp.evaluation.sandbox.turns import Turns
from wmtp.evaluation.sandbox.verdict import Case, Kind, Limits, Tests, Verdict
from wmtp.evaluation.sandbox.ways import REMEDY, Way, candidates, way_called

_WALL_FACTOR: Final = 2.0
# a program that waits for nothing is ended earlier; this is for a machine with much other work
_WALL_FACTOR_ALONE: Final = 12.0
_WALL_SECONDS_AT_LEAST: Final = 1.0


@final
class Judge:
    """A sandbox that has withstood an attack and judges programs, from any number of threads.

    Args:
        unsafe: judge although programs can do whatever you can; written into every verdict.
        isolation: how to confine them: kernel, bubblewrap, seatbelt or wasm; by default the first
            of these that withstands the attack here.
        isolations: the same for one's own, tried in this order.

    Raises:
        SandboxError: nothing here confines programs; one line says why, one what to do.
        ConfigError: there is no such isolation, or it was to be none at all.

    Example:
        >>> with Judge() as judge:
        ...     judge.judge("def double(x): return 2 * x", "assert double(2) == 4").status
        'passed'
    """

    def __init__(
        self,
        *,
        unsafe: bool = False,
        isolation: str | None = None,
        isolations: Sequence[Isolation] | None = None,
    ) -> None:
        self._turns = Turns()
        self._slowness = 1.0
        if unsafe:
            if isolation is not None:
                raise ConfigError(f"isolation {isolation} and unsafe exclude each other. Use one.")
            self._server, self.isolation = Server(UNSAFE), UNSAFE.name
            return
        reasons = []
        for way in _ways(isolation, isolations):
            try:
                tried = way()
                self._server = Server(tried)
            except SandboxError as error:
                reasons.append(str(error))
                continue
            self._slowness = tried.slowness
            self.isolation = f"{tried.name}: {', '.join(self._server.layers)}"
            broken = successful_attacks(self._run_script)
            if not broken:
                return
            self._server.close()
            reasons.append(f"{tried.name}: a program could {', '.join(broken)}")
        told = "; ".join(reasons) or "this system has no way to do it"
        raise SandboxError(f"Programs cannot be confined here ({told}).\n{REMEDY}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the sandbox and whatever still runs in it."""
        self._server.close()

    def judge(
        self, program: str, tests: Tests, kind: Kind = "assert", limits: Limits | None = None
    ) -> Verdict:
        """Judge one program; see ``wmtp.evaluation.judge``."""
        limits = limits or Limits()
        if kind == "assert":
            if not isinstance(tests, str) or not tests.strip():
                raise ValueError("tests of kind assert are Python, and not empty")
            return self._judge_asserts(program, tests, limits)
        if kind != "stdio":
            raise ValueError(f"kind is {kind!r}: assert or stdio")
        pairs = _pairs(tests)
        seconds = cpu_seconds = 0.0
        attempts = 1
        for number, (stdin, expected) in enumerate(pairs, 1):
            verdict, printed = self._judge_run("stdio", program, stdin, None, limits)
            if verdict.passed and not same_output(printed, expected):
                verdict = replace(verdict, status="failed", detail="another output")
            seconds += verdict.seconds
            cpu_seconds += verdict.cpu_seconds
            attempts = max(attempts, verdict.attempts)
            if not verdict.passed:
                detail = f"test {number} of {len(pairs)}: {verdict.detail}"
                return replace(verdict, detail=detail, seconds=seconds, cpu_seconds=cpu_seconds)
        return Verdict("passed", "", seconds, cpu_seconds, self.isolation, attempts)

    def judge_many(self, cases: Iterable[Case], workers: int = 1) -> Iterator[tuple[Case, Verdict]]:
        """Judge cases on several processors; each comes with its verdict as soon as it has one.

        Cases are taken when there is a worker for them; the order is that of the verdicts.
        """
        if workers < 1:
            raise ValueError(f"workers is {workers}: at least 1 is needed")
        pool = ThreadPoolExecutor(workers, thread_name_prefix="judge")
        running: dict[Future[Verdict], Case] = {}
        try:
            for case in cases:
                given = (case.program, case.tests, case.kind, case.limits)
                running[pool.submit(self.judge, *given)] = case
                if len(running) > workers:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:  # one who stops early closes the judge: then what runs ends at once
            pool.shutdown(wait=False, cancel_futures=True)

    def _judge_asserts(self, program: str, tests: str, limits: Limits) -> Verdict:
        return self._judge_run("assert", program, "", tests, limits)[0]

    def _judge_run(
        self, kind: Kind, program: str, stdin: str, tests: str | None, limits: Limits
    ) -> tuple[Verdict, str]:
        """One run, and a second with nothing beside it where the first took too long."""
        with self._turns.shared():
            first = self._run(kind, program, stdin, tests, limits, _WALL_FACTOR)
        if first is not None and first[0].status != "timeout":
            return first
        with self._turns.alone():
            second = self._run(kind, program, stdin, tests, limits, _WALL_FACTOR_ALONE)
        if second is None:
            lost = Verdict("killed", "its supervisor was ended", 0.0, 0.0, self.isolation, 2)
            return lost, ""
        return second[0].with_attempts(2), second[1]

    def _run(
        self, kind: Kind, program: str, stdin: str, tests: str | None, limits: Limits, factor: float
    ) -> tuple[Verdict, str] | None:
        seconds = limits.seconds * self._slowness
        request = {"kind": kind, "limits": _as_message(limits, seconds, factor)}
        given = stdin.encode("utf-8", "surrogatepass")
        answer = self._server.run(request, program, given, tests)
        if answer is None:
            return None
        told, printed = answer
        verdict = Verdict(
            told["status"], told["detail"], told["seconds"], told["cpu_seconds"], self.isolation
        )
        return verdict, printed.decode("utf-8", "replace")

    def _run_script(self, program: str, stdin: str, limits: Limits) -> tuple[Verdict, str]:
        return self._judge_run("stdio", program, stdin, None, limits)


def _ways(isolation: str | None, isolations: Sequence[Isolation] | None) -> list[Way]:
    if isolations is not None:
        return [functools.partial(_itself, one) for one in isolations]
    return candidates() if isolation is None else [way_called(isolation)]


def _itself(isolation: Isolation) -> Isolation:
    return isolation


def _as_message(limits: Limits, seconds: float, factor: float) -> dict[str, Any]:
    return {
        "cpu_seconds": seconds,
        "wall_seconds": max(_WALL_SECONDS_AT_LEAST, seconds) * factor,
        "memory_bytes": limits.memory_mb << 20,
        "output_bytes": limits.output_bytes,
        "files": limits.files,
        "file_bytes": limits.file_bytes,
        "largest_file_bytes": limits.file_bytes,
    }


def _pairs(tests: Tests) -> list[tuple[str, str]]:
    pairs = [] if isinstance(tests, str) else [(given, expected) for given, expected in tests]
    if not pairs:
        raise ValueError("tests of kind stdio are pairs of input and output, at least one")
    return pairs


def same_output(printed: str, expected: str) -> bool:
    r"""Whether two outputs are equal but for spaces at the ends of lines and lines at the end.

    Example:
        >>> same_output("1 2 \r\n3\n\n", "1 2\n3")
        True
        >>> same_output("12", "1 2")
        False
    """
    return _lines(printed) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")]


def _finished(running: dict[Future[Verdict], Case]) -> Iterator[tuple[Case, Verdict]]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        yield running.pop(future), future.result()


# one judge for the whole process ------------------------------------------------------------------

_common: dict[tuple[int, bool], Judge] = {}
_common_lock = threading.Lock()


def judge(
    program: str,
    tests: Tests,
    kind: Kind = "assert",
    limits: Limits | None = None,
    unsafe: bool = False,
) -> Verdict:
    """Run a program that nobody has read, confined, and say whether it meets its tests.

    The sandbox is started by the first call and kept for those that follow.

    Args:
        program: Python, standard library only.
        tests: for ``assert``, Python that uses what the program defines and raises if it is wrong;
            for ``stdio``, pairs of standard input and expected output.
        kind: of the tests.
        limits: by default ``Limits()``.
        unsafe: run it even where it can do whatever you can.

    Returns:
        The verdict; ``refused`` where programs cannot be confined, with reason and remedy.

    Raises:
        ValueError: tests that are none, or of another kind.

    Example:
        >>> judge("print(int(input()) + 1)", [("1", "2")], kind="stdio").status
        'passed'
    """
    try:
        with _common_lock:
            key = (os.getpid(), unsafe)
            if key not in _common:
                _common[key] = Judge(unsafe=unsafe)
        return _common[key].judge(program, tests, kind, limits)
    except SandboxError as error:
        with _common_lock:
            _common.pop(key, None)
        return Verdict("refused", str(error), 0.0, 0.0, "none")


def judge_many(
    cases: Iterable[Case],
    workers: int = 1,
    unsafe: bool = False,
    isolation: str | None = None,
) -> Iterator[tuple[Case, Verdict]]:
    """Judge many cases in one sandbox; see ``Judge`` and ``Judge.judge_many``.

    Raises:
        SandboxError: programs cannot be confined here.
    """
    with Judge(unsafe=unsafe, isolation=isolation) as one:
        yield from one.judge_many(cases, workers)


@atexit.register
def _close_common() -> None:
    for (pid, _), one in list(_common.items()):
        if pid == os.getpid():
            with contextlib.suppress(OSError):
                one.close()
