"""What became of records and documents, in numbers that can be added up."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, final

SAMPLES: Final = 3
"""Documents that the report shows of each source and reason."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A document or record that was left out, for a person to look at.

    Attributes:
        place: of its record.
        detail: what the stage said of it.
        text: its beginning, private data replaced.
    """

    place: str
    detail: str = ""
    text: str = ""


@final
@dataclass
class Tally:
    """What became of the records of a source.

    ``bytes_in`` is what kept and dropped documents and all changes add up to: no byte of text is
    lost without a name.

    Attributes:
        documents: that the reader gave.
        bytes_in: of their texts, UTF-8.
        bad: records that could not be read, by reason.
        passed_over: records that are no documents, such as redirects, by reason.
        changed_bytes: by stage: bytes of text before it, less those after it.
        changes: what stages counted, by stage and name.
        dropped: documents, by reason.
        dropped_bytes: of their texts as they were dropped, by reason.
        samples: the first few of each reason.
    """

    documents: int = 0
    bytes_in: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    changed_bytes: Counter[str] = field(default_factory=Counter)
    changes: dict[str, Counter[str]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_bytes: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """That were read: documents, bad ones, and those passed over."""
        return self.documents + self.bad.total() + self.passed_over.total()

    def drop(self, reason: str, size: int) -> None:
        """Count a document that is dropped."""
        self.dropped[reason] += 1
        self.dropped_bytes[reason] += size

    def wants_sample(self, reason: str) -> bool:
        """Whether fewer than ``SAMPLES`` of a reason are known."""
        return len(self.samples.get(reason, ())) < SAMPLES

    def sample(self, reason: str, sample: Sample) -> None:
        """Keep one of the first."""
        if self.wants_sample(reason):
            self.samples.setdefault(reason, []).append(sample)

    def add(self, later: "Tally") -> None:
        """Add what came behind it."""
        self.documents += later.documents
        self.bytes_in += later.bytes_in
        for mine, theirs in (
            (self.bad, later.bad),
            (self.passed_over, later.passed_over),
            (self.changed_bytes, later.changed_bytes),
            (self.dropped, later.dropped),
            (self.dropped_bytes, later.dropped_bytes),
        ):
            mine.update(theirs)
        for stage, counts in later.changes.items():
            self.changes.setdefault(stage, Counter()).update(counts)
        for reason, samples in later.samples.items():
            for sample in samples:
                self.sample(reason, sample)

    def as_json(self) -> dict[str, Any]:
        """Values of JSON, in one order whatever order they came in."""
        return {
            "documents": self.documents,
            "bytes_in": self.bytes_in,
            "bad": _ordered(self.bad),
            "passed_over": _ordered(self.passed_over),
            "changed_bytes": _ordered(self.changed_bytes),
            "changes": {stage: _ordered(self.changes[stage]) for stage in sorted(self.changes)},
            "dropped": _ordered(self.dropped),
            "dropped_bytes": _ordered(self.dropped_bytes),
            "samples": {
                reason: [
                    {"place": one.place, "detail": one.detail, "text": one.text}
                    for one in self.samples[reason]
                ]
                for reason in sorted(self.samples)
            },
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Tally":
        """What ``as_json`` gave."""
        return cls(
            documents=values["documents"],
            bytes_in=values["bytes_in"],
            bad=Counter(values["bad"]),
            passed_over=Counter(values["passed_over"]),
            changed_bytes=Counter(values["changed_bytes"]),
            changes={stage: Counter(counts) for stage, counts in values["changes"].items()},
            dropped=Counter(values["dropped"]),
            dropped_bytes=Counter(values["dropped_bytes"]),
            samples={
                reason: [Sample(**one) for one in samples]
                for reason, samples in values["samples"].items()
            },
        )


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts) if counts[name]}
