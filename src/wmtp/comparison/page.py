"""A comparison as text and as a page."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from wmtp.comparison.pairs import SEEDS_TO_KNOW, Line
from wmtp.comparison.results import Point, Run
from wmtp.evaluation.statistics import Interval


@dataclass
class Table:
    """A table with a heading and notes.

    Attributes:
        heading: above it.
        columns: their names.
        rows: a text for each column.
        notes: below it.
    """

    heading: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def tables(runs: Sequence[Run], lines: Sequence[Line]) -> list[Table]:
    """Held-out figures with intervals, then training at equal tokens and at equal time."""
    found = [_figures_table(runs, name, lines) for name in dict.fromkeys(x.figure for x in lines)]
    return found + _curve_tables(runs)


def as_text(found: Sequence[Table]) -> str:
    """Markdown, with columns in line."""
    return "\n\n".join(_text_of(table) for table in found)


def as_page(found: Sequence[Table]) -> str:
    """One HTML file that needs no other."""
    parts = []
    for table in found:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>\n"
            for row in table.rows
        )
        notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in table.notes)
        parts.append(
            f"<h2>{html.escape(table.heading)}</h2>\n<table>\n<tr>{head}</tr>\n{body}</table>\n"
            f"{notes}"
        )
    style = (
        "body{font:15px system-ui,sans-serif;margin:2rem;max-width:72rem}"
        "table{border-collapse:collapse}td,th{border-bottom:1px solid #ccc;padding:.3rem .8rem;"
        "text-align:left}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>wmtp compare</title>\n<style>{style}</style>\n<h1>wmtp compare</h1>\n"
        + "".join(parts)
        + "</html>\n"
    )


def _figures_table(runs: Sequence[Run], name: str, lines: Sequence[Line]) -> Table:
    mine = [line for line in lines if line.figure == name]
    table = Table(
        f"{name}, less is better" if runs[0].figures[name].less_is_better else name,
        ["group", "seeds", "value [95 %]", f"difference to {mine[0].group} [95 %]",
         "between seeds [95 %]", "p (Holm)", "detectable", ""],
    )  # fmt: skip
    for line in mine:
        table.rows.append(
            [
                line.group,
                str(line.seeds),
                _interval_text(line.value),
                "" if line.difference is None else _interval_text(line.difference, signed=True),
                "" if line.between_seeds is None
                else _interval_text(line.between_seeds, signed=True),
                "" if line.p_value is None else f"{line.p_value:.2g}",
                "" if line.detectable is None else f"{line.detectable:.2g}",
                line.verdict,
            ]
        )  # fmt: skip
    count = len(runs[0].figures[name].units.numerators)
    table.notes.append(f"Over {count:,} units, pair by pair.")
    if any(line.seeds < SEEDS_TO_KNOW for line in mine):
        table.notes.append("With one seed nothing is known of what another seed would give.")
    return table


def _curve_tables(runs: Sequence[Run]) -> list[Table]:
    curves = [(run, run.curve) for run in runs if run.curve is not None and run.curve.points]
    if len(curves) < 2:
        return []
    found = []
    tokens = min(curve.points[-1].tokens for _, curve in curves)
    seconds = min(curve.points[-1].seconds for _, curve in curves)
    for heading, points in (
        (f"training, until {tokens:,} tokens",
         [(run, curve.last_until(tokens=tokens)) for run, curve in curves]),
        (f"training, within {seconds:,.0f} seconds of steps",
         [(run, curve.last_until(seconds=seconds)) for run, curve in curves]),
    ):  # fmt: skip
        table = Table(heading, ["run", "group", "step", "tokens", "seconds", "ce of heads"])
        table.rows = [_curve_row(run, point) for run, point in points if point is not None]
        if heading.endswith("steps"):
            table.notes.append("The last evaluation within the time; a shared machine blurs it.")
        found.append(table)
    return found


def _curve_row(run: Run, point: Point) -> list[str]:
    ce = [value for name, value in point.figures.items() if name.startswith("eval/ce/head_")]
    return [
        run.name,
        run.group,
        str(point.step),
        f"{point.tokens:,}",
        f"{point.seconds:,.0f}",
        " ".join(f"{value:.4f}" for value in ce),
    ]


def _interval_text(found: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""

    def number(value: float) -> str:
        return f"{value:{sign}.4f}" if math.isfinite(value) else f"{value:{sign}f}"

    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def _text_of(table: Table) -> str:
    rows = [table.columns, *table.rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(table.columns))]
    lines = [f"## {table.heading}", ""]
    for number, row in enumerate(rows):
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
        if number == 0:
            lines.append(f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join([*lines, *(["", *table.notes] if table.notes else [])])
