"""What became of every byte: for programs (``report.json``) and for a person (``report.md``)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from wmtp.corpus.pipeline.plan import Plan
from wmtp.corpus.pipeline.tally import Tally
from wmtp.corpus.pipeline.writing import SIDES, Side, WrittenFile
from wmtp.untrusted import printable


@dataclass
class Kept:
    """Documents that are left of a source, on one side of the split."""

    documents: int = 0
    text_bytes: int = 0


@dataclass
class SourceReport:
    """What became of a source.

    Attributes:
        name: in the list of sources.
        license: of its documents.
        tally: of its records.
        kept: what is left, by side.
    """

    name: str
    license: str
    tally: Tally = field(default_factory=Tally)
    kept: dict[Side, Kept] = field(default_factory=lambda: {side: Kept() for side in SIDES})

    @property
    def kept_documents(self) -> int:
        """On both sides."""
        return sum(kept.documents for kept in self.kept.values())

    @property
    def kept_bytes(self) -> int:
        """On both sides."""
        return sum(kept.text_bytes for kept in self.kept.values())

    def check(self) -> None:
        """See that no byte is lost without a name.

        Raises:
            RuntimeError: one is, which is a fault of ours.
        """
        tally = self.tally
        out = self.kept_bytes + tally.dropped_bytes.total() + tally.changed_bytes.total()
        documents = self.kept_documents + tally.dropped.total()
        if (out, documents) != (tally.bytes_in, tally.documents):
            raise RuntimeError(
                f"{self.name}: {tally.documents} documents of {tally.bytes_in} bytes went in, "
                f"{documents} of {out} are accounted for"
            )


@dataclass(frozen=True)
class CorpusReport:
    """What became of all sources.

    Attributes:
        plan: what was asked for.
        sources: in their order.
        files: that were written.
    """

    plan: Plan
    sources: tuple[SourceReport, ...]
    files: tuple[WrittenFile, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it but speeds: the same for the same plan, whoever works it out and how often."""
        return {
            "format": 1,
            "versions": self.plan.versions,
            "settings": self.plan.settings,
            "inputs": [
                {
                    "source": self.sources[file.source].name if file.source >= 0 else None,
                    "file": file.name,
                    "bytes": file.size,
                    "xxh3_128": file.content,
                }
                for file in self.plan.files
            ],
            "sources": [_source_json(source) for source in self.sources],
            "licenses": self._licenses(),
            "files": [asdict(file) for file in self.files],
        }

    def lines(self) -> list[str]:
        """For a person, a few lines and a table."""
        total = Tally()
        for source in self.sources:
            total.add(source.tally)
        kept = sum(source.kept_bytes for source in self.sources)
        documents = sum(source.kept_documents for source in self.sources)
        rows = [_row(source) for source in self.sources]
        lines = [
            f"{documents:,} of {total.documents:,} documents kept, {kept:,} of "
            f"{total.bytes_in:,} bytes of text ({_share(kept, total.bytes_in)})",
            *_table(("source", "documents", "kept", "bytes", "kept", "validation", "bad"), rows),
        ]
        if total.dropped:
            lines.append("dropped:")
            lines += [
                f"  {reason}: {count:,} documents, {total.dropped_bytes[reason]:,} bytes"
                for reason, count in sorted(
                    total.dropped.items(), key=lambda item: (-item[1], item)
                )
            ]
        for name, counts in sorted(total.changes.items()):
            told = ", ".join(f"{what} {count:,}" for what, count in sorted(counts.items()))
            lines.append(f"{name}: {told}")
        for what, left in (("bad records", total.bad), ("passed over", total.passed_over)):
            if left:
                told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(left.items()))
                lines.append(f"{what}: {told}")
        return [printable(line) for line in lines]

    def markdown(self) -> str:
        """The same with samples of what was dropped."""
        parts = ["# What became of the corpus", "", "```", *self.lines(), "```"]
        for source in self.sources:
            if not source.tally.samples:
                continue
            parts += ["", f"## {source.name} ({source.license})"]
            for reason in sorted(source.tally.samples):
                parts += ["", f"{reason}:", ""]
                parts += [
                    "- " + printable(f"{one.place}: {one.text!r} {one.detail}".rstrip())
                    for one in source.tally.samples[reason]
                ]
        return "\n".join(parts) + "\n"

    def _licenses(self) -> dict[str, dict[str, int]]:
        licenses: dict[str, dict[str, int]] = {}
        for source in self.sources:
            counts = licenses.setdefault(source.license, {"documents": 0, "text_bytes": 0})
            counts["documents"] += source.kept_documents
            counts["text_bytes"] += source.kept_bytes
        return dict(sorted(licenses.items()))


def _source_json(source: SourceReport) -> dict[str, Any]:
    return {
        "name": source.name,
        "license": source.license,
        "records": source.tally.records,
        **source.tally.as_json(),
        "kept": {side: asdict(kept) for side, kept in source.kept.items()},
    }


def _row(source: SourceReport) -> tuple[str, ...]:
    tally = source.tally
    return (
        source.name,
        f"{tally.documents:,}",
        _share(source.kept_documents, tally.documents),
        f"{tally.bytes_in:,}",
        _share(source.kept_bytes, tally.bytes_in),
        f"{source.kept['validation'].documents:,}",
        f"{tally.bad.total():,}",
    )


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (names, *rows)) for i in range(len(names))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (names, *rows)
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def speeds(
    seconds: Mapping[str, float], bytes_in: int, wall_seconds: float, peaks: Mapping[str, int]
) -> dict[str, Any]:
    """How fast it went: differs from run to run, and is no part of the report.

    Args:
        seconds: of processor time, by stage, of all units whenever they were done; of cutting
            files into units, the search for duplicates and writing, of the run that ended it.
        bytes_in: of text.
        wall_seconds: of the run that ended it.
        peaks: memory of its processes, bytes.
    """
    total = sum(seconds.values())
    return {
        "cpu_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "text_megabytes": round(bytes_in / 1e6, 3),
        "megabytes_per_cpu_second": round(bytes_in / 1e6 / total, 3) if total else None,
        "wall_seconds_of_last_run": round(wall_seconds, 3),
        "peak_bytes": dict(peaks),
    }
