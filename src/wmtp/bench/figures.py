"""What was measured, as plain values: a report that says nothing of who measured it or where."""

import json
import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wmtp.errors import DataError
from wmtp.runtime.device import Kind, Precision
from wmtp.untrusted import printable, read_bounded

FORMAT: Literal[1] = 1
LARGEST_REPORT = 1 << 20

Mode = Literal["eager", "compiled"]
Unit = Literal["tokens/s", "bytes", "ratio"]
Subject = Literal[
    "training",
    "peak memory",
    "predicted peak memory",
    "growth over 50 steps",
    "loss, known weights",
    "loss, rho1 weighted",
    "loss, rho1 token_skip",
    "decoding, plain",
    "decoding, drafts",
]


class Part(BaseModel):
    """A part of a report: no unknown keys, nothing that is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Figure(Part):
    """One measured value.

    Attributes:
        subject: what was measured; a loss's is its time over that of the bare products.
        device: where.
        precision: of the products.
        mode: compiled or not.
        value: in ``unit``.
    """

    subject: Subject
    device: Kind
    precision: Precision
    mode: Mode = "eager"
    value: float
    unit: Unit

    @property
    def place(self) -> tuple[str, ...]:
        """What it is compared under."""
        return self.subject, self.device, self.precision, self.mode

    @property
    def title(self) -> str:
        """For a person."""
        mode = f" {self.mode}" if self.subject == "training" else ""
        return f"{self.subject}, {self.device} {self.precision}{mode}"


class LeftOut(Part):
    """Something that was not measured, and why; ``failed: NAME`` names an error's class."""

    what: str = Field(max_length=200)
    why: str = Field(max_length=200)


class Report(Part):
    """A machine and what it did.

    Built from named fields alone, each of which the hardware, the system or this program fills:
    no message of an error and no path can get in.
    """

    format: Literal[1] = FORMAT
    wmtp: str = Field(max_length=100)
    torch: str = Field(max_length=100)
    python: str = Field(max_length=100)
    system: str = Field(max_length=100)
    chip: str = Field(max_length=100)
    cores: int = Field(ge=1)
    memory_gibibytes: float = Field(gt=0)
    devices: dict[Kind, str]
    figures: list[Figure] = Field(max_length=1000)
    left_out: list[LeftOut] = Field(max_length=1000)

    def lines(self) -> list[str]:
        """Everything for a person."""
        width = max((len(figure.title) for figure in self.figures), default=0)
        found = [f"{figure.title:<{width}}  {shown(figure)}" for figure in self.figures]
        speeds = {figure.place: figure.value for figure in self.figures}
        for figure in self.figures:
            cpu = speeds.get(("training", "cpu", figure.precision, figure.mode))
            if figure.subject == "training" and figure.device != "cpu" and cpu:
                found.append(f"{figure.title} over cpu: {figure.value / cpu:.2f}")
        for figure in self.figures:
            predicted = speeds.get(("predicted peak memory", *figure.place[1:]))
            if figure.subject == "peak memory" and predicted:
                found.append(
                    f"{figure.title}, measured over predicted: {figure.value / predicted:.2f}"
                )
        left_out = [f"not measured: {one.what} ({one.why})" for one in self.left_out]
        return [f"{self.chip}, {self.system}, torch {self.torch}", *found, *left_out]

    def text(self) -> str:
        """The JSON that is sent."""
        return self.model_dump_json(indent=1) + "\n"


def shown(figure: Figure) -> str:
    """The value with its unit."""
    if figure.unit == "bytes":
        return f"{figure.value / 2**20:,.1f} MiB"
    if figure.unit == "ratio":
        return f"{figure.value:.2f} x the bare products"
    return f"{figure.value:,.1f} tokens/s"


def read_report(path: Path) -> Report:
    """A report that somebody else may have made.

    Raises:
        DataError: it cannot be read, or is no report.
    """
    refused = f"'{path}' is no report of wmtp bench"
    try:
        content = read_bounded(path, LARGEST_REPORT)
        return Report.model_validate_json(content)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror or error}).") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = printable(".".join(map(str, first["loc"]))[:80])
        why = f" ({where}: {printable(first['msg'])[:120]})"
        raise DataError(f"{refused}{why}. Make one with --report FILE.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{refused}. Make one with --report FILE.") from error


def comparison(one: Report, other: Report) -> list[str]:
    """The second over the first, for each figure that both have.

    A ratio above 1 is more: faster for tokens/s, heavier for bytes, slower for a loss.
    """
    values = {figure.place: figure for figure in other.figures}
    both = [(f, values[f.place]) for f in one.figures if f.place in values and f.value > 0]
    width = max((len(figure.title) for figure, _ in both), default=0)
    lines = [f"A: {named(one)}", f"B: {named(other)}"]
    for a, b in both:
        ratio = b.value / a.value
        assert math.isfinite(ratio)
        lines.append(f"{a.title:<{width}}  {shown(a)} -> {shown(b)}  B/A {ratio:.2f}")
    if not both:
        lines.append("The two have no figure in common: other devices or precisions were measured.")
    return lines


def named(report: Report) -> str:
    """The machine and versions, whatever somebody wrote there."""
    return printable(f"{report.chip}, {report.system}, wmtp {report.wmtp}, torch {report.torch}")


def as_plain(report: Report) -> dict[str, object]:
    """For tests and scripts."""
    return dict(json.loads(report.text()))
