"""What is said of a program, and what it may use."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, final, get_args

Status = Literal["passed", "failed", "error", "timeout", "memory", "output", "killed", "refused"]
STATUSES: Final[tuple[str, ...]] = get_args(Status)

Kind = Literal["assert", "stdio"]
Tests = str | Sequence[tuple[str, str]]
"""Python that asserts, or pairs of standard input and the output that is expected for it."""


@final
@dataclass(frozen=True)
class Limits:
    """What one run of a program may use; for ``stdio`` each test is a run.

    Attributes:
        seconds: processor time of program and tests together, and how long it may wait for
            nothing. A program that computes is not held responsible for the machine's other work:
            by the clock it may take twice as long, and five times as long when it is judged again.
        memory_mb: MiB that the program may add to Python's own.
        output_bytes: on standard output and standard error together.
        files: files and folders in its own folder.
        file_bytes: in all files together; also the largest size of one.

    A program can start threads, but no processes.
    """

    seconds: float = 3.0
    memory_mb: int = 1024
    output_bytes: int = 4 << 20
    files: int = 256
    file_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < 2**50:
                raise ValueError(f"Limits({name}={value!r}): a number above 0 is needed")


@final
@dataclass(frozen=True)
class Verdict:
    """What came of a program.

    Attributes:
        status: ``passed``; ``failed``, a test's assertion or expected output was not met;
            ``error``, program or tests raised; ``timeout``, ``memory``, ``output``, a limit was
            passed; ``killed``, the program's process ended before the tests did; ``refused``, it
            was not run, because it could not be confined.
        detail: one line for people.
        seconds: by the clock.
        cpu_seconds: of program and tests.
        isolation: what confined it.
        attempts: 2 if a timeout was judged again with nothing beside it.
    """

    status: Status
    detail: str
    seconds: float
    cpu_seconds: float
    isolation: str
    attempts: int = 1

    @property
    def passed(self) -> bool:
        """Whether every test was met."""
        return self.status == "passed"

    def with_attempts(self, attempts: int) -> "Verdict":
        """The same, reached at another attempt."""
        return replace(self, attempts=attempts)


@final
@dataclass(frozen=True)
class Case:
    """A program to be judged.

    Attributes:
        program: Python.
        tests: see ``Tests``.
        kind: which of both they are.
        limits: what a run may use.
        name: whatever the caller knows it by.
    """

    program: str
    tests: Tests
    kind: Kind = "assert"
    limits: Limits = Limits()
    name: object = None
