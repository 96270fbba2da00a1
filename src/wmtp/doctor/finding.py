"""What a check found, and how findings are told: line by line, and as JSON."""

import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from wmtp.errors import WmtpError
from wmtp.secrets import without_secrets
from wmtp.untrusted import printable

Outcome = Literal["passed", "failed", "not checked"]

_NARROW = 64
_INDENT = 4
_NAME_WIDTH = 22
_OUTCOME_WIDTH = 13


@dataclass(frozen=True)
class Finding:
    """One check's result.

    Attributes:
        name: what was checked, in a few words.
        outcome: ``not checked`` is what could not be asked here; it is never a pass.
        found: one line: what was seen, or why it was not asked.
        group: what it belongs to.
        seconds: how long it took.
        refusal: the user's mistake that it fails for, if it is one.
    """

    name: str
    outcome: Outcome
    found: str
    group: str = ""
    seconds: float = 0.0
    refusal: WmtpError | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(replace(self, refusal=None))
        del values["refusal"]
        return values | {"seconds": round(self.seconds, 2)}


def passed(name: str, found: str) -> Finding:
    """It is as it should be."""
    return Finding(name, "passed", found)


def failed(name: str, found: str) -> Finding:
    """It is not."""
    return Finding(name, "failed", found)


def not_checked(name: str, why: str) -> Finding:
    """It cannot be asked on this machine, or was not asked for."""
    return Finding(name, "not checked", why)


def judged(name: str, holds: bool, found: str) -> Finding:
    """Passed or failed."""
    return Finding(name, "passed" if holds else "failed", found)


def attempt(name: str, check: Callable[[], Finding]) -> Finding:
    """Run a check; whatever it raises is its failure, told in a line.

    A check is there to meet faults that nobody has thought of, on machines that nobody has seen.
    """
    started = time.perf_counter()
    try:
        finding = check()
    except Exception as error:
        finding = failure(name, error)
    return replace(finding, seconds=time.perf_counter() - started)


def failure(name: str, error: Exception) -> Finding:
    """What an error says, as a finding."""
    line = " ".join(without_secrets(str(error)).split())
    if isinstance(error, WmtpError):
        return Finding(name, "failed", printable(line), refusal=error)
    kind = type(error).__name__
    return failed(name, printable(textwrap.shorten(f"{kind}: {line}", 400, placeholder=" ...")))


def in_group(group: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings, each with its group."""
    for finding in findings:
        yield replace(finding, group=group)


def lines_of(finding: Finding, width: int) -> list[str]:
    """A finding as a row of a table; on a narrow terminal the text goes under the name.

    Example:
        >>> lines_of(passed("loss computed", "5.71 nats"), 80)
        ['passed       loss computed         5.71 nats']
        >>> lines_of(passed("loss computed", "5.71 nats"), 40)
        ['passed       loss computed', '    5.71 nats']
    """
    head = f"{finding.outcome:<{_OUTCOME_WIDTH}}"
    beside = _OUTCOME_WIDTH + _NAME_WIDTH
    if width < _NARROW or len(finding.name) >= _NAME_WIDTH:
        text = textwrap.wrap(finding.found, max(20, width - _INDENT)) if finding.found else []
        return [head + finding.name, *(" " * _INDENT + line for line in text)]
    first, *more = textwrap.wrap(finding.found, width - beside) or [""]
    row = f"{head}{finding.name:<{_NAME_WIDTH}}{first}".rstrip()
    return [row, *(" " * beside + line for line in more)]


def summary(findings: list[Finding], seconds: float) -> str:
    """The last line.

    Example:
        >>> summary([passed("a", ""), not_checked("b", "")], 1.26)
        '1 passed, 0 failed, 1 not checked here, in 1.3 s'
    """
    counts = {
        outcome: sum(finding.outcome == outcome for finding in findings)
        for outcome in ("passed", "failed", "not checked")
    }
    return (
        f"{counts['passed']} passed, {counts['failed']} failed, "
        f"{counts['not checked']} not checked here, in {seconds:.1f} s"
    )
