"""A document on its way from a file to tokens, and the lines that could not become one."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, final

from wmtp.secrets import without_secrets
from wmtp.untrusted import printable

LONGEST_DETAIL = 300
"""Characters of a bad line's detail that are kept: it may quote megabytes of the line."""

Span = tuple[int, int, float]
"""First character, the one after the last, and the weight of what lies between."""


# Named tuples, because a corpus has many millions of these: a frozen dataclass takes four times as
# long to make.
class Segment(NamedTuple):
    """A piece of text that is tokenized by itself, as a prompt is when a model is used."""

    text: str
    wanted: bool = True
    """False for a prompt: read by the model, but not learned."""


class Origin(NamedTuple):
    """Where a document was taken from before it came into the file, in the data's own words.

    Attributes:
        source: such as ``kowiki``, or None where the data says nothing.
        license: under which it may be used, or None.
    """

    source: str | None = None
    license: str | None = None


NO_ORIGIN = Origin()


class Document(NamedTuple):
    """Text whose tokens may see one another, and no others.

    Attributes:
        name: where it comes from, ``FILE`` or ``FILE:LINE``.
        segments: its text in order, none of it empty.
        weight: ``loss_weights`` of every token, or None where the data says nothing (then 1).
        spans: weights that differ, over the characters of all segments joined; a later span wins.
        reward: how good the text is, or None where the data says nothing.
        group: what it competes within, such as the problem that a program is meant to solve.
        origin: where the data says that it is from.
    """

    name: str
    segments: tuple[Segment, ...]
    weight: float | None = None
    spans: tuple[Span, ...] = ()
    reward: float | None = None
    group: str | None = None
    origin: Origin = NO_ORIGIN


class TokenDocument(NamedTuple):
    """A document that arrives as token ids; ``weights`` has one number per id, or None (then 1)."""

    name: str
    ids: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    reward: float | None = None
    group: str | None = None
    origin: Origin = NO_ORIGIN


class UnusableError(Exception):
    """Why a line or file cannot become a document; caught where its place is known."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class BadLine:
    """A line or file that was left out: where it stands and why, in words that can be counted."""

    place: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        told = f"{self.place}: {self.reason}" + (f" ({self.detail})" if self.detail else "")
        return printable(told)

    def as_json(self) -> str:
        """One line of ``bad_lines.jsonl``."""
        row = {"place": self.place, "reason": self.reason, "detail": self.detail}
        return without_secrets(json.dumps(row, ensure_ascii=True))


@final
@dataclass
class BadLines:
    """Collects what was left out, so that nothing is left out silently.

    Attributes:
        lines: what could not be read.
        passed_over: how many documents could be read but are not used, for each reason.

    Example:
        >>> bad = BadLines()
        >>> with bad.at("a.jsonl:3"):
        ...     raise UnusableError("not JSON", "Expecting value")
        >>> bad.summary()
        ['a.jsonl:3: not JSON (Expecting value)']
    """

    lines: list[BadLine] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Note an ``UnusableError`` raised inside the block as the bad line of that place."""
        try:
            yield
        except UnusableError as error:
            self.note(place, error)

    def note(self, place: str, error: UnusableError) -> None:
        """Note the bad line of a place."""
        self.lines.append(BadLine(place, error.reason, error.detail[:LONGEST_DETAIL]))

    def per_reason(self) -> dict[str, int]:
        """How many were left out for each reason, the most frequent first."""
        return dict(Counter(line.reason for line in self.lines).most_common())

    def summary(self, first: int = 5) -> list[str]:
        """Lines for a person: the first few with their places, then how many more there are."""
        lines = [str(line) for line in self.lines[:first]]
        rest = len(self.lines) - first
        return [*lines, f"and {rest} more"] if rest > 0 else lines

    def report(self) -> list[str]:
        """All that a person is told: numbers for each reason, and the first few bad lines.

        Example:
            >>> bad = BadLines([BadLine("a:3", "not JSON")])
            >>> bad.passed_over["duplicate program"] += 2
            >>> bad.report()
            ['1 left out: not JSON 1', '  a:3: not JSON', '2 passed over: duplicate program 2']
        """
        return counts_in_words(self.per_reason(), self.summary(), self.passed_over)


def counts_in_words(
    left_out: Mapping[str, int], first: Sequence[str], passed_over: Mapping[str, int]
) -> list[str]:
    """What a person is told of what is not used: numbers for each reason, the first few bad lines.

    Args:
        left_out: how many could not be read, for each reason.
        first: lines about some of them.
        passed_over: how many could be read but are not used, for each reason.
    """
    lines = []
    if left_out:
        lines.append(f"{sum(left_out.values())} left out: {_per_reason(left_out)}")
        lines += [f"  {line}" for line in first]
    if passed_over:
        lines.append(f"{sum(passed_over.values())} passed over: {_per_reason(passed_over)}")
    return lines


def _per_reason(counts: Mapping[str, int]) -> str:
    most_first = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {count}" for reason, count in most_first)
